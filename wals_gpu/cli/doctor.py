"""``wals-gpu doctor``: the first thing to look at, and to send along, when something seems wrong."""

from __future__ import annotations

import argparse
from typing import Any

from wals_gpu.cli.installation import describe_installation
from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command

__all__ = ["add", "run"]


def add(commands: Commands) -> None:
    """The command."""
    add_command(commands, "doctor", "show what this installation has and uses: CPU, threads, BLAS, CUDA", run)


def run(args: argparse.Namespace) -> int:
    """Print what is here; 1 where nothing can be computed."""
    info = describe_installation()
    if args.json:
        print_json(info)
    else:
        print(_format(info))
    return 0 if info["native"]["available"] else 1


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
        "CUDA": f"yes, {cuda['devices']} device(s)" if cuda["available"] else f"no: {cuda['why']}",
        "Packages": packages,
        "Not installed": absent or "-",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
