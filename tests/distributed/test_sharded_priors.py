"""Fits with priors of items and users on several ranks: the bits of one process, whatever the number of ranks."""

import json
from itertools import pairwise

import numpy as np
import pytest
from ranks import run_ranks
from test_sharded_fit import SHAPE, make_matrix, make_model
from text_models import TEXTS, tiny_roberta

from wals_gpu import WALS, DataError, Interactions
from wals_gpu.cli.entry import main
from wals_gpu.data.ids import Ids
from wals_gpu.distributed import fit_sharded
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.priors.rows import Piece, add_pieces, sum_of_pieces

pytest.importorskip("torch", reason="ranks need torch")
pytest.importorskip("transformers", reason="texts need transformers")


def features_of(side):
    """Features of all rows: the same in each process."""
    rng = np.random.default_rng(side)
    return rng.normal(size=(SHAPE[side], 9 - 4 * side)).astype(np.float32) + 3


def make_priors(name):
    """Settings of a model; items have features by id in "texts", and in no order."""
    from wals_gpu.text import Whitening

    users, items = features_of(0), features_of(1)
    rng = np.random.default_rng(5)
    if name == "both":
        strengths = rng.uniform(0.5, 2, len(users))
        return {"user_prior": LinearPrior(users, strength=strengths), "item_prior": LinearPrior(items, shrinkage=0.3)}
    if name == "hybrid":
        order = rng.permutation(len(items))
        mixed = (order * 5, items[order])
        return {"item_prior": LinearPrior(mixed, relative_strength=0.5, votes="equal"), "solver": "cg"}
    if name == "learned":
        learned = LinearPrior(users, learn="empirical_bayes", strength=1.5, whitening=Whitening())
        return {"user_prior": learned, "objective": "ials", "solver": "subspace", "factors": 33, "block_size": 16}
    curved = LinearPrior(items, cold="regression", kernel=0.5, landmarks=40)
    return {"item_prior": curved, "objective": "google_wals", "solver": "cholesky"}


NAMES = ("both", "hybrid", "learned", "curved")


def modes_of(name, size):
    """How factors travel in the fits of so many ranks."""
    if name == "both":
        return ("all", "halo")
    return ("auto",) if size in {"hybrid": (2,), "learned": (2, 4), "curved": (4,)}[name] else ()


def make_data(name):
    """Rows at the end of both sides have no entries; "hybrid" has ids."""
    matrix = make_matrix(n=25_000)
    matrix.data[(matrix.indices > 3050) & (matrix.indices % 2 == 0)] = 0
    matrix.eliminate_zeros()
    if name != "hybrid":
        return matrix
    return Interactions(matrix, Ids(np.arange(SHAPE[0]) * 3, "user"), Ids(np.arange(SHAPE[1]) * 5, "item"))


PROGRAM = """
from test_sharded_priors import NAMES, features_of, learned_by, make_data, make_priors, modes_of
from test_sharded_fit import make_model
from wals_gpu.distributed import fit_sharded
from wals_gpu.priors.linear import FittedPrior, LinearPrior

def fit_all(group):
    for name in NAMES:
        for mode in modes_of(name, group.size):
            model = fit_sharded(make_model(**make_priors(name)), make_data(name), group, mode=mode)
            prior = model.local.user_prior_
            np.savez(f"{folder}/{name}-{mode}-{rank}-of-{group.size}.npz", users=model.local.user_factors,
                     items=model.local.item_factors, losses=[r.loss for r in model.history], **learned_by(model.local),
                     strengths=[[r.user_strength or 0, r.item_strength or 0] for r in model.history],
                     means=np.empty((0, 1)) if prior is None else prior.mean)

def fit_until(group, iteration):
    def stop(record):
        if record.iteration == iteration:
            raise RuntimeError("the power is gone")
    return fit_sharded(make_model(**make_priors("both"), **MORE), make_data("both"), group, validation=0.1,
                       patience=3, checkpoint_dir=folder + "/checkpoint", resume=True,
                       callback=stop if rank == group.size - 1 else None)

def attempt(name, call):
    try:
        call()
        said.append([name, None, None])
    except Exception as error:
        said.append([name, type(error).__name__, str(error)])

said, items, matrix = [], features_of(1), make_data("both")
groups = {n: dist.new_group(range(n)) for n in (2, 3, 4)}
for n, process_group in groups.items():
    if rank < n:
        fit_all(TorchGroup(process_group))
if rank < 3:
    attempt("stopped", lambda: fit_until(TorchGroup(groups[3]), 2))
if rank < 2:
    two = TorchGroup(groups[2])
    fit_until(two, 99).save(folder + "/model")

    def fit(prior, data=matrix, **settings):
        return fit_sharded(make_model(item_prior=prior, **settings), data, two)

    attempt("other", lambda: fit(LinearPrior(items + rank)))
    attempt("short", lambda: fit(LinearPrior(items[:-1])))
    attempt("missing", lambda: fit(LinearPrior((np.arange(len(items) - 1) * 5, items[1:])), make_data("hybrid")))
    attempt("ridge", lambda: fit(LinearPrior(items), objective="explicit", regularization=0.0))
    if rank == 1:
        def fails(*args):
            raise MemoryError("none left")
        FittedPrior.features_of_fit, real = fails, FittedPrior.features_of_fit
    attempt("memory", lambda: fit(LinearPrior(items)))
    if rank == 1:
        FittedPrior.features_of_fit = real
os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4"}  # as torchrun does
from wals_gpu.cli.entry import main
assert main([folder if text == "FOLDER" else text.replace("FOLDER/", folder + "/") for text in COMMAND]) == 0
print(json.dumps(said))
"""

MORE = {"iterations": 5, "neighbors": 6, "popularity_exponent": "auto"}
COMMAND = [
    "fit", "FOLDER/plays.csv", "--out", "FOLDER/of-ranks", "--items", "FOLDER/items.csv", "--encoder", "FOLDER/tiny",
    "--factors", "8", "--iterations", "2", "--threads", "1", "--seed", "3", "--quiet", "--json",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where four processes, and the first two and three of them, left their results; and the errors of each."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_roberta(folder / "tiny", layers=1, positions=140)
    rng = np.random.default_rng(0)
    pairs = {(f"u{user}", item) for user, item in rng.integers(0, (2500, 35), (9000, 2)).tolist()}
    (folder / "plays.csv").write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in sorted(pairs)))
    rows = (f'{item},"{TEXTS[item % 7]}, {item}"\n' for item in range(40))  # nobody has the last five
    (folder / "items.csv").write_text("item_id,title\n" + "".join(rows))
    outs = run_ranks(f"COMMAND, MORE = {COMMAND!r}, {MORE!r}\n" + PROGRAM, 4, folder)
    return folder, [json.loads(out.splitlines()[-1]) for out in outs]


def learned_by(model):
    """What the fit learned for its priors, of the items' with their means."""
    found = {}
    for side in ("user", "item"):
        fitted = getattr(model, f"{side}_prior_")
        if fitted is not None:
            arrays, _ = fitted.to_arrays(side)
            found |= {name: array for name, array in arrays.items() if side == "item" or "mean" not in name}
            found.pop("user/strength", None)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_ranks_changes_no_bit(run, name):
    model = make_model(**make_priors(name)).fit(make_data(name))
    strengths = [[r.user_strength or 0, r.item_strength or 0] for r in model.history_]
    for size in (2, 3, 4):
        for mode in modes_of(name, size):
            parts = [dict(np.load(run[0] / f"{name}-{mode}-{rank}-of-{size}.npz")) for rank in range(size)]
            users = np.concatenate([part.pop("users") for part in parts])
            np.testing.assert_array_equal(users, model.user_factors)
            means = np.concatenate([part.pop("means") for part in parts])
            if model.user_prior_ is not None:
                np.testing.assert_array_equal(means, model.user_prior_.mean)
            for part in parts:
                np.testing.assert_array_equal(part.pop("items"), model.item_factors)
                np.testing.assert_allclose(part.pop("losses"), [r.loss for r in model.history_], rtol=1e-12)
                np.testing.assert_array_equal(part.pop("strengths"), strengths)
                want = learned_by(model)
                assert part.keys() == want.keys()
                for key, array in want.items():
                    np.testing.assert_array_equal(part[key], array, err_msg=f"{name} {key}")


def test_a_fit_with_priors_goes_on_with_other_ranks_and_is_saved_and_read(run):
    """As one process, which was not interrupted: validated, saved in parts, read as a whole and in part."""
    folder, said = run
    assert all(errors[0][:2] == ["stopped", "DistributedError"] for errors in said[:3])
    whole = make_model(**make_priors("both"), **MORE).fit(make_data("both"), validation=0.1, patience=3)
    model, some = WALS.load(folder / "model"), WALS.load(folder / "model", users=slice(1000, 4000))
    np.testing.assert_array_equal(model.user_factors, whole.user_factors)
    np.testing.assert_array_equal(model.item_factors, whole.item_factors)
    assert [r.validation for r in model.history_] == [r.validation for r in whole.history_]
    for got, want in ((model.user_prior_, whole.user_prior_), (model.item_prior_, whole.item_prior_)):
        np.testing.assert_array_equal(got.mean, want.mean)
    assert model.popularity_exponent_ == whole.popularity_exponent_ != 0
    np.testing.assert_array_equal(model.fitted.calibration.counts, whole.fitted.calibration.counts)
    assert whole.fitted.neighbors.weights.nnz > 10_000
    for name in ("data", "indices", "indptr"):
        got, want = (getattr(one.fitted.neighbors.weights, name) for one in (model, whole))
        np.testing.assert_array_equal(got, want)
    strength = whole.user_prior_.prior.strength
    np.testing.assert_array_equal(model.user_prior_.prior.strength, strength)
    np.testing.assert_array_equal(some.user_prior_.mean, whole.user_prior_.mean[1000:4000])
    np.testing.assert_array_equal(some.user_prior_.prior.strength, strength[1000:4000])
    for one in (model, some, whole):
        one.add_items(features_of(1)[:3] + 0.5)
    np.testing.assert_array_equal(model.item_factors, whole.item_factors)
    unmet = np.flatnonzero(np.diff(whole.fitted.seen.tocsc().indptr) == 0)
    assert len(unmet) > 20 and np.abs(whole.item_factors[unmet]).max() > 1e-3
    np.testing.assert_array_equal(model.recommend([0, 4990], 200).ids, whole.recommend([0, 4990], 200).ids)
    np.testing.assert_array_equal(some.recommend([0], 9).ids, whole.recommend([1000], 9).ids)


def test_an_error_of_a_prior_on_one_rank_is_one_of_all(run):
    said = run[1]
    assert said[0] == said[1]
    errors = {name: (kind, text) for name, kind, text in said[0]}
    assert errors["other"][0] == "DistributedError" and "item_prior" in errors["other"][1]
    assert errors["short"][0] == "DataError"
    assert "embeddings of item_prior must have one row for each of the 3100 items" in errors["short"][1]
    assert errors["missing"][0] == "DataError" and "such as 15495" in errors["missing"][1]
    assert errors["ridge"][0] == "ValueError" and "strength must be given" in errors["ridge"][1]
    assert errors["memory"] == ("MemoryError", "rank 1: the prior of items: none left")


def test_the_command_fits_texts_on_ranks(run, one_torch_thread):
    """With the items that nobody has; as one process, whose torch has one thread as that of the ranks has."""
    folder = run[0]
    command = [str(folder / text.removeprefix("FOLDER/")) if "FOLDER" in text else text for text in COMMAND]
    command[3] = str(folder / "of-one")
    assert main(command) == 0
    models = [WALS.load(folder / name) for name in ("of-one", "of-ranks")]
    assert models[0].n_items == 40 and models[0].item_prior_.prior.votes == "equal"
    for name in ("user_factors", "item_factors", "item_ids", "user_ids"):
        np.testing.assert_array_equal(*(getattr(model, name) for model in models), err_msg=name)
    assert models[1].item_prior_.prior.encoder is not None


@pytest.mark.parametrize(("n", "cuts"), [(1, [1]), (11, [3, 3, 8]), (64, [1, 63]), (37, [0, 13, 32]), (9, [8])])
def test_sums_of_pieces_do_not_depend_on_who_has_them(n, cuts):
    """Numbers of very different size: another order of additions is another sum."""
    values = np.random.default_rng(n).normal(size=n) * 10.0 ** np.random.default_rng(n).integers(-8, 8, n)

    def pieces(first, last):
        return add_pieces([], [Piece(0, chunk, values[chunk]) for chunk in range(first, last)])

    joined, ends = [], [0, *cuts, n]
    for first, last in pairwise(ends):
        add_pieces(joined, pieces(first, last))
    assert sum_of_pieces(joined) == sum_of_pieces(pieces(0, n))

    def in_pairs(first, level):
        half = 1 << (level - 1) if level else 0
        if level == 0 or first + half >= n:
            return values[first] if level == 0 else in_pairs(first, level - 1)
        return in_pairs(first, level - 1) + in_pairs(first + half, level - 1)

    assert sum_of_pieces(joined) == in_pairs(0, (n - 1).bit_length())


def test_embeddings_of_other_ids_are_refused():
    prior = LinearPrior({"a": [1.0, 2.0]})
    with pytest.raises(DataError, match="item_prior has string ids, the interactions have integers"):
        fit_sharded(make_model(item_prior=prior), make_data("hybrid"))
