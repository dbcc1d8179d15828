"""What the package is made of: imports, shipped files, docstrings and type hints, traces of a machine."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import wals_gpu

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
PACKAGE = ROOT / "wals_gpu"
HEAVY = {"torch", "transformers", "pandas", "polars", "matplotlib", "sklearn", "IPython", "optuna", "rectools"}
HEAVY |= {"lenskit", "onnx", "psycopg", "qdrant_client", "faiss", "fastapi", "uvicorn", "prometheus_client"}
MODULES = sorted(m.name for m in pkgutil.walk_packages(wals_gpu.__path__, "wals_gpu.") if "._" not in m.name)


def loaded_by(code):
    """Top-level packages in memory after `code`."""
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_import_loads_no_heavy_package():
    loaded = loaded_by("import wals_gpu")
    assert {"wals_gpu", "numpy", "scipy", "pyarrow"} <= loaded
    assert not loaded & HEAVY


def test_work_on_matrices_loads_no_heavy_package():
    fit = "import numpy as np, wals_gpu; model = wals_gpu.WALS(factors=2).fit(np.eye(3))"
    assert not loaded_by(f"{fit}; model.recommend(0); model.fold_in(np.eye(3)); model.similar_items(0)") & HEAVY


def test_every_file_of_the_package_is_shipped():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert fnmatch("wals_gpu.backends", *options["packages"]["find"]["include"])
    patterns = options["package-data"]["wals_gpu"]
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert PACKAGE / "py.typed" in files
    for path in files:
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{path.parent} is no package, so it is not shipped"
        elif path.suffix not in (".so", ".pyd"):
            name = str(path.relative_to(PACKAGE))
            assert any(fnmatch(name, pattern) for pattern in patterns), f"{name} is in no package-data pattern"


def public_of(module):
    """Public functions and classes that a module defines, and public methods and properties of the classes."""
    for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, name)
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            yield f"{module.__name__}.{name}", value
            if getattr(value, "_is_protocol", False):  # documented where it is implemented
                continue
            for method_name, method in vars(value).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                of_bases = (vars(base).get(method_name) for base in value.__mro__[1:])
                if any(getattr(one, "__doc__", None) for one in of_bases):  # documented where it is declared
                    continue
                if inspect.isfunction(method) and not method_name.startswith("_"):
                    yield f"{module.__name__}.{name}.{method_name}", method


def every_public():
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in HEAVY:
                raise
            continue  # tested where that package is installed
        assert module.__doc__, f"{name} has no docstring"
        yield from public_of(module)


def test_everything_public_has_a_docstring():
    found = dict(every_public())
    assert {"wals_gpu.model.wals.WALS.fit", "wals_gpu.objective.presets.Hu", "wals_gpu.errors.DataError"} <= set(found)
    # inspect.getdoc would give a method its base's docstring, a dataclass its signature.
    missing = [n for n, value in found.items() if not value.__doc__ or value.__doc__.startswith(f"{value.__name__}(")]
    assert not missing


def test_everything_public_has_type_hints():
    missing = []
    for name, value in every_public():
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            hints = [p.annotation for p in signature.parameters.values() if p.name not in ("self", "cls")]
            if inspect.Parameter.empty in [*hints, signature.return_annotation]:
                missing.append(name)
    assert not missing


def test_everything_in_all_exists():
    for public in wals_gpu.__all__:
        assert getattr(wals_gpu, public).__doc__, public
    assert set(wals_gpu.__all__) <= set(dir(wals_gpu))


def repository_files():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_file_has_a_path_of_the_machine_it_was_written_on():
    path = re.compile(
        rb"(?<![\w.}/])/(?:" + b"|".join((b"work", b"home", b"root", b"Users", b"tmp/plan")) + rb")(?:/|\b)"
    )
    assert path.search(b"see '/home/" + b"ann/data'") and not path.search(b"src/work/a.py http://a.org/work/")
    found = []
    for file in repository_files():
        if file.is_file() and file != Path(__file__):
            found += [f"{file.relative_to(ROOT)}: {m[0].decode()}" for m in path.finditer(file.read_bytes())]
    assert not found


def test_the_types_of_the_native_module_are_what_it_says():
    from make_stub import STUB, stub_of

    from wals_gpu import _cpu

    assert STUB.read_text(encoding="utf-8") == stub_of(_cpu), "run python tools/make_stub.py"
    # Native functions name and document all that they take, and the stub has no word that only pybind11 knows.
    assert "arg0" not in STUB.read_text() and "typing." not in STUB.read_text().replace("numpy.typing", "")


def test_licences_of_all_dependencies_are_listed():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    for requirement in project["dependencies"]:
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"^\| {name} \| .*(BSD|Apache|MIT|MPL)", page, re.MULTILINE), name


def test_the_citation_is_of_this_version():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"].startswith(project["name"])
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["authors"] == [{"name": "The wals_gpu authors"}] and cited["type"] == "software"


def test_nothing_connects_at_import():
    # LensKit imports urllib3, which opens a socket, and connects it to nothing, to see whether there is IPv6.
    modules = [name for name in MODULES if name != "wals_gpu.compat.lenskit"]
    code = (
        "import socket, sys\n"
        "def refuse(event, args):\n"
        "    if event.startswith('socket.') and event != 'socket.gethostname': sys.exit(f'{event} {args}')\n"
        "sys.addaudithook(refuse)\n"
        f"import importlib\nfor name in {modules!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError: pass\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "imported\n", done.stderr
