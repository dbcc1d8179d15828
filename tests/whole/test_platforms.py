"""What only one system has stands in one file of each language, and the rest does without it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Modules that Windows does not have.
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
#: Names that Linux alone has, or that Windows or macOS lack.
NAMES = {
    "os": r"sched_\w+|fork|forkpty|register_at_fork|O_(?!RDONLY|WRONLY|RDWR|CREAT|EXCL|TRUNC|APPEND)\w+|"
    r"(get|set)\w*[ug]id|killpg|setsid|posix_\w+|pread\w*|pwrite\w*|memfd_create|eventfd\w*|f?statvfs|mkfifo|mknod|sysconf|getloadavg|nice|"
    r"wait\w*|chown|lockf|splice|copy_file_range|sendfile|name|uname",
    "signal": r"SIG(?!INT|TERM|ABRT|FPE|ILL|SEGV)[A-Z]\w+|pthread_\w+|setitimer|alarm|pause|sigwait\w*",
    "sys": "platform|getwindowsversion",
    "platform": "system|processor|machine|libc_ver|freedesktop_os_release",
    "ctypes": "CDLL|WinDLL|cdll",
    "mmap": "MAP_.*|PROT_.*|MADV_.*",
}  # fmt: skip
PATHS = re.compile(r"/(proc|sys|dev|run)/|lib\w+\.so|\.dylib|\.dll")
NATIVE = re.compile(
    r"__linux__|__APPLE__|_WIN32|_MSC_VER|__unix__|<(sys/\w+|unistd|dlfcn|pthread|sched|windows)(\.h)?>|"
    r"\b(syscall|madvise|mmap|munmap|mprotect|sched_\w+|pthread_\w+|dlopen|fork)\("
)


def found_in(text):
    """Lines of Python that use what only one system has."""
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    words = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and {alias.name.split(".")[0] for alias in node.names} & MODULES:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            names = NAMES.get(node.module or "", "(?!)")
            if node.module in MODULES or any(re.fullmatch(names, alias.name) for alias in node.names):
                yield node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if re.fullmatch(NAMES.get(node.value.id, "(?!)"), node.attr):
                yield node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words:
            if PATHS.search(node.value):
                yield node.lineno


def test_python_asks_for_the_system_in_one_file():
    found = {}
    for path in sorted((ROOT / "wals_gpu").rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        if lines := sorted(set(found_in(text))):
            found[name] = [f"{line}: {text.splitlines()[line - 1].strip()}" for line in lines]
    assert len(found.pop("wals_gpu/system.py")) > 10  # the search finds what there is
    assert not found


@pytest.mark.parametrize(
    "text",
    ["import fcntl", "def f():\n    import resource", "from os import fork", "import os\nos.sched_getaffinity(0)",
     "import os\nos.open('x', os.O_NONBLOCK)", "open('/proc/meminfo')", "import ctypes\nctypes.CDLL('x')",
     "import signal\nsignal.SIGKILL", "import sys\nsys.platform == 'linux'", "f'/sys/fs/{name}'"],
)  # fmt: skip
def test_what_is_planted_is_found(text):
    assert list(found_in(text))


def test_native_code_asks_for_the_system_in_one_file():
    sources = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    found = {path.relative_to(ROOT).as_posix() for path in sources if NATIVE.search(path.read_text("utf-8"))}
    assert found == {"csrc/common/platform.h"}


WITHOUT = """
import importlib.metadata, io, os, pathlib, sys
import numpy as np, pyarrow.parquet, safetensors.numpy, scipy.sparse, scipy.linalg, threadpoolctl, tqdm  # as they like
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "register_at_fork", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
real = open
def no_proc(file, *args, **kwargs):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(file)
    return real(file, *args, **kwargs)
io.open = no_proc
from wals_gpu import WALS
from wals_gpu.data.stored import write_stored
from wals_gpu.system import available_memory, cpu_model, cpu_quota, nvidia_driver_version, usable_cpus
from wals_gpu.text.cache import EmbeddingStore
import wals_gpu.cli.entry
assert usable_cpus() == os.cpu_count() and available_memory() is cpu_quota() is nvidia_driver_version() is None
assert cpu_model()
folder = pathlib.Path(sys.argv[1])
likes = (np.random.default_rng(0).random((30, 20)) < 0.3).astype(np.float32)
model = WALS(4, iterations=2).fit(write_stored(folder / "stored", likes))
model.save(folder / "model")
model.save(folder / "model")  # in the place of the first
EmbeddingStore(folder / "texts", {"encoder": "none"}).add(["a"], np.ones((1, 3), np.float32))
again = WALS.load(folder / "model")
np.testing.assert_array_equal(model.recommend([0], 3).ids, again.recommend([0], 3).ids)
sys.exit(wals_gpu.cli.entry.main(["doctor"]))
"""


def test_a_system_that_has_none_of_it_fits_saves_and_answers(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
