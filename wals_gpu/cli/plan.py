"""``wals-gpu plan``: what a fit takes on one machine and on several, without any data."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from wals_gpu.cli.options import number, positive
from wals_gpu.cli.output import bytes_in_words, print_json, wrapped
from wals_gpu.cli.parser import Commands, add_command

if TYPE_CHECKING:
    from wals_gpu.distributed.plan import FitCost

__all__ = ["add", "run"]

EPILOG = """\
examples:
  wals-gpu plan --users 40e6 --items 1e4 --entries 5e8 --factors 128 --ranks 8 --bandwidth 25Gb
  wals-gpu plan --users 1e6 --items 1e5 --entries 1e8 --solver cg --item-features 768

The rate of arithmetic is measured on this machine, for a second, unless --rate says it:
in multiply-adds a second of a thread. Seconds are a model, without the latency of the
network and the wait for the slowest rank.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "plan", "what a fit takes, on one machine and on several", run, EPILOG)
    parser.add_argument("--users", metavar="U", type=_count, required=True, help="such as 40e6")
    parser.add_argument("--items", metavar="I", type=_count, required=True)
    parser.add_argument("--entries", metavar="Z", type=_count, required=True, help="different pairs of user and item")
    parser.add_argument("--factors", metavar="D", type=positive, default=128, help="default 128")
    parser.add_argument("--solver", choices=["auto", "cholesky", "cg", "subspace"], default="auto")
    parser.add_argument("--ranks", metavar="N", type=positive, default=8, help="machines (default 8)")
    parser.add_argument(
        "--threads", metavar="T", type=positive, help="of each machine (default: processors of this one)"
    )
    parser.add_argument(
        "--bandwidth", metavar="BITS", type=_bandwidth, default=10e9,
        help="bits a second between them, such as 25Gb (default 10Gb)",
    )  # fmt: skip
    for side in ("user", "item"):
        parser.add_argument(
            f"--{side}-features", metavar="E", type=_count, default=0,
            help=f"numbers in the embedding of each {side}, for a prior (default none)",
        )  # fmt: skip
    parser.add_argument("--iterations", metavar="N", type=positive, default=10, help="of a fit (default 10)")
    parser.add_argument("--rate", metavar="X", type=number, help="multiply-adds a second of one thread, such as 40e9")


def run(args: argparse.Namespace) -> None:
    """Print both."""
    # Imported here: `wals-gpu doctor` must run where the native module does not.
    from wals_gpu.distributed.plan import fit_cost, measured_rate
    from wals_gpu.system import usable_cpus

    rate = measured_rate(args.factors, args.solver) if args.rate is None else args.rate
    threads = args.threads or usable_cpus()
    given: dict[str, Any] = {"solver": args.solver, "threads": threads, "bandwidth": args.bandwidth, "rate": rate}
    given["features"] = (args.user_features, args.item_features)
    sizes = args.users, args.items, args.entries, args.factors
    one, many = fit_cost(*sizes, 1, **given), fit_cost(*sizes, args.ranks, **given)
    if args.json:
        print_json({"rate": rate, "threads": threads, "one": one.to_dict(), "ranks": many.to_dict()})
        return
    print(_table(one, many, args.iterations))
    billions, gigabits = f"{rate / 1e9:.3g}", f"{args.bandwidth / 1e9:g}"
    print(f"\n{threads} threads a machine at {billions} billion multiply-adds a second, {gigabits} Gb/s")
    print(wrapped(_verdict(one, many)))


def _table(one: FitCost, many: FitCost, iterations: int) -> str:
    lines = [("", "one machine", f"each of {many.ranks}")]
    for name, text in (
        ("entries", "interactions"),
        ("coefficients", "coefficients, at most"),
        ("factors", "own factors"),
        ("table", "factors of the other side"),
        ("working", "working memory"),
        ("priors", "priors, at most"),
        ("memory", "memory, together"),
        ("sent", "sent in an iteration"),
    ):
        if name != "priors" or one.priors:
            lines.append((text, bytes_in_words(getattr(one, name)), bytes_in_words(getattr(many, name))))
    for name, text in (("arithmetic", "arithmetic of an iteration"), ("network", "network"), ("seconds", "together")):
        lines.append((text, _seconds(getattr(one, name)), _seconds(getattr(many, name))))
    lines.append((f"a fit of {iterations}", _seconds(one.seconds * iterations), _seconds(many.seconds * iterations)))
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{name:<{width}}  {a:>12}  {b:>12}" for name, a, b in lines)


def _verdict(one: FitCost, many: FitCost) -> str:
    if many.seconds >= one.seconds:
        return (
            f"One machine is faster, if it has {bytes_in_words(one.memory)}: what {many.ranks} save of its arithmetic, "
            "the network takes. More machines are for data that do not fit, or a faster network."
        )
    gain = one.seconds / many.seconds
    return (
        f"{many.ranks} machines are {gain:.1f} times as fast as one, of which a share of {gain / many.ranks:.0%} is "
        f"used; one would need {bytes_in_words(one.memory)}."
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"


def _count(text: str) -> int:
    """A whole number, also as 40e6."""
    value = number(text)
    if value < 1 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, such as 40e6, got {text!r}")
    return int(value)


def _bandwidth(text: str) -> float:
    """Bits a second, such as 25Gb, 100Mb or 1e10."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*(?:([MG])b(?:it|ps|/s|it/s)?)?", text.strip(), re.IGNORECASE)
    try:
        value = float(match[1]) * {"m": 1e6, "g": 1e9, None: 1.0}[match[2] and match[2].lower()] if match else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be bits a second above 0, such as 25Gb or 1e10, got {text!r}")
    return value
