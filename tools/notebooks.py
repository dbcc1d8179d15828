"""Run the notebooks of examples/, and keep what they show.

    python tools/notebooks.py                             # all, each in a kernel of its own; outputs go into the files
    python tools/notebooks.py examples/04_production.ipynb
    python tools/notebooks.py --cells                     # their code alone, one after the other in this process

Each runs in a folder of its own that is removed afterwards. A file keeps a digest of the code its outputs came from, so
that a test finds outputs of other code.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: dict[str, Any]) -> str:
    """Of all code, in order: what outputs depend on."""
    return hashlib.sha256("\0".join(code_of(notebook)).encode()).hexdigest()


def run_cells(path: Path) -> None:
    """Run the code as a kernel would: each cell in one namespace, its last expression shown."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_of(read(path)), 1):
        tree = ast.parse(source, f"{path.name}, cell {number}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}, cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"{path.name}, cell {number}", "eval"), namespace)
            getattr(value, "_repr_html_", value.__repr__)()


def run_and_keep(path: Path, folder: str) -> None:
    """Run in a kernel and write the outputs into the file."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    options = Config({"KernelManager": {"transport": "ipc"}})  # no port is opened
    NotebookClient(
        notebook, config=options, timeout=300, resources={"metadata": {"path": folder}}, record_timing=False
    ).execute()
    kept = json.loads(nbformat.writes(notebook))
    kept["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "outputs_of": digest(kept),
    }
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(EXAMPLES.glob("*.ipynb")))
    parser.add_argument("--cells", action="store_true", help="run the code in this process and write nothing")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.notebooks]
    if args.cells:
        os.environ["MPLBACKEND"] = "agg"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(ROOT))
    for path in paths:
        start, back = time.perf_counter(), os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                run_cells(path) if args.cells else run_and_keep(path, folder)
            finally:
                os.chdir(back)
        print(f"{path.name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
