"""``wals-gpu fit --publish-if``: a fit that becomes the model in use only if it is good enough."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wals_gpu.cli.options import number, positive
from wals_gpu.cli.output import in_words, print_json, say
from wals_gpu.data.matching import in_kinds_of
from wals_gpu.data.tables import format_table
from wals_gpu.evaluation.times import seconds_of
from wals_gpu.model.wals import WALS
from wals_gpu.publishing.condition import Condition
from wals_gpu.publishing.folder import BusyError, ModelFolder
from wals_gpu.publishing.run import Outcome, publish

if TYPE_CHECKING:
    from wals_gpu.distributed.group import Group

__all__ = ["BUSY", "REFUSED", "add", "check", "run"]

#: Exit statuses, for whoever schedules runs.
REFUSED, BUSY = 3, 4

_OF_RUNS = ("holdout", "no_refit", "keep", "keep_refused", "wait")


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of nightly runs, to those of fit."""
    group = parser.add_argument_group(
        "nightly runs: --out is a folder of models then, whose 'current' leads to the one in use"
    )
    group.add_argument(
        "--publish-if", metavar="CONDITION", type=_condition,
        help="replace the model in use if this holds, such as 'ndcg@20 >= yesterday - 0.002 and ndcg@20 > popularity'; "
        "or always",
    )  # fmt: skip
    group.add_argument(
        "--holdout", metavar="SHARE", type=number,
        help="of what is new since yesterday's model, to measure both with (default 0.5; without one 0.1 of all)",
    )  # fmt: skip
    group.add_argument(
        "--no-refit", action="store_true", help="publish the model that was measured, which has not seen the held-out"
    )
    group.add_argument("--keep", metavar="N", type=positive, help="models to keep in the folder (default 7)")
    group.add_argument("--keep-refused", action="store_true", help="keep a model that is refused, as refused-...")
    group.add_argument(
        "--wait", metavar="SPAN", help="for another run in this folder to end, such as 30min (default: not at all)"
    )


def _condition(text: str) -> Condition:
    try:
        return Condition.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check(args: argparse.Namespace) -> None:
    """What can be refused before any work."""
    if args.publish_if is None:
        given = [f"--{name.replace('_', '-')}" for name in _OF_RUNS if getattr(args, name)]
        if given:
            raise ValueError(f"{' and '.join(given)} {'needs' if len(given) == 1 else 'need'} --publish-if")
        return
    if args.checkpoint_dir is not None:
        raise ValueError("--checkpoint-dir cannot be used with --publish-if, whose run fits twice: start it again")
    if isinstance(args.validation, str):
        raise ValueError("--validation must be a share with --publish-if, as the data are divided before the fit")
    if args.keep is not None and args.keep < 2:
        raise ValueError(f"--keep must be at least 2, the model in use and the one before it, got {args.keep}")
    if args.holdout is not None and not 0 < args.holdout < 1:
        raise ValueError(f"--holdout must lie between 0 and 1, got {args.holdout:g}")
    if args.wait is not None:
        seconds_of("--wait", args.wait)
    try:
        ModelFolder(args.out)
    except ValueError as error:
        raise ValueError(f"--out: {error}") from None


def run(
    args: argparse.Namespace,
    model: WALS,
    read: Callable[[], Any],
    options: dict[str, Any],
    finish: Callable[[WALS], None],
    is_stopped: Callable[[], bool],
    group: Group | None = None,
) -> int:
    """Fit, measure, publish or refuse; 3 where the model is refused, 4 where another run is on.

    With a group, every rank makes the call and has the same status; rank 0 speaks for all.
    """
    given: dict[str, Any] = {
        "warm_start": args.warm_start,
        "holdout": args.holdout,
        "refit": not args.no_refit,
        "keep": args.keep or 7,
        "keep_refused": args.keep_refused,
        "wait": 0.0 if args.wait is None else seconds_of("--wait", args.wait),
        "dtype": args.save_dtype,
        "fit": options,
        "finish": finish,
        "stopped": is_stopped,
        "show_progress": not args.quiet,
    }
    is_speaker = group is None or group.rank == 0
    try:
        if group is None:
            of_texts = None if model.item_prior is None else model.item_prior.ids
            outcome = publish(model, lambda: in_kinds_of(read(), None, of_texts), args.out, args.publish_if, **given)
        else:
            from wals_gpu.distributed.publish import publish_sharded

            outcome = publish_sharded(model, read, group, args.out, args.publish_if, **given)
        status = 0 if outcome.published else REFUSED
        if is_speaker:
            if args.json:
                print_json(outcome.record)
            else:
                _print(outcome, args.out)
    except BusyError as error:
        status = BUSY
        if is_speaker:
            say(f"error: {error}; --wait 30min would wait for it to end")
    if group is not None:
        if sys.stdout is not None:
            sys.stdout.flush()
        group.barrier()  # launchers end all ranks when the first one of them ends with a status
    return status


def _print(outcome: Outcome, folder: Path) -> None:
    record = outcome.record
    data = record["data"]
    print(in_words(data["users"], data["items"], data["entries"]))
    if "metrics" in record:
        held_out = record["held_out"]
        print(
            f"{held_out['entries']:,} of {held_out['new']:,} new entries held out by {held_out['by']}; measured on "
            f"{held_out['measured_entries']:,} entries of {held_out['measured_users']:,} users\n"
        )
        names = [name for name in ("candidate", "yesterday", "popularity", "difference") if name in _first(record)]
        rows = [[metric, *(_shown(of[name]) for name in names)] for metric, of in record["metrics"].items()]
        print(format_table(["metric", *names], rows) + "\n[in brackets: 95 % interval, bootstrap over users]\n")
    if "changed" in record.get("churn", {}):
        found = record["churn"]
        print(
            f"of the first {found['k']} of a user, {found['changed']:.1%} are new; rank-biased overlap "
            f"{found['overlap']:.3f} ({found['users']:,} users)"
        )
    print(f"{record['decision']}: {outcome.reason}")
    if outcome.published:
        print(f"{folder / 'current'} is {outcome.name} now")
    else:
        kept = f"; this one is in {folder / record['kept']}" if "kept" in record else ""
        print(f"{folder / 'current'} stays as it was{kept}")


def _first(record: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = next(iter(record["metrics"].values()))
    return first


def _shown(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"
