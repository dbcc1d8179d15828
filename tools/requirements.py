"""Prints what an extra of the package needs, extras of extras and the package's own dependencies among it, a line each.

``python tools/requirements.py dev``: so that it can be installed while the native module is built.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def requirements(project: dict, extra: str) -> list[str]:
    found = list(project["dependencies"])
    for line in project["optional-dependencies"][extra]:
        inner = re.fullmatch(rf"{project['name']}\[([\w,-]+)\]", line)
        found += [each for name in inner[1].split(",") for each in requirements(project, name)] if inner else [line]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(requirements(tomllib.loads(text)["project"], sys.argv[1])))
