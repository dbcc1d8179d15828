"""ONNX: a model that takes a user, or what somebody has, and gives the best items, for runtimes without Python.

The graph computes what :func:`wals_gpu.model.answers.recommend` does, in operators that every runtime has: dot
products, the neighbours of items, popular items for users that nobody knows, -inf for what is seen, and TopK, which
takes equal scores by the lower number, as the library does. With query="history" it also solves the system of a new
user.

Shapes: B queries, U users, I items, D factors, H items of a history, S items to leave out, m neighbours, k results.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.export.folder import Export, check_folder, manifest_of, new_folder, optional_module, write_manifest
from wals_gpu.export.tables import write_items, write_users
from wals_gpu.model.vectors import ScoreVectors, score_vectors
from wals_gpu.model.wals import WALS
from wals_gpu.training.fitted import Fitted

__all__ = ["export_onnx"]

QUERIES = ("users", "vectors", "history")
#: Of ONNX; from 2021, so that runtimes of the last years read it.
OPSET, IR_VERSION = 17, 8
#: Bytes of tables from which on they lie in a file of their own: protobuf ends at 2 GiB.
LARGE = 1 << 30
#: Lengths of histories that have a ridge of their own; longer ones have that of the longest.
LONGEST = 2048
#: Conjugate-gradient steps of a new user, in multiples of D; ended early where nothing is left to improve.
STEPS = 2
#: Residual, as a share of the right-hand side, that ends them: far below what float32 can tell.
RESIDUAL = 1e-12


def export_onnx(
    model: WALS,
    out: str | os.PathLike[str],
    *,
    query: str = "users",
    seen: bool = True,
    factors_only: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the model as an ONNX graph that recommends.

    ``model.onnx`` has the inputs ``k`` (1) and ``exclude`` (B, S), rows of items that each query must not get, -1 for
    none; and what `query` says. Its outputs are ``items`` (B, k), rows of ``items.parquet``, -1 where none is left;
    ``scores`` (B, k), -inf there; and ``item_ids`` (B, k) where the model has ids, 0 or an empty text there.

    Parameters
    ----------
    model, out, overwrite
        As of :func:`.export_parquet`.
    query : {"users", "vectors", "history"}, default "users"
        "users": ``user`` (B,), rows of ``users.parquet``; the graph holds their vectors, and with `seen` what they have
        seen, and leaves it out. Whom the model does not know gets what is popular. "vectors": ``vector`` (B, D), such
        as the rows of ``model.user_factors``; the graph holds the items alone. "history": ``history`` (B, H), rows of
        items that somebody has, each with the value 1, -1 for none; the graph solves for their vector, as
        :meth:`wals_gpu.WALS.recommend_for` does, and leaves these items out.
    seen : bool, default True
        With "users": whether the graph holds what they have seen.
    factors_only : bool, default False
        Leave out, with a warning, what is no dot product, where the model has it: neighbours of items. They are in the
        graph otherwise, but with "vectors", which tell nothing of what a user has.

    Returns
    -------
    Export

    Raises
    ------
    ModuleNotFoundError
        onnx is not installed.
    ValueError
        `query` has none of its values, or cannot be had of this model.
    FileExistsError, NotADirectoryError, FileNotFoundError, ModelFitError
        As of :func:`.export_parquet`.
    """
    if query not in QUERIES:
        raise ValueError(f"query must be one of {', '.join(map(repr, QUERIES))}, got {query!r}")
    check_folder(out, overwrite)
    onnx = optional_module("onnx", "onnx", "onnx")
    fitted = model.fitted
    vectors = score_vectors(fitted, factors_only=factors_only, has_neighbors=query != "vectors" and not factors_only)
    if query == "history" and fitted.user_prior is not None:
        raise ValueError("query='history' is for models without a user_prior; query='vectors' takes what fold_in gives")
    graph = _Graph(onnx, fitted, vectors, query, seen)
    example = {
        "users": "'user': numpy.array([0])",
        "vectors": "'vector': vectors[:1]",
        "history": "'history': numpy.array([[0, 1]])",
    }[query]
    line = (
        f"items, scores, *ids = onnxruntime.InferenceSession('model.onnx').run(None, {{{example}, "
        "'exclude': numpy.zeros((1, 0), int), 'k': numpy.array([10])})"
    )
    with new_folder(out, overwrite) as folder:
        graph.save(str(folder / "model.onnx"))
        write_items(folder, vectors, with_vectors=False)
        if query == "users":
            write_users(folder, vectors, seen=None, with_vectors=False)
        options = {"asked_by": query, "seen": seen and query == "users", "opset": OPSET, "query": line}
        manifest, sizes = write_manifest(folder, manifest_of("onnx", vectors, **options))
    return Export("onnx", str(out), sizes, "bytes", line, manifest)


class _Graph:
    """A graph under way: nodes and tables are added one by one, each named by its output.

    Parameters
    ----------
    onnx : module
    fitted : Fitted
    vectors : ScoreVectors
    query : str
    seen : bool
    """

    def __init__(self, onnx: Any, fitted: Fitted, vectors: ScoreVectors, query: str, seen: bool) -> None:
        self._onnx, self._helper, self._types = onnx, onnx.helper, onnx.TensorProto
        self._fitted, self._vectors = fitted, vectors
        self._dtype = vectors.items.dtype
        self._nodes: list[Any] = []
        self._tables: list[Any] = []
        self._inputs = [self._value("k", self._types.INT64, [1]), self._value("exclude", self._types.INT64, ["B", "S"])]
        self._outputs: list[Any] = []
        self._bytes = 0
        if query == "users":
            self._of_users(seen)
        elif query == "vectors":
            self._of_vectors()
        else:
            self._of_histories()

    # ------------------------------------------------------------------------------------------------ pieces

    def _value(self, name: str, kind: int, shape: list[Any]) -> Any:
        return self._helper.make_tensor_value_info(name, kind, shape)

    def _input(self, name: str, shape: list[Any], kind: int | None = None) -> str:
        self._inputs.insert(0, self._value(name, self._types.INT64 if kind is None else kind, shape))
        return name

    def _table(self, name: str, array: NDArray[Any]) -> str:
        """A constant by its name."""
        self._tables.append(self._onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        self._bytes += array.nbytes
        return name

    def _number(self, value: float) -> str:
        """A constant of the type of the scores."""
        return self._table(f"number_{len(self._tables)}", np.array([value], self._dtype))

    def _integers(self, *values: int) -> str:
        return self._table(f"integers_{len(self._tables)}", np.array(values, np.int64))

    def _scalar(self, value: int) -> str:
        return self._table(f"scalar_{len(self._tables)}", np.array(value, np.int64))

    def _do(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node; the name of its output."""
        name = name or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    # ------------------------------------------------------------------------------------------------ queries

    def _of_users(self, seen: bool) -> None:
        fitted, vectors = self._fitted, self._vectors
        user = self._input("user", ["B"])
        asked = self._do("Gather", self._table("user_vectors", vectors.users), user)
        matrix = vectors.seen_by(slice(0, vectors.n_users))
        has_neighbors = fitted.neighbors is not None and not vectors.factors_only
        listed = self._rows(matrix, user, "seen") if seen or (has_neighbors and matrix.nnz) else None
        scores = self._scores(asked)
        if has_neighbors and listed is not None:
            owned = csr_matrix(matrix, copy=True)
            owned.data = (owned.data > 0).astype(np.int8)
            owned.eliminate_zeros()
            scores = self._with_neighbors(
                scores, listed if owned.nnz == matrix.nnz else self._rows(owned, user, "owned")
            )
        if not vectors.known.all():
            known = self._do("Gather", self._table("known", vectors.known), user)
            scores = self._popular(self._do("Unsqueeze", known, self._integers(1)), scores)
        self._answer(scores, listed if seen else None)

    def _of_vectors(self) -> None:
        kind = self._helper.np_dtype_to_tensor_dtype(self._dtype)
        self._answer(self._scores(self._input("vector", ["B", self._vectors.factors], kind)), None)

    def _of_histories(self) -> None:
        history = self._input("history", ["B", "H"])
        listed = self._valid(history)
        scores = self._scores(self._solve(listed))
        if self._fitted.neighbors is not None and not self._vectors.factors_only:
            scores = self._with_neighbors(scores, listed)
        there = self._do("Less", listed, self._integers(self._vectors.n_items))
        lengths = self._do("ReduceSum", self._do("Cast", there, to=self._types.INT64), self._integers(1), keepdims=1)
        self._answer(self._popular(self._do("Greater", lengths, self._integers(0)), scores), listed)

    # ------------------------------------------------------------------------------------------------ steps

    def _rows(self, matrix: csr_matrix, user: str, name: str) -> str:
        """Items of the rows of a pattern, (B, H) with I after the end of the shorter ones."""
        row_ptr = self._table(f"{name}_row_ptr", matrix.indptr.astype(np.int64))
        # Never empty, for the sake of an index that is in range.
        col_idx = self._table(f"{name}_col_idx", np.append(matrix.indices, self._vectors.n_items).astype(np.int32))
        start = self._do("Gather", row_ptr, user)
        stop = self._do("Gather", row_ptr, self._do("Add", user, self._integers(1)))
        longest = self._do("ReduceMax", self._do("Sub", stop, start), axes=[0], keepdims=0)
        steps = self._do("Range", self._scalar(0), longest, self._scalar(1))
        start, stop = (self._do("Unsqueeze", one, self._integers(1)) for one in (start, stop))
        place = self._do("Add", start, steps)
        inside = self._do("Less", place, stop)
        last = self._integers(matrix.nnz)
        items = self._do("Cast", self._do("Gather", col_idx, self._do("Min", place, last)), to=self._types.INT64)
        return self._do("Where", inside, items, self._integers(self._vectors.n_items))

    def _valid(self, items: str) -> str:
        """Rows of items with I in place of -1."""
        there = self._do("GreaterOrEqual", items, self._integers(0))
        return self._do("Where", there, items, self._integers(self._vectors.n_items))

    def _scores(self, asked: str) -> str:
        return self._do("Gemm", asked, self._table("item_vectors", self._vectors.items), transB=1)

    def _marked(self, listed: str, value: float) -> str:
        """Zeros (B, I + 1) with `value` at the items listed; those at I are of nobody."""
        batch = self._do("Slice", self._do("Shape", listed), self._integers(0), self._integers(1))
        shape = self._do("Concat", batch, self._integers(self._vectors.n_items + 1), axis=0)
        zero = self._onnx.numpy_helper.from_array(np.zeros(1, self._dtype))
        zeros = self._do("ConstantOfShape", shape, value=zero)
        values = self._do("Expand", self._number(value), self._do("Shape", listed))
        return self._do("ScatterElements", zeros, listed, values, axis=1)

    def _with_neighbors(self, scores: str, owned: str) -> str:
        """Scores with what each item's neighbours (I, m) add, of those that are owned."""
        neighbors = self._fitted.item_neighbors()
        assert neighbors is not None
        columns = neighbors.weights.tocsc()
        counts = np.diff(columns.indptr)
        most = max(int(counts.max(initial=0)), 1)
        place = np.arange(columns.nnz) - np.repeat(columns.indptr[:-1], counts)
        item = np.repeat(np.arange(columns.shape[1]), counts)
        numbers = np.zeros((columns.shape[1], most), np.int64)
        weights = np.zeros(numbers.shape, self._dtype)  # 0 where an item has fewer
        numbers[item, place], weights[item, place] = columns.indices, columns.data
        marks = self._marked(owned, 1.0)
        of_items = self._do("Gather", marks, self._table("neighbors", numbers), axis=1)
        weighed = self._do("Mul", of_items, self._table("neighbor_weights", weights))
        return self._do("Add", scores, self._do("ReduceSum", weighed, self._integers(2), keepdims=0))

    def _popular(self, known: str, scores: str) -> str:
        """Scores, but of rows that are not `known` (B, 1) those of what is popular."""
        popularity = self._table("popularity", self._vectors.popularity.astype(self._dtype)[None])
        return self._do("Where", known, scores, popularity)

    def _answer(self, scores: str, listed: str | None) -> None:
        """The best that is neither listed nor excluded."""
        denied = self._valid("exclude")
        if listed is not None:
            denied = self._do("Concat", listed, denied, axis=1)
        n = self._vectors.n_items
        marks = self._marked(denied, -np.inf)
        marks = self._do("Slice", marks, self._integers(0), self._integers(n), self._integers(1))
        k = self._do("Min", "k", self._integers(n))
        self._nodes.append(
            self._helper.make_node("TopK", [self._do("Add", scores, marks), k], ["scores", "found"], axis=1)
        )
        none = self._do("Less", "scores", self._number(float(np.finfo(self._dtype).min)))
        self._do("Where", none, self._integers(-1), "found", name="items")
        kind = self._helper.np_dtype_to_tensor_dtype(self._dtype)
        self._outputs = [
            self._value("items", self._types.INT64, ["B", "K"]),
            self._value("scores", kind, ["B", "K"]),
        ]
        ids = self._vectors.item_ids
        if ids is not None:
            is_text = ids.kind == "string"
            # What is not there is one more row of the table: a choice between unsigned integers is not to be had.
            empty = np.array([""], object) if is_text else np.zeros(1, ids.ids.dtype)
            rows = self._do("Where", none, self._integers(n), "found")
            self._do("Gather", self._table("ids", np.concatenate([ids.ids, empty])), rows, name="item_ids")
            kind = self._types.STRING if is_text else self._helper.np_dtype_to_tensor_dtype(ids.ids.dtype)
            self._outputs.append(self._value("item_ids", kind, ["B", "K"]))

    # ------------------------------------------------------------------------------------------------ new users

    def _solve(self, listed: str) -> str:
        """Vectors (B, D) of who has the items listed, by conjugate gradients in float64.

        The system is that of :class:`.RowTerms`, of entries with the value 1: its numbers depend on the item, and its
        ridge on how many items there are, in every preset.
        """
        fitted, n = self._fitted, self._vectors.n_items
        assert fitted.bound is not None
        factors = fitted.item_factors.astype(np.float64)
        ones = csr_matrix((np.ones(n, self._dtype), np.arange(n), np.arange(n + 1)), shape=(n, n))
        each = fitted.bound.user_terms(ones, fold_in=True)
        background = float(np.broadcast_to(each.background, n)[0])
        weighted = factors * np.broadcast_to(each.other_background, n).astype(np.float64)[:, None]
        self._table("gram", background * (factors.T @ weighted))
        # A last row for I, which is no item.
        self._table("own_items", np.vstack([factors, np.zeros((1, factors.shape[1]))]))
        for name, values in (("own_gram", each.gram_values()), ("own_rhs", each.rhs_values())):
            self._table(name, np.append(values, 0.0).astype(np.float64))
        ridges = _ridges(fitted, self._dtype)
        self._table("ridges", ridges)
        own = self._do("Gather", "own_items", listed)  # (B, H, D)
        across = self._do("Transpose", own, perm=[0, 2, 1])
        three = self._integers(2)
        gram = self._do("Unsqueeze", self._do("Gather", "own_gram", listed), three)
        rhs = self._do("Unsqueeze", self._do("Gather", "own_rhs", listed), three)
        there = self._do("Cast", self._do("Less", listed, self._integers(n)), to=self._types.INT64)
        length = self._do("ReduceSum", there, self._integers(1), keepdims=0)
        longest = self._integers(len(ridges) - 1)
        ridge = self._do("Gather", "ridges", self._do("Min", length, longest))
        identity = self._table("identity", np.eye(factors.shape[1]))
        ridge = self._do("Mul", self._do("Unsqueeze", ridge, self._integers(1, 2)), identity)
        matrix = self._do("Add", self._do("MatMul", across, self._do("Mul", own, gram)), "gram")
        matrix = self._do("Add", matrix, ridge)
        right = self._do("MatMul", across, rhs)  # (B, D, 1)
        zero = self._do("Mul", right, self._table("zero", np.zeros(1)))
        solved = self._conjugate_gradients(matrix, right, zero, STEPS * factors.shape[1])
        solved = self._do("Squeeze", solved, self._integers(2))
        return self._do("Cast", solved, to=self._helper.np_dtype_to_tensor_dtype(self._dtype))

    def _conjugate_gradients(self, matrix: str, right: str, zero: str, steps: int) -> str:
        """A Loop of x, residual and direction, all (B, D, 1)."""
        make, kind = self._helper.make_node, self._types.DOUBLE
        square = self._do("ReduceSum", self._do("Mul", right, right), self._integers(1), keepdims=1)
        small = self._do("Mul", square, self._table("share", np.array([RESIDUAL**2])))
        axis, none = self._integers(1), self._table("no_number", np.zeros(1))
        one = self._table("one_number", np.ones(1))
        nodes: list[Any] = []

        def do(operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
            name = name or f"step_{operator.lower()}_{len(nodes)}"
            nodes.append(make(operator, list(inputs), [name], **attributes))
            return name

        def quotient(a: str, b: str) -> str:
            """0 where b is."""
            is_none = do("Equal", b, none)
            return do("Where", is_none, none, do("Div", a, do("Where", is_none, one, b)))

        def inner(a: str, b: str) -> str:
            return do("ReduceSum", do("Mul", a, b), axis, keepdims=1)

        product = do("MatMul", matrix, "direction")
        before = inner("residual", "residual")
        step = quotient(before, inner("direction", product))
        do("Add", "x", do("Mul", step, "direction"), name="next_x")
        do("Sub", "residual", do("Mul", step, product), name="next_residual")
        after = inner("next_residual", "next_residual")
        do("Add", "next_residual", do("Mul", quotient(after, before), "direction"), name="next_direction")
        more = do("ReduceMax", do("Sub", after, small), keepdims=0)
        do("Greater", more, self._table("nothing", np.array(0.0)), name="next_goes_on")
        state = ("x", "residual", "direction")
        body = self._helper.make_graph(
            nodes,
            "conjugate_gradients",
            [
                self._value("number", self._types.INT64, []),
                self._value("goes_on", self._types.BOOL, []),
                *(self._value(name, kind, None) for name in state),  # type: ignore[arg-type]
            ],
            [
                self._value("next_goes_on", self._types.BOOL, []),
                *(self._value(f"next_{name}", kind, None) for name in state),  # type: ignore[arg-type]
            ],
        )
        most, begins = self._scalar(steps), self._table("begins", np.array(True))
        self._nodes.append(make("Loop", [most, begins, zero, right, right], ["solved", "left_over", "last"], body=body))
        return "solved"

    # ------------------------------------------------------------------------------------------------ file

    def save(self, path: str) -> None:
        """Check the model and write it; large tables to a file beside it."""
        graph = self._helper.make_graph(self._nodes, "wals_gpu", self._inputs, self._outputs, self._tables)
        opset = [self._helper.make_opsetid("", OPSET)]
        model = self._helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="wals_gpu")
        is_large = self._bytes > LARGE
        if not is_large:
            self._onnx.checker.check_model(model, full_check=True)
        external = {"save_as_external_data": True, "location": "model.onnx.data"} if is_large else {}
        self._onnx.save_model(model, path, **external)


def _ridges(fitted: Fitted, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """The ridge of a new user with 0, 1, 2, ... items, to :data:`LONGEST` or I."""
    assert fitted.bound is not None
    most = min(LONGEST, fitted.n_items)
    lengths = np.arange(most + 1)
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    col_idx = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    matrix = csr_matrix((np.ones(len(col_idx), dtype), col_idx, row_ptr), shape=(most + 1, fitted.n_items))
    terms = fitted.bound.user_terms(matrix, fold_in=True)
    return np.broadcast_to(terms.ridge, most + 1).astype(np.float64)
