"""``wals-gpu doctor``: the first thing to look at, and to send along, when something seems wrong."""

from __future__ import annotations

import argparse
from typing import Any

from wals_gpu.backends.devices import device_index
from wals_gpu.cli.installation import check_gpu, describe_installation
from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  wals-gpu doctor
  wals-gpu doctor --gpu
  wals-gpu doctor --gpu cuda:1
"""


def add(commands: Commands) -> None:
    """The command."""
    parser = add_command(
        commands, "doctor", "show what this installation has and uses: CPU, threads, BLAS, CUDA", run, EXAMPLES
    )
    parser.add_argument(
        "--gpu", nargs="?", const="cuda", metavar="cuda:N",
        help="compare a CUDA device (default: the current one) with the CPU, kernel by kernel, and time both",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print what is here; 1 where nothing can be computed, or with --gpu not on the device."""
    if args.gpu is not None and args.gpu != "cuda" and device_index(args.gpu) is None:
        raise ValueError(f"--gpu must be cuda, cuda:0, ..., or stand alone; got {args.gpu!r}")
    info = describe_installation()
    if args.gpu:
        info["cuda"]["self_check"] = check_gpu(args.gpu, print if not args.json else lambda _: None)
    if args.json:
        print_json(info)
    else:
        print(_format(info))
    is_well = info["native"]["available"] and (not args.gpu or info["cuda"]["self_check"]["passed"])
    return 0 if is_well else 1


def _format(info: dict[str, Any]) -> str:
    """The same as lines for people."""
    cpu, native, blas, cuda = info["cpu"], info["native"], info["blas"], info["cuda"]
    quota = "" if cpu["quota"] is None else f", limited to {cpu['quota']:g} by the container"
    if native["available"]:
        others = [isa for isa in native["available_isas"] if isa != native["isa"]]
        native_text = f"uses {native['isa']}" + (f" (also there: {', '.join(others)})" if others else "")
    else:
        native_text = f"NOT AVAILABLE: {native['why']}"
    if blas["pools"] is None:
        pools = "install threadpoolctl to see what is loaded and its threads"
    else:
        pools = (
            "; ".join(f"{p['library']} {p['version'] or ''}, {p['threads']} threads" for p in blas["pools"]) or "none"
        )
    note = "" if cuda["note"] is None else f"; {cuda['note']}"
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items() if version)
    absent = ", ".join(name for name, version in info["packages"].items() if not version)
    lines = {
        "wals_gpu": info["wals_gpu"] or "unknown version (not installed)",
        "Python": info["python"],
        "Platform": info["platform"],
        "CPU": cpu["model"],
        "Threads": f"{cpu['usable']} usable of {cpu['cores']} CPUs{quota}",
        "Native code": native_text,
        "NumPy's BLAS": blas["numpy"],
        "BLAS loaded": pools,
        "CUDA": (f"yes, {cuda['devices']} device(s)" if cuda["available"] else f"no: {cuda['why']}") + note,
        "Packages": packages,
        "Not installed": absent or "-",
    }
    if "self_check" in cuda:
        lines |= _lines_of_check(cuda["self_check"])
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _lines_of_check(check: dict[str, Any]) -> dict[str, str]:
    """What the check of the device found, by a name for each line."""
    if check["device"] is None:
        return {"Self-check": f"NOT RUN: {check['why']}"}
    lines = {
        "Self-check": f"{'passed' if check['passed'] else 'FAILED'} on {check['device']}, {check['seconds']:.1f} s"
    }
    for number, failure in enumerate(check["failures"], 1):
        lines[f"Failure {number}"] = failure
    if check["speedup"] is not None:
        lines["A large fit"] = f"{check['speedup']:.1f} times as fast there as on the CPU"
    lines["Kept in"] = check["file"]
    return lines
