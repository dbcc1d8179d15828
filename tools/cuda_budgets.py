"""What each CUDA kernel takes of a chip, as nvcc and cuobjdump tell: csrc/cuda/budgets.json and its comparison.

``python tools/cuda_budgets.py`` prints what differs from the file, ``--write`` renews it. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"), key=lambda path: -path.with_suffix(".cuh").stat().st_size)
BUDGETS = ROOT / "csrc" / "cuda" / "budgets.json"
RELEASE = "13.0"  # of nvcc: another one allocates other registers
REGISTERS = 65536  # of a processor, of all of them


class Processor(NamedTuple):
    """Warps and blocks at once; bytes of shared memory, and how many of them a block takes beyond what it asked for."""

    warps: int
    blocks: int
    shared: int
    reserved: int = 1 << 10

    @property
    def room(self) -> int:
        """Shared memory that a block can have."""
        return self.shared - self.reserved


#: What csrc/CMakeLists.txt compiles for.
PROCESSORS = {
    "sm_75": Processor(32, 16, 64 << 10, 0),
    "sm_80": Processor(64, 32, 164 << 10),
    "sm_86": Processor(48, 16, 100 << 10),
    "sm_89": Processor(48, 24, 100 << 10),
    "sm_90": Processor(64, 32, 228 << 10),
    "sm_100": Processor(64, 32, 228 << 10),
    "sm_120": Processor(48, 24, 100 << 10),
}

#: {kernel: {architecture: {figure: value}}}. Figures: threads (of a block), registers (of a thread), shared (bytes,
#: static and dynamic), stack and spills (bytes), blocks (on a processor), and counts of instructions in lower case.
Figures = dict[str, dict[str, dict[str, int]]]
NO_MORE = ("registers", "shared", "stack", "spills")
INSTRUCTIONS = ("HMMA", "LDGSTS", "LD", "ST", "LDL", "STL")


class ToolMissing(RuntimeError):
    """No nvcc, or none of the right release, or no cuobjdump."""


def find_tools() -> tuple[str, Path]:
    """nvcc and cuobjdump."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise ToolMissing("no nvcc in PATH")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if f"release {RELEASE}," not in version:
        raise ToolMissing(f"budgets are for nvcc {RELEASE}, {nvcc} says: {version.strip().splitlines()[-1:]}")
    found = {}
    for tool in ("cuobjdump", "nvdisasm"):
        try:
            files = metadata.files(f"nvidia-cuda-{tool}") or []
        except metadata.PackageNotFoundError:
            raise ToolMissing(f"the package nvidia-cuda-{tool} is not installed") from None
        found[tool] = next(Path(file.locate()) for file in files if file.name == tool)
    return nvcc, found["cuobjdump"]


def run(command: list[str | Path]) -> str:
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])  # cuobjdump looks for nvdisasm there
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def blocks_per_processor(architecture: str, threads: int, registers: int, shared: int) -> int:
    """As cuda_occupancy.h counts: registers go to warps by 256 in each quarter of a processor, shared memory by 128, on
    7.5 by 256."""
    processor, unit = PROCESSORS[architecture], 256 if architecture == "sm_75" else 128
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // 4 // per_warp * 4 // warps
    by_shared = processor.shared // max(-(-(shared + processor.reserved) // unit) * unit, 1)
    return min(processor.blocks, processor.warps // warps, by_registers, by_shared)


def parse_ptxas(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """Registers, static shared memory, stack and spills by (architecture, mangled name)."""
    found = {}
    entry = r"Compiling entry function '(\w+)' for '(\w+)'(.*?)Used (\d+) registers([^\n]*)"
    for name, architecture, properties, registers, rest in re.findall(entry, log, re.DOTALL):
        stack, *spills = map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", properties))
        static = re.search(r"(\d+) bytes smem", rest)
        found[architecture, name] = {
            "registers": int(registers),
            "shared": int(static[1]) if static else 0,
            "stack": stack,
            "spills": sum(spills),
        }
    return found


def parse_threads(elf: str) -> dict[tuple[str, str], int]:
    """The launch bound by (architecture, mangled name)."""
    found, architecture, name = {}, "", ""
    for line in elf.splitlines():
        if at := re.match(r"arch = (\w+)", line):
            architecture = at[1]
        elif at := re.match(r"\.nv\.info\.(\w+)", line):
            name = at[1]
        elif "EIATTR_MAX_THREADS" in line:
            found[architecture, name] = 0  # the value is two lines below
        elif (at := re.match(r"\s*Value:\s+(0x\w+) (0x\w+) (0x\w+)", line)) and found.get((architecture, name)) == 0:
            x, y, z = (int(n, 16) for n in at.groups())
            found[architecture, name] = x * y * z
    return found


def parse_sass(sass: str) -> Counter:
    """Instructions by (architecture, mangled name, mnemonic without its suffixes)."""
    counts, architecture, name = Counter(), "", ""
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
    for line in sass.splitlines():
        if at := instruction.match(line):
            counts[architecture, name, at[1]] += 1
        elif line.startswith("arch ="):
            architecture = line.split()[-1]
        elif "Function :" in line:
            name = line.split()[-1]
    return counts


def readable(names: set[str]) -> dict[str, str]:
    """solve_dual_kernel<Shape<64, 4>> for what the linker sees."""
    ordered = sorted(names)
    lines = run(["c++filt", *ordered]).splitlines()
    short = [re.sub(r"^void |wals::(?:cuda::)?|\(.*", "", line).replace("> >", ">>") for line in lines]
    return dict(zip(ordered, short, strict=True))


def measure(folder: Path) -> Figures:
    """Compile every source for all architectures, two sources at a time; what an architecture has no room for is left
    out. The front end, half the work, goes over a source twice: no kernel has anything newer than 8.0."""
    nvcc, cuobjdump = find_tools()
    flags = ["-std=c++17", "-O3", f"-I{ROOT / 'csrc' / 'cuda'}"]  # as csrc/CMakeLists.txt has them
    codes = [f"-gencode=arch=compute_{min(int(a[3:]), 80)},code={a}" for a in PROCESSORS]

    def compile_one(source: Path) -> tuple[str, str, Counter]:
        binary = folder / f"{source.stem}.fatbin"
        log = run([nvcc, *flags, *codes, "-fatbin", "-Xptxas=-v", source, "-o", binary])
        return log, run([cuobjdump, "-elf", binary]), parse_sass(run([cuobjdump, "-sass", binary]))

    def dynamic_memory() -> dict[str, int]:
        program = folder / "dynamic_memory"
        run([nvcc, *flags, "-arch=sm_80", ROOT / "tools" / "dynamic_memory.cu", "-o", program])
        lines = (line.rpartition(" ") for line in run([program]).splitlines())
        return {kernel: int(size) for kernel, _, size in lines}

    with ThreadPoolExecutor(2) as pool:
        compiled = [pool.submit(compile_one, source) for source in SOURCES]
        dynamic = pool.submit(dynamic_memory).result()
    result: Figures = {}
    for log, elf, counts in (job.result() for job in compiled):
        if "warning" in log:
            raise RuntimeError(f"nvcc warns:\n{log}")
        figures, threads = parse_ptxas(log), parse_threads(elf)
        names = readable({name for _, name in figures})
        for (architecture, name), found in sorted(figures.items(), key=lambda each: [*PROCESSORS].index(each[0][0])):
            found["shared"] += dynamic.get(names[name], 0)
            if found["shared"] > PROCESSORS[architecture].room:
                continue
            found = {"threads": threads[architecture, name], **found}
            of_block = (found[key] for key in ("threads", "registers", "shared"))
            found["blocks"] = blocks_per_processor(architecture, *of_block)
            found |= {word.lower(): counts[architecture, name, word] for word in INSTRUCTIONS}
            result.setdefault(names[name], {})[architecture] = found
    if (
        unknown := dynamic.keys()
        - result.keys()
        - {  # shapes that only some kernels are built for
            *(f"solve_{form}_kernel<Shape<256, 8>>" for form in ("primal", "dual")),
            *(f"{kernel}_kernel<Shape<256, 12>>" for kernel in ("solve_subspace", "subspace_slices", "subspace_join")),
        }
    ):
        raise RuntimeError(f"tools/dynamic_memory.cu names kernels that there are not: {sorted(unknown)}")
    return result


def read() -> Figures:
    return json.loads(BUDGETS.read_text(encoding="utf-8"))


def write(figures: Figures) -> None:
    """One line for each kernel and architecture."""
    kernels = (
        f"  {json.dumps(kernel)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in figures[kernel].items())
        + "\n  }"
        for kernel in sorted(figures)
    )
    BUDGETS.write_text("{\n" + ",\n".join(kernels) + "\n}\n", encoding="utf-8")


def excesses(found: Figures, budgets: Figures) -> list[str]:
    """What a kernel takes beyond its budget. Less than that is no excess; ``--write`` then lowers the budget."""
    result = [f"{kernel}: in one of kernels and budgets alone" for kernel in sorted(found.keys() ^ budgets.keys())]
    for kernel in sorted(found.keys() & budgets.keys()):
        for architecture in PROCESSORS:
            is_, most = (side[kernel].get(architecture, {}) for side in (found, budgets))
            if is_.keys() != most.keys():
                result.append(f"{kernel}, {architecture}: figures {sorted(is_)}, budgets {sorted(most)}")
                continue
            result += [
                f"{kernel}, {architecture}: {key} {is_[key]}, budget {most[key]}"
                for key in most
                if (key in NO_MORE and is_[key] > most[key])
                or (key == "blocks" and is_[key] < most[key])
                or (key == "threads" and is_[key] != most[key])
            ]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"renew {BUDGETS.relative_to(ROOT)}")
    write_them = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    if write_them:
        write(found)
        return 0
    budgets = read()
    for kernel in sorted(found):
        for architecture, each in found[kernel].items():
            before = budgets.get(kernel, {}).get(architecture, {})
            if changed := [f"{key} {before.get(key)} -> {each[key]}" for key in each if each[key] != before.get(key)]:
                print(f"{kernel}, {architecture}: {', '.join(changed)}")
    above = excesses(found, budgets)
    print("\n".join(above) or "no kernel is above its budget")
    return bool(above)


if __name__ == "__main__":
    sys.exit(main())
