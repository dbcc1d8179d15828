"""Writes wals_gpu/_cpu.pyi, the types of the native module, from what the module says of itself.

Run ``python tools/make_stub.py`` after a change of csrc/bindings; a test compares.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import ModuleType

STUB = Path(__file__).resolve().parents[1] / "wals_gpu" / "_cpu.pyi"

#: From the words of pybind11, which differ between its versions, to ours.
WORDS = [
    (r"typing\.SupportsFloat(?: \| typing\.SupportsIndex)?", "float"),
    (r"typing\.Supports(?:Int|Index)(?: \| typing\.SupportsIndex)?", "int"),
    (r"typing\.Annotated\[numpy\.typing\.ArrayLike, numpy\.(\w+)\]", r"NDArray[np.\1]"),
    (r"numpy\.typing\.NDArray\[numpy\.(\w+)\]", r"NDArray[np.\1]"),
    (r"numpy\.ndarray\[numpy\.(\w+)\]", r"NDArray[np.\1]"),
    (r"numpy\.ndarray", "NDArray[Any]"),
    (r"(?:typing\.)?Optional\[(.+?)\](?=[,)]| ->)", r"\1 | None"),
    (r"(?:typing\.)?List\[", "list["),
    (r"\btuple\b(?!\[)", "tuple[Any, ...]"),
]


def type_of(value: object) -> str:
    return "tuple[int, ...]" if isinstance(value, tuple) else type(value).__name__


def stub_of(module: ModuleType) -> str:
    """The text of the stub."""
    lines = [f'"""{module.__doc__}"""', "", "from typing import Any, NamedTuple", "", "import numpy as np"]
    lines += ["from numpy.typing import NDArray"]
    lines += [
        "",
        "class Limits(NamedTuple):",
        '    """The numbers of csrc/common/limits.h, which has their reasons."""',
        "",
    ]
    lines += [f"    {name}: {type_of(value)}" for name, value in module.LIMITS._asdict().items()]
    lines += ["", "LIMITS: Limits"]
    for name in sorted(name for name in dir(module) if not name.startswith("_") and name.lower() != "limits"):
        signature, _, about = (getattr(module, name).__doc__ or "").strip().partition("\n\n")
        for pattern, word in WORDS:
            signature = re.sub(pattern, word, signature)
        head, _, rest = signature.partition("(")
        parameters, _, result = rest.rpartition(") -> ")
        line = f"def {head}({parameters}) -> {result}:"
        if len(line) > 120:
            each = "".join(f"    {parameter},\n" for parameter in re.split(r", (?=\w+: )", parameters))
            line = f"def {head}(\n{each}) -> {result}:"
        lines += [
            "",
            line,
            *textwrap.wrap(f'"""{about.strip()}"""', 115, initial_indent="    ", subsequent_indent="    "),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from wals_gpu import _cpu

    STUB.write_text(stub_of(_cpu), encoding="utf-8")
