"""PTX text as kernels: parameters with their places, shared arrays, and instructions split into operands.

What nvcc writes is read, not all of PTX: no functions (nvcc inlines ours), no local memory, no tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["BYTES", "Fault", "Instruction", "Kernel", "Parameter", "Unsupported", "parse"]


class Fault(Exception):
    """A kernel did what it must not; the text names it, the instruction, its lines in PTX and source, and a thread."""


class Unsupported(Exception):
    """PTX that the interpreter does not know."""


#: Bytes of the types of PTX.
BYTES = {f"{kind}{bits}": bits // 8 for kind in "usbf" for bits in (8, 16, 32, 64)} | {"f16x2": 4, "pred": 1}


@dataclass(frozen=True)
class Parameter:
    """Of a kernel; offset, size and alignment in bytes, as the driver copies them."""

    name: str
    offset: int
    size: int
    alignment: int


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes
    ----------
    words : tuple of str
        Its name between the dots: ("add", "s32").
    operands : tuple of str
        Text of each; vectors keep their braces, addresses their brackets.
    guard : tuple of (str, bool) or None
        Predicate, and whether it is negated.
    line : int
        In the PTX.
    source : str
        "file:line" in the CUDA source, of the innermost function; "" where nvcc ran without -lineinfo.
    """

    words: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    line: int
    source: str

    def __str__(self) -> str:
        guard = f"@{'!' if self.guard[1] else ''}{self.guard[0]} " if self.guard else ""
        where = f"PTX line {self.line}" + (f", {self.source}" if self.source else "")
        return f"`{guard}{'.'.join(self.words)} {', '.join(self.operands)}` ({where})"


@dataclass
class Kernel:
    """One entry point. Offsets of static shared arrays are from the first of them; `labels` count instructions."""

    name: str
    parameters: list[Parameter]
    threads: int | None = None  # of a block, at most
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)  # type of each
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    dynamic: frozenset[str] = frozenset()  # names of dynamic shared memory


ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)([^{]*)\{", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?")
SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
DYNAMIC = re.compile(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]")
LABEL = re.compile(r"([$%\w]+):(?!:)")
COMMA = re.compile(r",\s*(?![^{}]*\})(?![^\[\]]*\])")
GUARD = re.compile(r"@(!?)(%?\w+)\s+")
LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)


def _body(text: str, start: int) -> int:
    """Where the block that was opened before `start` ends."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    raise Unsupported("PTX that ends within a kernel")


def _parameters(text: str) -> list[Parameter]:
    result, end = [], 0
    for align, kind, name, count in PARAMETER.findall(text):
        size = BYTES[kind] * int(count or 1)
        alignment = int(align or BYTES[kind])
        offset = -(-end // alignment) * alignment
        result.append(Parameter(name, offset, size, alignment))
        end = offset + size
    return result


def parse(text: str) -> dict[str, Kernel]:
    """All kernels of a module by their (mangled) names.

    Raises
    ------
    Unsupported
        Of what is not known, the text names the line.
    """
    text = re.sub(r"//[^\n]*", "", text)
    files = {number: path.rsplit("/", 1)[-1] for number, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)}
    dynamic = frozenset(DYNAMIC.findall(text))
    kernels = {}
    for entry in ENTRY.finditer(text):
        name, parameters, attributes = entry.groups()
        kernel = kernels[name] = Kernel(name, _parameters(parameters), dynamic=dynamic)
        if bound := re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", attributes):
            x, y, z = (int(n or 1) for n in bound.groups())
            kernel.threads = x * y * z
        _read_body(kernel, text, entry.end(), _body(text, entry.end()), files)
    return kernels


def _read_body(kernel: Kernel, text: str, at: int, end: int, files: dict[str, str]) -> None:
    line = text.count("\n", 0, at) + 1
    source, scopes = "", [dict[str, str]()]  # of names that a scope declares anew, their unique ones
    space = re.compile(r"\s*")
    while True:
        start = space.match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", at, start)
        at = start
        if at >= end:
            return
        if text[at] in "{}":
            scopes.append({}) if text[at] == "{" else scopes.pop()
            at += 1
        elif label := LABEL.match(text, at):
            kernel.labels[label[1]] = len(kernel.instructions)
            at = label.end()
        elif location := LOCATION.match(text, at):
            source = f"{files.get(location[1], '?')}:{location[2]}"
            at = text.index("\n", at)
        else:
            stop = text.index(";", at)
            _statement(kernel, text[at:stop], line, source, scopes)
            line += text.count("\n", at, stop)
            at = stop + 1


def _statement(kernel: Kernel, text: str, line: int, source: str, scopes: list[dict[str, str]]) -> None:
    if found := REGISTERS.match(text):
        kind, names = found.groups()
        for name in names.split(","):
            if numbered := re.fullmatch(r"\s*(%\w+?)<(\d+)>\s*", name):
                kernel.registers |= {f"{numbered[1]}{i}": kind for i in range(int(numbered[2]))}
                continue
            plain, unique = name.strip(), f"{name.strip()}@{line}"
            scopes[-1][plain] = unique
            kernel.registers[unique] = kind
    elif found := SHARED.match(text):
        align, kind, name, count = found.groups()
        kernel.shared_bytes = -(-kernel.shared_bytes // int(align)) * int(align)
        kernel.shared[name] = kernel.shared_bytes
        kernel.shared_bytes += BYTES[kind] * int(count or 1)
    elif not text.strip() or text.startswith(".pragma"):
        pass
    elif text.startswith("."):
        raise Unsupported(f"{text.split()[0]} in {kernel.name}, PTX line {line}: `{text}`")
    else:
        guard = None
        if found := GUARD.match(text):
            guard, text = (found[2], found[1] == "!"), text[found.end() :]
        name, _, rest = " ".join(text.split()).partition(" ")
        operands = [operand.strip() for operand in COMMA.split(rest)] if rest else []
        for scope in scopes:
            for plain, unique in scope.items():
                pattern = rf"(?<![\w%]){re.escape(plain)}(?!\w)"
                operands = [re.sub(pattern, unique, operand) for operand in operands]
        kernel.instructions.append(Instruction(tuple(name.split(".")), tuple(operands), guard, line, source))
