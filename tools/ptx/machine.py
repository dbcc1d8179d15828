"""Runs a launch: all threads of some blocks at once, a register being an array with a number for each thread.

Threads that are at one instruction form a group and go on together; a branch may split it, and groups that come to one
place join. Of several groups the one whose place comes first in the PTX goes on, so that loops are left together; now and
then another one does, so that threads which wait for each other in a loop get on. Warps matter where PTX says so: shuffles,
votes, matches, ldmatrix and mma are done when all lanes of the mask have come.

Stricter than a chip: all threads of a block meet at one barrier, none has left before; a lane that is named in a mask
comes, and lanes read only from those that did; asynchronous copies land at the wait that covers them, no sooner, until
then their destination is NaN; none is left at the end. Threads of a block run in step between barriers, so a barrier that is
missing is seen only where a later one would have been needed: races are what the emulator's checked build is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptx.memory import PARAMETERS, RESERVED, SHARED, BadAccess, Memory, Segment
from ptx.operations import COMPARE, COMPUTED, DIRECT, convert, dtype_of
from ptx.parser import BYTES, Fault, Instruction, Kernel, Unsupported
from ptx.tensor import Layout, Model, multiply

__all__ = ["Launch", "run"]

LANES = 4096  # threads at a time, more where a block has more: their registers stay in a processor's caches
MOST_STEPS = 20_000_000
ALL = np.uint32(0xFFFFFFFF)
NOTHING = {"membar", "fence", "nanosleep", "prefetch", "prefetchu", "griddepcontrol", "discard", "applypriority", "nop"}


@dataclass(frozen=True)
class Launch:
    """grid and block as (x, y, z); shared_bytes: dynamic; parameters: bytes as the driver copies them."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes


class Group:
    """Threads at one instruction. lanes: their numbers, or all; where: for NumPy's functions."""

    __slots__ = ("_whole", "count", "lanes", "mask", "where")

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        everyone = self.count == len(mask)
        self.where: NDArray[np.bool_] | bool = True if everyone else mask
        self.lanes: slice | NDArray[np.int64] = slice(None) if everyone else np.flatnonzero(mask)
        self._whole: bool | None = True if everyone else None

    @property
    def whole(self) -> bool:
        """Whether it consists of whole warps."""
        if self._whole is None:
            each = self.mask.reshape(-1, 32).sum(1)
            self._whole = bool(((each == 0) | (each == 32)).all())
        return self._whole

    @property
    def warps(self) -> slice | NDArray[np.int64]:
        return self.lanes if isinstance(self.lanes, slice) else self.lanes[::32] // 32


Step = Callable[[Group], None]


@dataclass
class Run:
    """Instructions that run one after the other, then perhaps one that decides who goes on where."""

    code: list[Instruction]
    end: Instruction | None
    mask: str | None  # of the collective that it begins with
    steps: list[tuple[Instruction, Step]] | None = None  # made when it is first come to


@dataclass
class Copies:
    """A cp.async under way: of these threads, in their groups of that number."""

    mask: NDArray[np.bool_]
    group: NDArray[np.int64]
    to: NDArray[np.int64]
    source: NDArray[np.int64]
    valid: NDArray[np.int64]
    size: int


def run(launch: Launch, segments: Iterable[Segment], model: Model) -> int:
    """All blocks of a launch; what it writes is in the segments. Returns how many instructions groups went through.

    Raises
    ------
    Fault
    Unsupported
    """
    kernel = launch.kernel
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    padded = -(-threads // 32) * 32
    n_blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    at_once = max(1, min(n_blocks, LANES // padded))
    if kernel.threads is not None and threads > kernel.threads:
        raise Fault(f"{kernel.name} is launched with {threads} threads, compiled for {kernel.threads}")
    segments, steps = list(segments), 0
    with np.errstate(all="ignore"):
        for first in range(0, n_blocks, at_once):
            numbers = np.arange(first, min(first + at_once, n_blocks))
            steps += _Blocks(launch, segments, model, numbers, threads, padded).run()
    return steps


class _Blocks:
    """Some blocks of a launch. `numbers`: which; threads beyond a block's own fill up its last warp and never run."""

    def __init__(
        self, launch: Launch, segments: list[Segment], model: Model, numbers: NDArray, threads: int, padded: int
    ) -> None:
        self.launch, self.kernel, self.model = launch, launch.kernel, model
        self.n = len(numbers) * padded
        self.block_of = np.repeat(np.arange(len(numbers)), padded)
        self.thread = np.tile(np.arange(padded), len(numbers))
        self.real = self.thread < threads
        self.lane = self.thread % 32
        self.dynamic = -(-self.kernel.shared_bytes // 128) * 128
        shared = self.dynamic + launch.shared_bytes if launch.shared_bytes else self.kernel.shared_bytes
        parameters = np.frombuffer(launch.parameters.ljust(-(-len(launch.parameters) // 16) * 16, b"\0"), np.uint8)
        self.memory = Memory(segments, parameters.copy(), self.block_of, shared)
        self.special = self._special(numbers)
        self.registers: dict[str, NDArray] = {}
        self.copies: list[Copies] = []
        self.committed = np.zeros(self.n, np.int64)
        self.exited = ~self.real
        self.barrier = np.full(self.n, -1)  # where a thread goes on when its barrier is complete
        self.barrier_of = np.zeros(self.n, np.int64)  # number of that barrier
        self.vote = np.zeros(self.n, bool)
        self.arrived: dict[int, NDArray[np.int64]] = {}
        self.running: dict[int, NDArray[np.bool_]] = {}  # who can go on, by the number of the run of instructions
        self.parked: dict[int, NDArray[np.bool_]] = {}  # who waits there for other lanes
        self.runs, self.run_of = self._cut()

    def _special(self, numbers: NDArray) -> dict[str, NDArray[np.uint32]]:
        (gx, gy, gz), (bx, by, bz) = self.launch.grid, self.launch.block
        index = numbers[self.block_of]
        values = {
            "%tid.x": self.thread % bx, "%tid.y": self.thread // bx % by, "%tid.z": self.thread // (bx * by),
            "%ntid.x": bx, "%ntid.y": by, "%ntid.z": bz, "%nctaid.x": gx, "%nctaid.y": gy, "%nctaid.z": gz,
            "%ctaid.x": index % gx, "%ctaid.y": index // gx % gy, "%ctaid.z": index // (gx * gy),
            "%laneid": self.lane, "%warpid": self.thread // 32, "WARP_SZ": 32, "%clock": 0,
            "%lanemask_eq": 1 << self.lane, "%lanemask_lt": (1 << self.lane) - 1, "%lanemask_le": (2 << self.lane) - 1,
            "%lanemask_gt": 0xFFFFFFFF & -(2 << self.lane), "%lanemask_ge": 0xFFFFFFFF & -(1 << self.lane),
        }  # fmt: skip
        return {name: np.broadcast_to(np.asarray(value), self.n).astype(np.uint32) for name, value in values.items()}

    # ---- operands ----

    def register(self, name: str) -> NDArray:
        """Its array, of unsigned numbers or bools."""
        if name not in self.registers:
            kind = self.kernel.registers.get(name)
            if kind is None:
                raise Unsupported(f"register {name}")
            dtype = np.dtype(bool) if kind == "pred" else np.dtype(f"u{BYTES[kind]}")
            self.registers[name] = np.zeros(self.n, dtype)
        return self.registers[name]

    def read(self, text: str, kind: str) -> NDArray:
        """An operand's numbers: one for each thread, or a single one."""
        dtype = dtype_of(kind)
        if text in self.special:
            return self.special[text].view(dtype)
        if text in self.kernel.registers:
            array = self.register(text)
            if array.itemsize != dtype.itemsize:
                raise Unsupported(f"register {text} of another size than {kind}")
            return array if kind == "pred" else array.view(dtype)
        if dtype.kind == "b":
            return np.array([int(text, 0) != 0])
        return np.array([self.constant(text) & (1 << 8 * dtype.itemsize) - 1], f"u{dtype.itemsize}").view(dtype)

    def constant(self, text: str) -> int:
        """An immediate number, or the address of what has one."""
        if text[:2] in ("0f", "0F", "0d", "0D") and len(text) in (10, 18):
            return int(text[2:], 16)
        if text in self.kernel.shared:
            return RESERVED + self.kernel.shared[text]
        if text in self.kernel.dynamic:
            return RESERVED + self.dynamic
        for parameter in self.kernel.parameters:
            if parameter.name == text:
                return PARAMETERS + parameter.offset
        try:
            return int(text.rstrip("U"), 0)
        except ValueError:
            raise Unsupported(f"operand {text}") from None

    def address(self, text: str) -> Callable[[Group], NDArray[np.int64]]:
        """Of [register + number] or [name + number]."""
        found = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if not found:
            raise Unsupported(f"address {text}")
        base, offset = found[1], int(found[2] or "0", 0)
        if base in self.kernel.registers:
            array = self.register(base)
            return lambda g: array[g.lanes].astype(np.int64) + offset
        fixed = np.array([self.constant(base) + offset], np.int64)
        return lambda g: fixed.repeat(g.count)

    @staticmethod
    def vector(text: str) -> list[str]:
        return [each.strip() for each in text.strip("{}").split(",")]

    # ---- who goes on where ----

    def _cut(self) -> tuple[list[Run], dict[str, int]]:
        """Instructions in runs, and by label the number of the run that it begins."""
        code = self.kernel.instructions
        starts = {0, *self.kernel.labels.values()}
        for number, each in enumerate(code):
            if _ends_run(each):
                starts.add(number + 1)
            elif _mask_of(each) is not None:
                starts.add(number)
        order = sorted(starts)
        runs = []
        for start, stop in zip(order, [*order[1:], len(code)], strict=True):
            part = code[start:stop]
            end = part.pop() if part and _ends_run(part[-1]) else None
            runs.append(Run(part, end, _mask_of(part[0]) if part else None))
        number_of = {start: number for number, start in enumerate(order)}
        return runs, {label: number_of[start] for label, start in self.kernel.labels.items()}

    def run(self) -> int:
        """To the end of all threads."""
        self.put(0, self.real.copy())
        turns = steps = 0
        while self.running:
            place: int | None = min(self.running) if turns % 997 else max(self.running)
            group: Group | None = Group(self.running.pop(place))
            while place is not None:
                run = self.runs[place]
                at = run.end
                try:
                    if run.mask is not None:
                        at = run.code[0]
                        group = self.complete(place, run.mask, group)
                        if group is None:
                            break
                    if run.steps is None:
                        run.steps = [(at := each, self.bind(each)) for each in run.code]
                    for at, step in run.steps:
                        step(group)
                    at = run.end
                    after = self.leave(place, run.end, group)
                except BadAccess as error:
                    lanes = np.arange(self.n)[group.lanes]
                    raise self.fault(str(error), at, int(lanes[error.which])) from None
                except Unsupported as error:
                    raise Unsupported(f"{error}: {at} of {self.kernel.name}") from None
                steps += len(run.steps) + 1
                if steps > MOST_STEPS:
                    raise self.fault(f"has not ended after {steps} instructions", at, int(np.argmax(group.mask)))
                turns += 1
                if after is not None and self.running and (min(self.running) <= after or turns % 997 == 0):
                    self.put(after, group.mask)
                    after = None
                place = after
        if not self.exited.all():
            raise self.fault(f"stuck: {self._waiting()}", None, int(np.argmin(self.exited)))
        return steps

    def put(self, place: int, mask: NDArray[np.bool_]) -> None:
        """Threads that can go on there."""
        self.running[place] = self.running[place] | mask if place in self.running else mask

    def complete(self, place: int, mask: str, group: Group) -> Group | None:
        """Those at a collective all of whose mask's lanes have come; the others wait."""
        named = self.read(mask, "b32")
        if group.whole and ((named[group.lanes] if len(named) > 1 else named) == ALL).all():
            return group
        come = group.mask | self.parked.pop(place, False)
        named = np.broadcast_to(named, self.n) & self.bits(self.real)
        outside = come & (named >> self.lane.astype(np.uint32) & np.uint32(1) == 0)
        if outside.any():
            raise self.fault("a thread that its mask does not name", self.runs[place].code[0], int(np.argmax(outside)))
        ready = come & (named & self.bits(come) == named)
        if not ready.all() and (come & ~ready).any():
            self.parked[place] = come & ~ready
        return Group(ready) if ready.any() else None

    def leave(self, place: int, end: Instruction | None, group: Group) -> int | None:
        """Where a group goes on that has come to the end of a run, all of it; else None."""
        if end is None:
            return place + 1
        mask, rest = group.mask, None
        if end.guard:
            predicate = self.register(end.guard[0])
            mask = group.mask & (~predicate if end.guard[1] else predicate)
            rest = group.mask & ~mask
            if not mask.any():
                return place + 1
            if not rest.any():
                mask, rest = group.mask, None
        name = end.words[0]
        if name == "bra":
            target = self.run_of[end.operands[0]]
            if rest is None:
                return target
            self.put(target, mask)
        elif name == "trap":
            raise self.fault("trap", end, int(np.argmax(mask)))
        elif name in ("ret", "exit"):
            self.exited |= mask
            if any((copies.mask & mask).any() for copies in self.copies):
                raise self.fault("a copy never waited for", end, int(np.argmax(mask)))
        elif _is_barrier(end):
            self.arrive(place, end, mask)
        else:
            raise Unsupported(name)
        if rest is not None:
            self.put(place + 1, rest)
        return None

    def arrive(self, place: int, end: Instruction, mask: NDArray[np.bool_]) -> None:
        """At a barrier of the block: bar.sync and bar.arrive a{, n}, bar.red d, a{, n}, p."""
        words, operands = [word for word in end.words if word not in ("aligned", "cta")], list(end.operands)
        target = operands.pop(0) if words[1] == "red" else None
        vote = operands.pop() if words[1] == "red" else None
        number = self.constant(operands[0])
        expected = self.constant(operands[1]) if len(operands) > 1 else int(self.real.sum()) // (self.block_of[-1] + 1)
        n_blocks = int(self.block_of[-1]) + 1
        arrived = self.arrived.setdefault(number, np.zeros(n_blocks, np.int64))
        arrived += np.bincount(self.block_of[mask], minlength=n_blocks)
        if words[1] != "arrive":
            self.barrier[mask] = place + 1
            self.barrier_of[mask] = number
        if vote is not None:
            said = self.read(vote.lstrip("!"), "pred")
            self.vote[mask] = np.broadcast_to(~said if vote[0] == "!" else said, self.n)[mask]
        done = arrived >= expected
        if not done.any():
            return
        arrived[done] = 0
        released = done[self.block_of] & (self.barrier >= 0) & (self.barrier_of == number)
        places = np.unique(self.barrier[released])
        if len(places) > 1 and len(operands) == 1:
            for block in range(n_blocks):
                if len(np.unique(self.barrier[released & (self.block_of == block)])) > 1:
                    raise self.fault(f"divergent barrier: {self._waiting()}", end, int(np.argmax(released)))
        if target is not None:
            votes = np.bincount(self.block_of, self.vote & released, n_blocks)[self.block_of].astype(np.int64)
            result = {"popc": votes, "and": votes == expected, "or": votes > 0}[words[2]]
            register = self.register(target)
            register[released] = result[released].astype(register.dtype)
        for each in places:
            self.put(int(each), released & (self.barrier == each))
        self.barrier[released] = -1

    def _waiting(self) -> str:
        """Where the threads are that do not go on."""
        parts = []
        for place in np.unique(self.barrier[self.barrier >= 0]):
            parts.append(f"{np.count_nonzero(self.barrier == place)} threads wait in {self.runs[place - 1].end}")
        for place, mask in self.parked.items():
            parts.append(f"{np.count_nonzero(mask)} wait for other lanes in {self.runs[place].code[0]}")
        left = np.count_nonzero(self.exited & self.real)
        return "; ".join([*parts, f"{left} have left"] if left else parts)

    def fault(self, text: str, at: Instruction | None, lane: int) -> Fault:
        """With the names of a thread and of the kernel."""
        thread, block = (
            tuple(int(self.special[f"%{name}.{axis}"][lane]) for axis in "xyz") for name in ("tid", "ctaid")
        )
        where = f" in {at}" if at else ""
        return Fault(f"{text}{where}; thread {thread} of block {block} of {self.kernel.name}")

    # ---- instructions ----

    def bind(self, each: Instruction) -> Step:
        """What an instruction does to a group."""
        step = self._bind(each)
        if each.guard is None:
            return step
        if _mask_of(each) is not None:
            raise Unsupported("a collective under a predicate")
        predicate, negated = self.register(each.guard[0]), each.guard[1]

        def guarded(g: Group) -> None:
            mask = g.mask & (~predicate if negated else predicate)
            if mask.any():
                step(Group(mask))

        return guarded

    def _bind(self, each: Instruction) -> Step:
        words, operands = each.words, each.operands
        if own := getattr(self, f"do_{words[0]}", None):
            step: Step = own(words, operands)
            return step
        if words[0] in NOTHING:
            return lambda g: None
        kind = words[-1]
        name = ".".join(word for word in words[:-1] if word not in ("rn", "ftz", "b32", "cc"))
        inputs = [self.read(text, kind) for text in operands[1:]] if name in DIRECT else None
        if inputs is not None:
            function, out = DIRECT[name], self.register(operands[0])
            out = out if kind == "pred" else out.view(dtype_of(kind))
            return lambda g: function(*inputs, out=out, where=g.where)
        if name not in COMPUTED:
            raise Unsupported("this instruction")
        wide = name in ("mad.wide",)
        kinds = [kind] * (len(operands) - 1)
        if name in ("shl", "shr"):
            kinds[1] = "u32"
        elif name in ("bfi", "bfe"):
            kinds[-2:] = ["u32", "u32"]
        elif wide:
            kinds[2] = f"{kind[0]}{16 * BYTES[kind]}"
        return self.compute(COMPUTED[name], operands[0], [self.read(*pair) for pair in zip(operands[1:], kinds)])

    def compute(self, function: Callable[..., NDArray], target: str, inputs: list[NDArray]) -> Step:
        """target = function(inputs), as wide as the register is."""
        out = self.register(target)

        def step(g: Group) -> None:
            result = function(*inputs)
            if result.dtype.kind == "b" and out.dtype.kind != "b":
                result = result.astype(out.dtype)
            elif result.itemsize != out.itemsize:  # wider registers are filled with signs or zeros
                result = result.astype(f"{result.dtype.kind}{out.itemsize}")
            np.copyto(out, result.view(out.dtype), where=g.where)

        return step

    def do_mov(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        kind = words[-1]
        if operands[1].startswith("{"):
            parts = [self.register(name) if name in self.kernel.registers else self.read(name, f"u{8 * BYTES[kind] // 2}")
                     for name in self.vector(operands[1])]
            bits, out = 8 * BYTES[kind] // len(parts), self.register(operands[0])
            return self.compute(
                lambda *each: sum(part.astype(out.dtype) << out.dtype.type(bits * i) for i, part in enumerate(each)),
                operands[0], parts,
            )  # fmt: skip
        if operands[0].startswith("{"):
            value = self.read(operands[1], kind)
            names = self.vector(operands[0])
            bits = 8 * BYTES[kind] // len(names)
            steps = [
                self.compute(lambda v, i=i: (v >> v.dtype.type(bits * i)).astype(f"u{bits // 8}"), name, [value])
                for i, name in enumerate(names)
                if name != "_"
            ]
            return lambda g: [step(g) for step in steps] and None
        return self.compute(lambda v: v, operands[0], [self.read(operands[1], kind)])

    def do_selp(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        inputs = [self.read(text, words[-1]) for text in operands[1:3]]
        return self.compute(lambda a, b, p: np.where(p, a, b), operands[0], [*inputs, self.register(operands[3])])

    def do_setp(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        kind, compare = words[-1], COMPARE[words[1]]
        inputs = [self.read(text, kind) for text in operands[1:3]]
        names = operands[0].split("|")
        combine = next((DIRECT[word] for word in words[2:-1] if word in ("and", "or", "xor")), None)
        if combine is not None:
            other = operands[3]
            third = self.read(other.lstrip("!"), "pred")
            negated = other.startswith("!")

        def result(invert: bool) -> Callable[..., NDArray]:
            def of(*values: NDArray) -> NDArray:
                found = compare(values[0], values[1])
                found = ~found if invert else found
                return found if combine is None else combine(found, ~third if negated else third)

            return of

        steps = [self.compute(result(i == 1), name, inputs) for i, name in enumerate(names)]
        return steps[0] if len(steps) == 1 else lambda g: [step(g) for step in steps] and None

    def do_cvt(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        inputs = []
        for text in operands[1:]:  # the register may be wider
            register = self.register(text) if text in self.kernel.registers else self.read(text, words[-1])
            inputs.append((register, dtype_of(words[-1]) if words[-1] != "bf16" else np.dtype(np.uint16)))
        function = convert(words)

        def of(*values: NDArray) -> NDArray:
            return function(
                *(
                    (value if value.itemsize == kind.itemsize else value.astype(f"u{kind.itemsize}")).view(kind)
                    for value, (_, kind) in zip(values, inputs, strict=True)
                )
            )

        return self.compute(of, operands[0], [register for register, _ in inputs])

    def do_cvta(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        move = np.uint64(SHARED if "shared" in words else 0)
        if "to" in words:
            return self.compute(lambda a: a - move, operands[0], [self.read(operands[1], "u64")])
        return self.compute(lambda a: a + move, operands[0], [self.read(operands[1], "u64")])

    # memory

    @staticmethod
    def access(words: tuple[str, ...]) -> tuple[str, int, str]:
        """Space, numbers of a vector and type of a load, store or atomic."""
        plain = [word.split("::")[0] for word in words]
        space = next((word for word in plain if word in ("global", "shared", "param")), "generic")
        if "local" in plain or "const" in plain or any("cluster" in word for word in words):
            raise Unsupported("this space")
        return space, next((int(word[1:]) for word in words if word in ("v2", "v4", "v8")), 1), words[-1]

    def do_ld(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        space, count, kind = self.access(words)
        outs = [self.register(name) for name in self.vector(operands[0])]
        address, memory, size = self.address(operands[1]), self.memory, BYTES[kind]

        def load(g: Group) -> None:
            values = memory.read(space, address(g), g.lanes, size, count)
            for out, value in zip(outs, values, strict=True):
                if out.itemsize != size:
                    value = value.view(dtype_of(kind)).astype(f"{dtype_of(kind).kind}{out.itemsize}").view(out.dtype)
                out[g.lanes] = value

        return load

    def do_st(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        space, count, kind = self.access(words)
        address, memory, unsigned = self.address(operands[0]), self.memory, np.dtype(f"u{BYTES[kind]}")
        sources = [
            self.register(name) if name in self.kernel.registers else self.read(name, kind).view(unsigned)
            for name in self.vector(operands[1])
        ]
        if len(sources) != count:
            raise Unsupported("this vector")

        def store(g: Group) -> None:
            values = [source if len(source) == 1 else source[g.lanes] for source in sources]
            memory.write(space, address(g), g.lanes, [value.astype(unsigned, copy=False) for value in values])

        return store

    def do_atom(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        return self.atomic(words, operands[0], operands[1], operands[2:])

    def do_red(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        return self.atomic(words, None, operands[0], operands[1:])

    def atomic(self, words: tuple[str, ...], target: str | None, where: str, values: tuple[str, ...]) -> Step:
        """Lane after lane."""
        space, _, kind = self.access(words)
        dtype, name = dtype_of(kind), next(word for word in words if word in ATOMIC or word == "cas")
        address, inputs = self.address(where), [self.read(text, kind) for text in values]
        out = None if target in (None, "_") else self.register(target)

        def step(g: Group) -> None:
            at, numbers = address(g), np.arange(self.n)[g.lanes]
            for place in self.memory.places(space, at, g.lanes, dtype.itemsize, dtype.itemsize):
                view = place.view.view(dtype)
                for lane, index in zip(numbers[place.part].tolist(), place.index.tolist(), strict=True):
                    old = view[index]
                    operand = [each[lane if len(each) > 1 else 0] for each in inputs]
                    if name == "cas":
                        view[index] = operand[1] if old == operand[0] else old
                    else:
                        view[index] = ATOMIC[name](old, operand[0])
                    if out is not None:
                        out.view(dtype)[lane] = old

        return step

    # asynchronous copies

    def do_cp(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        name = ".".join(words)
        if name == "cp.async.commit_group":
            return self._commit
        if name in ("cp.async.wait_group", "cp.async.wait_all"):
            left = int(operands[0]) if operands else None
            return lambda g: self._land(g, left)
        if words[1] != "async" or words[2] not in ("ca", "cg") or words[3:5] != ("shared", "global"):
            raise Unsupported("this copy")
        to, source, size = self.address(operands[0]), self.address(operands[1]), int(operands[2])
        valid = self.read(operands[3], "u32") if len(operands) > 3 else np.array([size])
        poison = [np.array([ALL])] * (size // 4)

        def start(g: Group) -> None:
            at, numbers = to(g), np.arange(self.n)[g.lanes]
            self.memory.write("shared", at, g.lanes, poison)
            copies = Copies(g.mask.copy(), self.committed.copy(), *(np.zeros(self.n, np.int64) for _ in range(3)), size)
            copies.to[numbers], copies.source[numbers] = at, source(g)
            copies.valid[numbers] = np.broadcast_to(valid, self.n)[numbers]
            if not np.isin(copies.valid[numbers], (0, size)).all():
                raise Unsupported("a copy of a part of its size")
            reads = numbers[copies.valid[numbers] > 0]
            if len(reads):
                self.memory.read("global", copies.source[reads], reads, 4, size // 4)
            self.copies.append(copies)

        return start

    def _commit(self, g: Group) -> None:
        self.committed[g.lanes] += 1

    def _land(self, g: Group, left: int | None) -> None:
        """Of a group's threads all groups of copies but the latest `left`; None: whether committed or not."""
        for copies in self.copies:
            lands = copies.mask & g.mask
            if left is not None:
                lands &= copies.group < self.committed - left
            numbers = np.flatnonzero(lands)
            if not len(numbers):
                continue
            copies.mask &= ~lands
            words = np.zeros((copies.size // 4, len(numbers)), np.uint32)
            reads = copies.valid[numbers] > 0
            if reads.any():
                source = numbers[reads]
                words[:, reads] = self.memory.read("global", copies.source[source], source, 4, copies.size // 4)
            self.memory.write("shared", copies.to[numbers], numbers, list(words))
        self.copies = [copies for copies in self.copies if copies.mask.any()]

    # warps

    def bits(self, mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """For each thread, which lanes of its warp are in `mask`."""
        packed = np.packbits(mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)
        return packed.repeat(32)

    def do_bar(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        return lambda g: None  # bar.warp.sync: that all have come is all

    def do_shfl(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        value, by, clamp = (self.read(text, "b32") for text in operands[1:4])
        names, lane, base = operands[0].split("|"), self.lane, np.arange(self.n) - self.lane
        out, inside = self.register(names[0]), self.register(names[1]) if len(names) > 1 else None

        def shuffle(g: Group) -> None:
            b, c = by.astype(np.int64) & 31, clamp.astype(np.int64)
            segment = c >> 8 & 31
            last = (lane & segment) | (c & 31 & ~segment)
            source = {
                "up": lambda: lane - b, "down": lambda: lane + b, "bfly": lambda: lane ^ b,
                "idx": lambda: (lane & segment) | (b & ~segment),
            }[words[2]]()  # fmt: skip
            found = source >= last if words[2] == "up" else source <= last
            source = base + np.where(found, source, lane)
            silent = g.mask & ~g.mask[source]
            if silent.any():
                raise self.fault("a shuffle reads a lane that has not come", None, int(np.argmax(silent)))
            np.copyto(out, value[source] if len(value) > 1 else value, where=g.where)
            if inside is not None:
                np.copyto(inside, found, where=g.where)

        return shuffle

    def do_vote(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        predicate, mask = self.read(operands[1].lstrip("!"), "pred"), self.read(operands[2], "b32")
        negated, out = operands[1].startswith("!"), self.register(operands[0])

        def vote(g: Group) -> None:
            bits = self.bits(g.mask & (~predicate if negated else predicate)) & mask
            full = self.bits(g.mask) & mask
            result = {"ballot": bits, "any": bits != 0, "all": bits == full, "uni": (bits == full) | (bits == 0)}
            np.copyto(out, result[words[2]], where=g.where)

        return vote

    def do_match(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        if words[1] != "any":
            raise Unsupported("this match")
        value, mask = self.read(operands[1], words[-1]), self.read(operands[2], "b32")

        def match(g: Group) -> None:
            each = np.broadcast_to(value, self.n).reshape(-1, 32)
            same = (each[:, :, None] == each[:, None, :]) & g.mask.reshape(-1, 1, 32)
            bits = np.packbits(same, axis=2, bitorder="little").view(np.uint32).reshape(-1)
            np.copyto(self.register(operands[0]), bits & mask, where=g.where)

        return match

    def do_redux(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        value, mask = self.read(operands[1], words[-1]), self.read(operands[2], "b32")
        function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
                    "xor": np.bitwise_xor}[words[2]]  # fmt: skip
        out = self.register(operands[0]).view(value.dtype)

        def reduce(g: Group) -> None:
            named = self.bits(g.mask) & mask
            for bits in np.unique(np.stack([self.thread // 32 + 64 * self.block_of, named])[:, g.mask], axis=1).T:
                inside = g.mask & (self.thread // 32 + 64 * self.block_of == bits[0]) & (named == bits[1])
                out[inside] = function.reduce(np.broadcast_to(value, self.n)[inside])

        return reduce

    def do_activemask(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        return lambda g: np.copyto(self.register(operands[0]), self.bits(g.mask), where=g.where)

    def do_ldmatrix(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        outs = [self.register(name).reshape(-1, 32) for name in self.vector(operands[0])]
        address, transposed = self.address(operands[1]), "trans" in words
        group, pair = np.arange(32) // 4, 2 * (np.arange(32) % 4)

        def load(g: Group) -> None:
            lanes = np.arange(self.n)[g.lanes].reshape(-1, 32)[:, : 8 * len(outs)]
            at = address(g).reshape(-1, 32)[:, : 8 * len(outs)]
            numbers = self.memory.read("shared", at.reshape(-1), lanes.reshape(-1), 2, 8).astype(np.uint32)
            rows = numbers.T.reshape(len(lanes), len(outs), 8, 8)
            rows = rows.swapaxes(2, 3) if transposed else rows
            for i, out in enumerate(outs):
                out[g.warps] = rows[:, i, group, pair] | rows[:, i, group, pair + 1] << np.uint32(16)

        return load

    def do_mma(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        if words[4:7] != ("row", "col", "f32") or words[7] != words[8] or words[9] != "f32":
            raise Unsupported("this mma")
        layout = Layout(words[3], words[7])
        d, a, b, c = ([self.register(name).reshape(-1, 32) for name in self.vector(text)] for text in operands)

        def product(g: Group) -> None:
            starts = [each[g.warps].view(np.float32) for each in c]
            done = multiply(layout, [each[g.warps] for each in a], [each[g.warps] for each in b], starts, self.model)
            for i, out in enumerate(d):
                out[g.warps] = done[:, :, i].view(np.uint32)

        return product


ATOMIC: dict[str, Callable] = {
    "add": lambda old, x: old + x, "min": min, "max": max, "exch": lambda old, x: x, "and": lambda old, x: old & x,
    "or": lambda old, x: old | x, "xor": lambda old, x: old ^ x,
}  # fmt: skip


def _is_barrier(each: Instruction) -> bool:
    return each.words[0] in ("bar", "barrier") and "warp" not in each.words


def _ends_run(each: Instruction) -> bool:
    return each.words[0] in ("bra", "brx", "ret", "exit", "trap") or _is_barrier(each)


def _mask_of(each: Instruction) -> str | None:
    """The operand that says which lanes have to come; of all lanes "-1"."""
    if each.words[0] in ("ldmatrix", "mma"):
        return "-1"
    if each.words[:2] == ("bar", "warp") or each.words[0] in ("shfl", "vote", "match", "redux"):
        return each.operands[-1]
    return None
