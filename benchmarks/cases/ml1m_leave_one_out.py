"""Leave-one-out on MovieLens 1M as in Neural Collaborative Filtering: the published figures of iALS at 64 factors.

    .venv/bin/python benchmarks/cases/ml1m_leave_one_out.py DATA_FOLDER

DATA_FOLDER holds two Parquet files that this project may not distribute (make them from the ml-1m files of the Neural
Collaborative Filtering repository):

- interactions.parquet: user_id, item_id; all 1,000,209 pairs.
- ncf_leave_one_out_test.parquet: user_id, item_id (the user's latest) and negatives, a list of 99 item ids.

The test item is ranked among the 99: its place is 1 + the number of negatives with a strictly higher score. A hit is a
place of at most 10, worth 1 / log2(1 + place) in NDCG@10. Rendle et al. ("Revisiting the Performance of iALS on Item
Recommendation Benchmarks", 2021) report HR@10 .722 and NDCG@10 .445, the mean of 10 runs, with the settings that are
the defaults here. Their lambda* is lambda at nu = 1; at another nu it would have to be scaled so that the ridges keep
their sum. Writes results/ml1m-leave-one-out.json; runs on wals_gpu alone, without the peers.
"""

import argparse
import sys
from pathlib import Path

import _path  # noqa: F401
import numpy as np
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from lib.common import default_threads, rounded, summary, write_result
from wals_gpu import WALS

PUBLISHED = {"HR@10": 0.722, "NDCG@10": 0.445}


def load(folder: Path) -> tuple[csr_matrix, np.ndarray]:
    """Training matrix (U, I) and candidates (U, 100): the test item of each user, then the 99 negatives."""
    pairs = pq.read_table(folder / "interactions.parquet", columns=["user_id", "item_id"])
    test = pq.read_table(folder / "ncf_leave_one_out_test.parquet", columns=["user_id", "item_id", "negatives"])
    user_ids, users = np.unique(pairs["user_id"].to_numpy(), return_inverse=True)
    item_ids, items = np.unique(pairs["item_id"].to_numpy(), return_inverse=True)
    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=(len(user_ids), len(item_ids)))

    negatives = test["negatives"].combine_chunks().flatten().to_numpy().reshape(test.num_rows, -1)
    candidate_ids = np.column_stack([test["item_id"].to_numpy(), negatives])
    candidates = np.searchsorted(item_ids, candidate_ids)
    if not np.array_equal(item_ids[candidates.clip(max=len(item_ids) - 1)], candidate_ids):
        raise SystemExit("the test file has items that interactions.parquet lacks")
    order = np.searchsorted(user_ids, test["user_id"].to_numpy())
    if not np.array_equal(np.sort(order), np.arange(len(user_ids))):
        raise SystemExit("the test file must have one row for each user of interactions.parquet")
    candidates = candidates[np.argsort(order)]

    held_out = csr_matrix((np.ones(len(user_ids)), (np.arange(len(user_ids)), candidates[:, 0])), shape=matrix.shape)
    train = (matrix - matrix.multiply(held_out)).tocsr()
    train.eliminate_zeros()
    return train.astype(np.float32), candidates


def metrics(scores: np.ndarray) -> dict[str, float]:
    """HR@10 and NDCG@10 from the scores (U, 100) of each user's candidates, the test item first."""
    place = 1 + np.count_nonzero(scores[:, 1:] > scores[:, :1], axis=1)
    hit = place <= 10
    return {"HR@10": float(hit.mean()), "NDCG@10": float(np.where(hit, 1 / np.log2(1 + place), 0).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--unobserved-weight", type=float, default=0.3, help="alpha_0 of the paper")
    parser.add_argument("--regularization", type=float, default=0.007, help="lambda* of the paper")
    parser.add_argument("--nu", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=10, help="number of runs")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--quick", action="store_true", help="one run")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 1
    train, candidates = load(args.data_folder)
    args.data_folder = args.data_folder.name  # the result holds none of this machine's paths

    # Ranking by popularity, for comparison.
    popularity = metrics(np.bincount(train.indices, minlength=train.shape[1])[candidates])
    records = []
    for seed in range(args.seeds):
        model = WALS(
            factors=args.factors,
            objective="ials",
            unobserved_weight=args.unobserved_weight,
            regularization=args.regularization,
            nu=args.nu,
            iterations=args.iterations,
            init_scale=0.1,
            compute_loss=False,
            device="cpu",
            num_threads=args.threads,
            random_state=seed,
        )
        model.fit(train)
        accuracy = metrics(np.einsum("ud,ucd->uc", model.user_factors, model.item_factors[candidates]))
        seconds = sum(record.seconds for record in model.history_)
        print(seed, {name: round(value, 4) for name, value in accuracy.items()}, f"{seconds:.2f} s", file=sys.stderr)
        shape = {"shape": [*train.shape, int(train.nnz)], "factors": args.factors, "dtype": "float32"}
        records.append({"seed": seed, **accuracy, "fit_seconds": rounded(seconds), **shape, "threads": args.threads})
    mean = {name: rounded(float(np.mean([record[name] for record in records]))) for name in PUBLISHED}
    seconds = summary([record["fit_seconds"] for record in records])
    more = {"mean": mean, "published": PUBLISHED, "popularity": popularity, "fit_seconds": seconds}
    write_result("ml1m-leave-one-out", args, records, **more)


if __name__ == "__main__":
    main()
