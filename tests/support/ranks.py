"""Programs on several ranks: processes of this machine that find each other by a file."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

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


def start_ranks(program: str, size: int, folder: Path, timeout: float = 60.0) -> list[subprocess.Popen]:
    """Processes that run `program`, each with its `rank`, the `size`, a `group`, and the `folder` for results."""
    meeting = folder / f"meeting-{size}-{os.urandom(4).hex()}"
    source = START + textwrap.dedent(program)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", source, *map(str, (rank, size, folder, meeting, timeout, TESTS))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(size)
    ]  # fmt: skip


def run_ranks(program: str, size: int, folder: Path, **options) -> list[str]:
    """What each rank printed; a rank that fails is an error with what it wrote."""
    processes = start_ranks(program, size, folder, **options)
    ends = [process.communicate(timeout=300) for process in processes]
    for rank, (process, (_, errors)) in enumerate(zip(processes, ends, strict=True)):
        assert process.returncode == 0, f"rank {rank} of {size}:\n{errors}"
    return [out for out, _ in ends]
