"""What every benchmark needs: a clean process per measurement, machine facts, medians and the JSON writer."""

import argparse
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

BENCHMARKS = Path(__file__).resolve().parents[1]
RESULTS = BENCHMARKS / "results"
# Set on some machines for OpenBLAS's sake; they would choose its kernels for it.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
PACKAGES = (
    "wals_gpu implicit irspack cmfrec faiss-cpu hnswlib usearch pyspark torch transformers sentence-transformers "
    "fastapi uvicorn numpy scipy"
).split()


def standard_arguments(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add --threads, --seed and --quick; `quick` says what a trial run is."""
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=quick)


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that other programs keep busy, over the next `seconds` (Linux; 0 elsewhere).

    OpenMP and BLAS threads that wait for each other suffer from them most, by ten times and more.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0

    def working() -> int:
        user, nice, system, *_ = map(int, stat.read_text().split()[1:5])
        return user + nice + system

    before = working()
    time.sleep(seconds)
    return (working() - before) / os.sysconf("SC_CLK_TCK") / seconds


def default_threads() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LOAD_AT_START = busy_cores()


def run_worker(
    script: str,
    spec: dict | list[str],
    env: dict[str, str] | None = None,
    timeout: float = 3600,
    through: Sequence[str] = (),
) -> dict:
    """Run `script` in a fresh interpreter and return the JSON object it prints last.

    Parameters
    ----------
    script : str
        File in workers/.
    spec : dict or list of str
        A dict is its only argument, in JSON; a list holds its arguments.
    env : dict, optional
        Environment variables to set for this process alone.
    timeout : float, default 3600
        Seconds before the process is ended.
    through : list of str, optional
        What to put between the interpreter and the script, such as ``-m module``.

    Returns
    -------
    dict
        `{"error": last line of stderr}` when the process failed: one system less, not a run lost.
    """
    environment = {k: v for k, v in os.environ.items() if k not in UNSET} | (env or {})
    # a worker finds `lib` as report.py does
    paths = [str(BENCHMARKS), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    arguments = spec if isinstance(spec, list) else [json.dumps(spec)]
    command = [sys.executable, *through, str(BENCHMARKS / "workers" / script), *arguments]
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {timeout:g} s"}
    if process.returncode:
        last_words = process.stderr.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        return {"error": last_words[0]}
    return json.loads(process.stdout.strip().splitlines()[-1])


def interleave(names: list, repeats: int, seed: int):
    """Yield (repeat, name): every name once per repeat, each repeat in its own random order.

    What disturbs the machine for a while then falls on all systems alike.
    """
    order = random.Random(seed)
    for repeat in range(repeats):
        for name in order.sample(names, len(names)):
            yield repeat, name


def summary(values) -> dict:
    """Median, quartiles and count of `values`."""
    values = np.asarray(values, dtype=np.float64)
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high), "n": int(values.size)}


def median_seconds(function, *, at_least: int = 3, seconds: float = 0.3, at_most: int = 50) -> dict:
    """Call `function` once to warm up, then until `seconds` are spent; summary of the seconds per call."""
    function()
    times = []
    while len(times) < at_least or (sum(times) < seconds and len(times) < at_most):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return summary(times)


def reset_peak() -> None:
    """Let `peak_rss_mib` count from now (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, or since `reset_peak`, in MiB (Linux; NaN elsewhere).

    Not getrusage's ru_maxrss: a child process starts with its parent's.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def threadpools() -> list[dict]:
    """What threadpoolctl sees in this process: BLAS and OpenMP libraries, their threads and instruction set."""
    from threadpoolctl import threadpool_info

    keep = ("user_api", "internal_api", "version", "num_threads", "threading_layer", "architecture")
    return [{k: pool[k] for k in keep if pool.get(k)} for pool in threadpool_info()]


def machine() -> dict:
    """Processor, memory and system of this machine, package versions, and the commit of this checkout."""
    facts = {"processor": platform.processor() or platform.machine(), "cores": default_threads()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(
            [part.strip() for part in line.split(":", 1)] for line in cpuinfo.read_text().splitlines() if ":" in line
        )
        facts["processor"] = fields.get("model name", facts["processor"])
        relevant = "avx2 fma avx512f avx512_bf16 avx512_fp16 amx_tile".split()
        facts["instruction_sets"] = [flag for flag in relevant if flag in fields.get("flags", "").split()]
    if hasattr(os, "sysconf"):
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["system"] = f"{platform.system()} {platform.release().split('-')[0]}"
    facts["python"] = platform.python_version()
    facts["load_at_start"] = LOAD_AT_START
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"machine": facts, "versions": versions, "commit": commit_of(BENCHMARKS)}


def commit_of(folder: Path) -> str:
    """Commit of the checkout that `folder` is in, "-dirty" at its end where files differ from it; "" without git."""
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip()


def save_matrix(path, matrix: csr_matrix) -> None:
    """Write a matrix for the workers."""
    np.savez(path, indptr=matrix.indptr, indices=matrix.indices, data=matrix.data, shape=matrix.shape)


def load_matrix(path) -> csr_matrix:
    """Matrix written by `save_matrix`."""
    parts = np.load(path)
    return csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=tuple(parts["shape"]))


def write_result(name: str, args, records: list[dict], **more) -> Path:
    """Write `results/<name>.json`: machine, versions, command line settings and one record per measurement.

    With `--quick` the name ends in "-quick", so that a trial run never takes the place of a real one.
    """
    path = RESULTS / f"{name}{'-quick' if args.quick else ''}.json"
    content = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv),
        **machine(),
        "settings": vars(args),
        **more,
        "records": records,
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(compact_json(content) + "\n")
    print(f"wrote {path}", file=sys.stderr)
    return path


def compact_json(content: dict) -> str:
    """JSON with one line per key, and per element of a list of objects: short, and a change shows as a line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"


def rounded(value: float, digits: int = 4) -> float:
    """`value` to so many significant digits, so that result files stay small."""
    return float(f"{value:.{digits}g}")
