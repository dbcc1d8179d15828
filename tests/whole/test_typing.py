"""What the package's types are worth to a program that is checked against them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

PROGRAM = Path(__file__).parents[1] / "support" / "typed_program.py"


def test_a_program_checked_by_mypy(tmp_path):
    """With the package as an installed one: its own errors are not reported (make lint finds those)."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [*command, "--follow-imports=silent", str(PROGRAM)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text(PROGRAM.read_text().replace("  # type: ignore", "  # "))
    done = subprocess.run([*command, "--follow-imports=silent", str(wrong)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("error:") == 18, done.stdout


def test_an_editable_install_is_a_path_that_type_checkers_follow(tmp_path):
    """Not a hook of setuptools, which only a running Python follows. Of the package's own configuration."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools is not installed, or too old to build")
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "README.md", "LICENSE", "wals_gpu/__init__.py", "wals_gpu/py.typed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((root / name).read_bytes())
    for page in (root / "wals_gpu" / "datasets").glob("*.md"):  # licences, which the configuration names
        (tmp_path / "wals_gpu" / "datasets").mkdir(exist_ok=True)
        (tmp_path / "wals_gpu" / "datasets" / page.name).write_bytes(page.read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_editable('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".pth")]
        assert Path(archive.read(path).decode().strip()) == tmp_path.resolve()
        assert not [name for name in archive.namelist() if name.endswith("finder.py")]


def test_the_program_runs():
    subprocess.run([sys.executable, "-c", PROGRAM.read_text()], check=True)
