"""Which system ranks best, at what cost: popularity, item-kNN, EASE, implicit, irspack and wals_gpu on the same splits.

    .venv-peers/bin/python benchmarks/cases/bench_ranking.py DATA_FOLDER

Every log is split at random three times (a fifth of the entries is tested), and those with times also by time (three
windows, each a tenth of every user's entries, see lib/ranking.py). Every entry counts once, in every system. Systems
with settings search for `--minutes` in the training part alone, each by its own means (workers/worker_ranking.py), and
are then fitted on all of it; with `--tune-once` the search of the first split of a log serves the others. One evaluator
takes the lists of all; users without a training entry get what is popular from each system.

Each search and each fit is a process of its own, and is written down when it ends: a run that was stopped goes on where
it was, and systems or logs can be added. What is already there is kept, unless `--again` names it. Writes
results/ranking.json, and the metrics of every user beside it, in results/ranking-users/, which git ignores: intervals
are computed from them. Where some are missing, the intervals in the file stay; `--again-fits` brings them back.

    bench_ranking.py DATA_FOLDER --systems "ours tuned" --again    # only these anew; the rest of the file stays
    bench_ranking.py DATA_FOLDER --again-fits                      # seconds anew, with the settings found before
    bench_ranking.py DATA_FOLDER --stop-after 55                   # begins nothing more after 55 minutes

`--target` instead compares `WALS.tune` with many random trials of the same settings: what share of their nDCG on the
test part does it reach, with the settings that it begins with, which come from searches on the same logs, and without
them ("blind")? Where ranking.json has the search of the same split and minutes, it is not made again. Writes
results/ranking-target.json; trials that were made before a run was stopped are kept in results/ranking-users/.
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import _path  # noqa: F401
import numpy as np
from workers.worker_ranking import RANKERS

from lib.common import (
    RESULTS,
    busy_cores,
    commit_of,
    rounded,
    run_worker,
    save_matrix,
    standard_arguments,
    write_result,
)
from lib.ranking import METRICS, SETS, TIMES, WINDOWS, compare, make_split
from lib.tables import ranking_cost_table, ranking_table
from wals_gpu.system import available_memory

OURS = "ours tuned"
PEERS = [name for name in RANKERS if not name.startswith("ours")]
#: Of the memory that is there, what EASE may take: a Gram matrix, and half as much again for the system's own.
SHARE_FOR_EASE = 0.6


class Book:
    """Records in a result file: kept as they come, so that a run can go on where another stopped."""

    def __init__(self, name: str, args) -> None:
        self.name, self.args = name, args
        self.path = RESULTS / f"{name}{'-quick' if args.quick else ''}.json"
        self.users = RESULTS / f"ranking-users{'-quick' if args.quick else ''}"
        self.users.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.records: list[dict] = earlier.get("records", [])
        self.comparisons: list[dict] = earlier.get("comparisons", [])

    def find(self, **key) -> dict | None:
        matches = (record for record in self.records if all(record.get(name) == value for name, value in key.items()))
        return next(matches, None)

    def put(self, key: dict, content: dict) -> None:
        self.drop(lambda record: all(record.get(name) == value for name, value in key.items()))
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit_of(RESULTS),
            "threads": self.args.threads,
            "minutes": self.args.minutes,
        }
        self.records.append(key | content | facts)
        self.write()

    def drop(self, condition) -> None:
        self.records = [record for record in self.records if not condition(record)]

    def write(self) -> Path:
        order = {name: place for place, name in enumerate((*SETS, *RANKERS, "random", "time", "search", "fit"))}
        key = ("set", "kind", "split", "system", "stage")
        self.records.sort(key=lambda record: [order.get(record[name], record[name]) for name in key])
        with contextlib.redirect_stderr(io.StringIO()):  # it says that it wrote, each time
            return write_result(self.name, self.args, self.records, comparisons=self.comparisons)

    def file_of(self, name: str, kind: str, number: int, system: str) -> Path:
        return self.users / f"{name}-{kind}-{number}-{system.replace(' ', '-')}.npz"

    def compare(self) -> None:
        """Intervals of every log and kind whose systems' values are here; the others keep what they have."""
        kept = {(one["set"], one["kind"]): one for one in self.comparisons}
        for name, kind in dict.fromkeys((record["set"], record["kind"]) for record in self.records):
            fits = [r for r in self.records if (r["set"], r["kind"], r["stage"]) == (name, kind, "fit")]
            fits = [record for record in fits if METRICS[0] in record]
            measured = {s: {r["split"] for r in fits if r["system"] == s} for s in RANKERS}
            measured = {system: of_system for system, of_system in measured.items() if of_system}
            # Where a run was stopped within a split, it counts for nobody.
            splits = sorted(set.intersection(*measured.values())) if measured else []
            files = {system: [self.file_of(name, kind, n, system) for n in splits] for system in measured}
            missing = [path.name for paths in files.values() for path in paths if not path.exists()]
            if missing:
                print(f"{name}, {kind}: intervals stay as they are, without {missing[0]} and others", file=sys.stderr)
            if missing or not splits:
                continue
            found = {"set": name, "kind": kind, "splits": splits}
            for metric in METRICS:
                values = {s: [np.load(path)[metric] for path in paths] for s, paths in files.items()}
                found[metric] = compare(values, OURS, PEERS)
            kept[name, kind] = found
        order = {name: place for place, name in enumerate((*SETS, "random", "time"))}
        self.comparisons = sorted(kept.values(), key=lambda one: [order[one["set"]], order[one["kind"]]])
        self.write()


def too_large(system: str, n_items: int) -> str | None:
    """Why a system is not measured on so many items."""
    needed, left = 4 * n_items**2 * 1.5, available_memory()
    if system == "EASE" and left is not None and needed > SHARE_FOR_EASE * left:
        return f"needs {needed / 2**30:.1f} GiB"
    return None


def measure(book: Book, args, name: str, kind: str, number: int, folder: Path, deadline: float) -> None:
    """Everything that is missing for one split."""
    train, test = make_split(name, kind, number, folder)
    systems = random.Random(f"{args.seed} {name} {kind} {number}").sample(args.systems, len(args.systems))
    with tempfile.TemporaryDirectory() as temporary:
        paths = {part: f"{temporary}/{part}.npz" for part in ("train", "test")}
        save_matrix(paths["train"], train)
        save_matrix(paths["test"], test)
        for system in systems:
            key = {"set": name, "kind": kind, "split": number, "system": system, "stage": "fit"}
            values = book.file_of(name, kind, number, system)
            done = book.find(**key)
            if done is not None and "error" not in done:
                continue
            if time.monotonic() > deadline:
                return
            if reason := too_large(system, train.shape[1]):
                book.put(key, {"skipped": reason})
                continue
            ranker = RANKERS[system]
            spec = {"system": system, "threads": args.threads, "seed": args.seed + number, **paths, "out": str(values)}
            environment = {"OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)} | ranker.env
            settings, more = {}, {}
            if ranker.search is not None:
                searched = {**key, "stage": "search", "split": 0 if args.tune_once else number}
                found = book.find(**searched)
                if found is None or "error" in found:
                    if searched["split"] != number:
                        print(f"{name}, {kind}: no settings of {system} from split 0 yet", file=sys.stderr)
                        continue
                    seconds = 60 * args.minutes
                    busy = busy_cores(0.3)
                    found = run_worker(
                        "worker_ranking.py",
                        spec | {"stage": "search", "seconds": seconds},
                        environment,
                        timeout=10 * seconds + 600,
                    )
                    book.put(searched, found | {"busy": rounded(busy, 2)})
                if "error" in found:
                    print(f"{name}, {kind} {number}, {system}: {found['error']}", file=sys.stderr)
                    continue
                settings, more = found["settings"], {"searched_on": searched["split"]}
            busy = busy_cores(0.3)
            result = run_worker(
                "worker_ranking.py", spec | {"stage": "fit", "settings": settings}, environment, timeout=1800
            )
            shape = {"shape": [*train.shape, train.nnz], "tested": test.nnz}
            book.put(key, result | more | shape | {"busy": rounded(busy, 2)})
            print(name, kind, number, system, result.get("error") or result[METRICS[0]], file=sys.stderr, flush=True)


def target(args, folder: Path) -> None:
    """WALS.tune beside the best of many random trials of the same settings, on the first random split of each log."""
    quick = "-quick" if args.quick else ""
    path = RESULTS / f"ranking-target{quick}.json"
    book = Book("ranking", args)
    records = json.loads(path.read_text())["records"] if path.exists() and not args.again else []
    stages = {
        "tune": {"stage": "search", "seconds": 60 * args.minutes},
        "blind": {"stage": "blind", "seconds": 60 * args.minutes},
        "random": {"stage": "random", "trials": args.trials},
    }
    for name in args.sets:
        key = {"set": name, "trials": args.trials, "minutes": args.minutes}
        record = next((one for one in records if key.items() <= one.items()), key)

        def put(way: str, found: dict, record=record) -> None:
            record[way] = found
            best = record.get("random", {}).get(METRICS[0])
            values = {one: record.get(one, {}).get(METRICS[0]) for one in ("tune", "blind")}
            record["share"] = {one: rounded(value / best) for one, value in values.items() if best and value}
            records[:] = [one for one in records if one["set"] != record["set"]] + [record]
            records.sort(key=lambda one: list(SETS).index(one["set"]))
            write_result("ranking-target", args, records)

        if "tune" not in record and (found := searched(book, args, name)):
            put("tune", found)
        missing = [way for way in args.ways if way not in record]
        if not missing:
            continue
        train, test = make_split(name, "random", 0, folder)
        with tempfile.TemporaryDirectory() as temporary:
            paths = {part: f"{temporary}/{part}.npz" for part in ("train", "test")}
            save_matrix(paths["train"], train)
            save_matrix(paths["test"], test)
            spec = {"system": OURS, "threads": args.threads, "seed": args.seed, **paths}
            spec |= {"out": f"{temporary}/users.npz", "diary": str(book.users / f"target-{name}.jsonl")}
            for way in missing:
                search = run_worker("worker_ranking.py", spec | stages[way], timeout=12 * 3600)
                if "error" not in search:
                    settings = {"stage": "fit", "settings": search["settings"]}
                    search |= {METRICS[0]: run_worker("worker_ranking.py", spec | settings)[METRICS[0]]}
                put(way, {key: value for key, value in search.items() if key != "threadpools"})
        print(name, record.get("share"), file=sys.stderr, flush=True)


def searched(book: Book, args, name: str) -> dict | None:
    """What the same search found for the ranking, if it is there: of the same split, minutes and seed."""
    key = {"set": name, "kind": "random", "split": 0, "system": OURS, "minutes": args.minutes}
    search, fit = (book.find(**key, stage=stage) for stage in ("search", "fit"))
    if not search or not fit or "settings" not in search or METRICS[0] not in fit:
        return None
    return {
        "seconds": search["seconds"],
        "settings": search["settings"],
        METRICS[0]: fit[METRICS[0]],
        "of": f"ranking.json, {search['commit']}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--kinds", nargs="+", default=["random", "time"], choices=["random", "time"])
    parser.add_argument("--splits", type=int, default=WINDOWS, help="of each log and kind, 3 at most")
    parser.add_argument("--systems", nargs="+", default=list(RANKERS), choices=list(RANKERS))
    parser.add_argument("--minutes", type=float, default=2.0, help="of each search")
    parser.add_argument("--tune-once", action="store_true", help="search on the first split of each log and kind only")
    parser.add_argument("--again", action="store_true", help="measure what is named anew, searches included")
    parser.add_argument("--again-fits", action="store_true", help="measure fits anew; searches that are there are kept")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="minutes after which to begin no more")
    parser.add_argument("--target", action="store_true", help="WALS.tune beside random trials instead")
    parser.add_argument("--trials", type=int, default=400, help="of --target")
    parser.add_argument("--ways", nargs="+", default=["tune", "blind", "random"], help="some of those of --target")
    standard_arguments(parser, quick="two logs, one split, searches of 6 seconds")
    args = parser.parse_args()
    if not 1 <= args.splits <= WINDOWS:
        parser.error(f"--splits must be from 1 to {WINDOWS}, got {args.splits}")
    if args.quick:
        args.sets, args.splits, args.minutes, args.trials = ["steam-200k", "ml-100k"], 1, 0.1, 4
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    deadline = time.monotonic() + 60 * args.stop_after
    args.stop_after = None if np.isinf(args.stop_after) else args.stop_after  # JSON has no infinity
    if args.target:
        target(args, folder)
        return
    book = Book("ranking", args)

    def named(record):
        return all(record[one] in getattr(args, f"{one}s") for one in ("set", "kind", "system")) and (
            record["split"] < args.splits
        )

    if args.again or args.again_fits:
        book.drop(lambda record: named(record) and (args.again or record["stage"] == "fit"))
    # Split by split through all logs: what is stopped early has all logs, with fewer splits.
    for number in range(args.splits):
        for kind in args.kinds:
            for name in args.sets:
                if (kind == "random" or name in TIMES) and time.monotonic() < deadline:
                    measure(book, args, name, kind, number, folder, deadline)
    book.compare()
    result = json.loads(book.path.read_text())
    print(ranking_table(result), ranking_cost_table(result), sep="\n")


if __name__ == "__main__":
    main()
