"""Programs on several ranks: processes of this machine that find each other by a file."""

import functools
import multiprocessing
import os
import subprocess
import sys
import textwrap
from multiprocessing import forkserver
from pathlib import Path

import pytest

#: Where programs find what tests are made of.
TESTS = Path(__file__).resolve().parents[1] / "distributed"

START = """
import json, os, sys
sys.path.insert(0, sys.argv[6])
from datetime import timedelta
import numpy as np
import torch.distributed as dist
from wals_gpu.distributed import TorchGroup

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{sys.argv[4]}", rank=rank, world_size=size,
                        timeout=timedelta(seconds=float(sys.argv[5])))
group = TorchGroup()
"""


def arguments_of(size: int, folder: Path, timeout: float) -> list[list[str]]:
    """Those of a program, for each rank."""
    meeting = folder / f"meeting-{size}-{os.urandom(4).hex()}"
    return [[str(a) for a in (rank, size, folder, meeting, timeout, TESTS)] for rank in range(size)]


def environment() -> dict[str, str]:
    """One thread each, and the modules of the tests."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def start_ranks(program: str, size: int, folder: Path, timeout: float = 60.0) -> list[subprocess.Popen]:
    """Processes that run `program`, each with its `rank`, the `size`, a `group`, and the `folder` for results."""
    source = START + textwrap.dedent(program)
    return [
        subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )
        for arguments in arguments_of(size, folder, timeout)
    ]  # fmt: skip


@functools.cache
def forks() -> multiprocessing.context.BaseContext:
    """Processes that begin with torch and the package: to import them takes a slow processor 5 s for each rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ranks", "torch.distributed", "wals_gpu.distributed", "wals_gpu.cli.entry"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # which libraries read as they are loaded
        forkserver.ensure_running()
    return context


def run_forked(source: str, arguments: list[str], environ: dict[str, str], output: str) -> None:
    """The program of a rank, in a process made for it; what it prints goes to files."""
    os.environ.clear()
    os.environ.update(environ)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["-c", *arguments]
    exec(compile(source, "<rank>", "exec"), {"__name__": "__main__"})


def run_ranks(program: str, size: int, folder: Path, timeout: float = 60.0) -> list[str]:
    """What each rank printed; a rank that fails is an error with what it wrote."""
    source, every = START + textwrap.dedent(program), arguments_of(size, folder, timeout)
    outputs = [f"{arguments[3]}-{arguments[0]}" for arguments in every]
    processes = [
        forks().Process(target=run_forked, args=(source, arguments, environment(), output))
        for arguments, output in zip(every, outputs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()  # one that waits for ever
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.exitcode == 0, f"rank {rank} of {size}:\n{Path(output + '.err').read_text()}"
    return [Path(output + ".out").read_text() for output in outputs]
