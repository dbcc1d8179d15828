"""What tests wait for, done beside the tests that do not: compilers, and commands that take long.

``pytest.mark.waits_for(name, ...)`` on a test says what it needs. When tests have been collected, conftest.py starts
what they wait for, and puts those tests last; :func:`result` waits. It is done one after the other in a process of its
own: what a test changes in its environment does not reach it, and no thread of it is there when a test forks.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **options) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout}")


# What there is to do. Each gets a folder that is its own, and returns what JSON can hold.


def emulator(_folder: Path) -> str:
    """The folder with the modules that run the CUDA kernels on the CPU, up to date with the sources."""
    import pybind11

    place = ROOT / "build" / f"cuda_emulator-{sys.implementation.cache_tag}"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # against other runs of the tests in this checkout
        run(
            "cmake", "-S", ROOT / "tools" / "cuda_emulator", "-B", place, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        )  # fmt: skip
        run("cmake", "--build", place)
    return str(place)


def kernels(folder: Path) -> dict:
    """Figures of all CUDA kernels as nvcc compiles them: tools/cuda_budgets.py."""
    spec = importlib.util.spec_from_file_location("cuda_budgets", ROOT / "tools" / "cuda_budgets.py")
    cuda_budgets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cuda_budgets)
    return cuda_budgets.measure(folder)


class PtxRun(NamedTuple):
    """PTX for compute_`architecture`, launched as on a card of capability `card`, with the tensor cores of `chip`; all
    cases, or those alone whose kernels use these."""

    architecture: int
    card: int
    chip: str
    tensor_cores_alone: bool


#: For the architectures that csrc/CMakeLists.txt makes all code from; make ptx has others.
PTX_RUNS = {
    "compute_80 on an A100, as coarse as a V100": PtxRun(80, 80, "v100", False),
    "compute_80 on an H100": PtxRun(80, 90, "h100", True),
    "compute_80 on an RTX 3060": PtxRun(80, 86, "a100", True),
    "compute_75 on a T4": PtxRun(75, 75, "t4", True),
}
if os.environ.get("WALS_GPU_PTX") == "all":  # make ptx
    PTX_RUNS = {
        f"compute_{ptx} on sm_{card}, {chip}": PtxRun(ptx, card, chip, False)
        for ptx, card in ((75, 75), (80, 80), (80, 86), (80, 100), (90, 90), (100, 100), (120, 120))
        for chip in ("v100", "t4", "a100", "h100", "exact")
    }


def ptx(folder: Path) -> dict:
    """What nvcc made of the CUDA kernels, and what came of running it on small cases: tests/support/ptx_cases.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    from ptx.launches import compile_sources, find_nvcc

    nvcc, module = find_nvcc(), next(Path(emulator(folder)).glob("_emulated.*.so"))
    if nvcc is None:
        return {}
    sources, files, runs = sorted((ROOT / "csrc" / "cuda").glob("*.cu")), {}, {}
    program = ROOT / "tests" / "support" / "ptx_cases.py"
    for architecture in sorted({each.architecture for each in PTX_RUNS.values()}):
        files[architecture] = compile_sources(nvcc, sources, architecture, folder)
    for name, each in PTX_RUNS.items():
        arguments = [program, module, each.card, each.chip, *files[each.architecture]]
        options = ["--tensor-cores"] if each.tensor_cores_alone else []
        done = python(folder, *map(str, arguments), *options)
        if done["status"]:
            raise RuntimeError(done["stderr"])
        runs[name] = json.loads(done["stdout"])
    return {"folder": str(folder), "runs": runs}


def outcome(*command: str | Path, **options) -> dict:
    """How a program ended, and what it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def sanitized(sanitizers: str, *sources: str, definitions: tuple[str, ...] = ()) -> Callable[[Path], dict]:
    """Builds and runs a native program, which ends with an error where a sanitizer finds something."""

    def work(folder: Path) -> dict:
        compiler = [os.environ.get("CXX", "c++"), "-std=c++17", "-pthread", "-O1", "-g1", "-ffp-contract=fast"]
        options = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *(f"-D{one}" for one in definitions)]
        run(*compiler, *options, *(ROOT / source for source in sources), "-o", folder / "program")
        return outcome(folder / "program", folder / "results") | {"results": str(folder / "results")}

    return work


# The kernels of one instruction set, and several threads; make sanitize looks at all of them.
NATIVE = (
    "tests/support/native_threads.cpp",
    *(f"csrc/cpu/{name}.cpp" for name in ("kernels", "drivers", "neighbors", "dispatch")),
)
BASELINE = ("WALS_ISA=isa_baseline", "WALS_VECTOR_BYTES=16", "WALS_ROWS_PER_TILE=4")


def aarch64(folder: Path) -> dict:
    """The same program as the build has it, for another processor, which qemu-user stands for; nothing without them."""
    compiler, qemu = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if compiler is None or qemu is None:
        return {}
    options = ["-std=c++17", "-pthread", "-static", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Werror"]
    sources = [ROOT / source for source in NATIVE]
    run(compiler, *options, *(f"-D{one}" for one in BASELINE), *sources, "-o", folder / "program")
    return outcome(qemu, folder / "program", folder / "results") | {"results": str(folder / "results")}


def python(folder: Path, *arguments: str) -> dict:
    """A program that uses the package; threads of torch that wait for each other would take what tests need."""
    return outcome(sys.executable, *arguments, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})


def demo(folder: Path) -> dict:
    made = python(folder, "-m", "wals_gpu", "demo", "--json", "--html", "demo.html")
    return made | {"html": str(folder / "demo.html")}


def site(folder: Path) -> dict:
    """The site as make docs makes it: where it is, and what Sphinx said."""
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--no-color"]
    made = python(
        folder, "-m", "sphinx", "-c", str(ROOT / "docs"), *options, "-d", str(folder / "doctrees"), str(ROOT), "html"
    )
    return made | {"folder": str(folder / "html")}


def notebooks(folder: Path) -> dict:
    return python(folder, str(ROOT / "tools" / "notebooks.py"), "--cells")


def soak(folder: Path) -> dict:
    """One minute of random use, whose memory and threads are those of no other test."""
    seconds = float(os.environ.get("WALS_SOAK_SECONDS", 60))
    return python(folder, "-c", f"import json; from soak import soak; print(json.dumps(soak.run({seconds}, seed=0)))")


WORK: dict[str, Callable[[Path], object]] = {
    "demo": demo,
    "emulator": emulator,
    "kernels": kernels,
    "ptx": ptx,
    "site": site,
    "notebooks": notebooks,
    "parallel, thread": sanitized("thread", "tests/support/native_parallel.cpp"),
    "native, thread": sanitized("thread", *NATIVE, definitions=BASELINE),
    "native, address,undefined": sanitized("address,undefined", *NATIVE, definitions=BASELINE),
    "native, aarch64": aarch64,
    "soak": soak,
}


# Beside the tests


class Running:
    """The process that does it, and where it puts results."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="wals_gpu-tests-"))
        command = [sys.executable, __file__, str(self.folder)]
        # What tests import is what programs import: the checkout, or an installed package without it.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        # A group of its own, so that what it started ends with it.
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True)

    def tell_its_end(self) -> None:
        """To processes that wait for results and did not start it; in a thread, so not of a process that runs tests."""
        write(self.folder / ENDED, str(self.process.wait()))

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


ORDER, ENDED = "order", "ended"
_running: list[Running] = []
_ordered: list[tuple[Path, list[str]]] = []


def write(file: Path, text: str) -> None:
    """All of it at once, as others wait for the file."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with contextlib.suppress(FileNotFoundError):  # the folder went with the tests
        part.write_text(text)
        part.rename(file)


def share() -> str:
    """Begin in a process that starts several with tests; gives the folder that each of them has to name."""
    _running.append(Running())
    threading.Thread(target=_running[-1].tell_its_end, daemon=True).start()
    return str(_running[-1].folder)


def start(names: list[str], folder: str | None = None) -> None:
    """Begin, or say what there is to do for several processes with tests, which all say the same."""
    if not names:
        return
    if folder is None:
        _running.append(Running())
        folder = str(_running[-1].folder)
    _ordered.append((Path(folder), names))
    write(Path(folder, ORDER), json.dumps(names))


def status(folder: Path) -> str | None:
    """With which the process that works in a folder has ended."""
    if (folder / ENDED).exists():
        return (folder / ENDED).read_text()
    ended = [each.process.poll() for each in _running if each.folder == folder]
    return str(ended[0]) if ended and ended[0] is not None else None


def stop() -> None:
    while _running:
        _running.pop().stop()


def result(name: str):
    """What was made; the test fails with the words of what could not make it."""
    found = next((folder for folder, names in _ordered if name in names), None)
    if found is None:
        start([name])
        found = _ordered[-1][0]
    file = found / f"{name}.json"
    while not file.exists():
        if (ended := status(found)) is not None and not file.exists():
            raise RuntimeError(f"the process beside the tests ended with status {ended}")
        time.sleep(0.02)
    made = json.loads(file.read_text())
    if "error" in made:
        pytest.fail(made["error"], pytrace=False)
    return made["made"]


def main(folder: Path) -> None:
    tests = os.getppid()
    while not (folder / ORDER).exists():
        if os.getppid() != tests:  # they were killed while they were collected
            return
        time.sleep(0.02)
    for name in json.loads((folder / ORDER).read_text()):
        try:
            (folder / name).mkdir()
            done = {"made": WORK[name](folder / name)}
        except Exception as error:
            text = str(error) if isinstance(error, RuntimeError) else traceback.format_exc()
            done = {"error": text}
        write(folder / f"{name}.json", json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
