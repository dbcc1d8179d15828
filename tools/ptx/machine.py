"""Runs a launch: all threads of some blocks at once, a register being an array with a number for each thread.

Threads that are at one instruction form a group and go on together; a branch may split it, and groups that come to one
place join. Of several groups the one whose place comes first in the PTX goes on, so that loops are left together; now
and then another one does, so that threads which wait for each other in a loop get on. Warps matter where PTX says so:
shuffles, votes, matches, ldmatrix and mma are done when all lanes of the mask have come.

Stricter than a chip: all threads of a block meet at one barrier, none has left before; a lane that is named in a mask
comes, and lanes read only from those that did; asynchronous copies land at the wait that covers them, no sooner, until
then their destination is NaN; none is left at the end. Threads of a block run in step as far as they can, so a barrier
that is missing may not show: races are what the emulator's checked build is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptx.instructions import ALL, Instructions, Step, mask_of
from ptx.memory import BadAccess, Segment
from ptx.parser import Fault, Instruction, Kernel, Unsupported
from ptx.tensor import Model
from ptx.threads import Group, Launch

__all__ = ["check_known", "run"]

LANES = 4096  # threads at a time, more where a block has more: their registers stay in a processor's caches
MOST_STEPS = 20_000_000
ANOTHER = 997  # turns after which another group goes on than the first


@dataclass
class Run:
    """Instructions that run one after the other, then perhaps one that decides who goes on where."""

    code: list[Instruction]
    end: Instruction | None
    mask: str | None  # of the collective that it begins with
    steps: list[tuple[Instruction, Step]] | None = None  # made when it is first come to


def run(launch: Launch, segments: Iterable[Segment], model: Model) -> int:
    """All blocks of a launch; what it writes is in the segments. Returns how many instructions groups went through.

    Raises
    ------
    Fault
    Unsupported
    """
    most, n_blocks = launch.kernel.threads, launch.grid[0] * launch.grid[1] * launch.grid[2]
    if most is not None and launch.threads > most:
        raise Fault(f"{launch.kernel.name} is launched with {launch.threads} threads, compiled for {most}")
    at_once = max(1, LANES // launch.threads)
    segments, steps = list(segments), 0
    with np.errstate(all="ignore"):
        for first in range(0, n_blocks, at_once):
            numbers = np.arange(first, min(first + at_once, n_blocks))
            steps += _Blocks(launch, segments, model, numbers).run()
    return steps


def check_known(kernel: Kernel) -> None:
    """Looks at all instructions, whether a launch comes to them or not.

    Raises
    ------
    Unsupported
        Of the first that is not known.
    """
    bytes_of_parameters = max((each.offset + each.size for each in kernel.parameters), default=0)
    launch = Launch(kernel, (1, 1, 1), (32, 1, 1), 16, bytes(bytes_of_parameters))
    blocks = _Blocks(launch, [], Model(0, 0), np.arange(1))
    for each in kernel.instructions:
        try:
            if each.words[0] == "brx":
                raise Unsupported("a branch to one of several labels")
            if not _ends_run(each):
                blocks.bind(each)
        except Unsupported as error:
            raise Unsupported(f"{error}: {each} of {kernel.name}") from None


class _Blocks(Instructions):
    """Some blocks of a launch, and where their threads are."""

    def __init__(self, launch: Launch, segments: list[Segment], model: Model, numbers: NDArray[np.int64]) -> None:
        super().__init__(launch, segments, model, numbers)
        self.exited = ~self.real
        self.barrier = np.full(self.n, -1)  # where a thread goes on when its barrier is complete
        self.barrier_of = np.zeros(self.n, np.int64)  # number of that barrier
        self.vote = np.zeros(self.n, bool)
        self.arrived: dict[int, NDArray[np.int64]] = {}
        self.running: dict[int, NDArray[np.bool_]] = {}  # who can go on, by the number of the run of instructions
        self.parked: dict[int, NDArray[np.bool_]] = {}  # who waits there for other lanes
        self.runs, self.run_of = self._cut()

    def _cut(self) -> tuple[list[Run], dict[str, int]]:
        """Instructions in runs, and by label the number of the run that it begins."""
        code = self.kernel.instructions
        starts = {0, *self.kernel.labels.values()}
        for number, each in enumerate(code):
            if _ends_run(each):
                starts.add(number + 1)
            elif mask_of(each) is not None:
                starts.add(number)
        order = sorted(starts)
        runs = []
        for start, stop in zip(order, [*order[1:], len(code)], strict=True):
            part = code[start:stop]
            end = part.pop() if part and _ends_run(part[-1]) else None
            runs.append(Run(part, end, mask_of(part[0]) if part else None))
        number_of = {start: number for number, start in enumerate(order)}
        return runs, {label: number_of[start] for label, start in self.kernel.labels.items()}

    def run(self) -> int:
        """To the end of all threads; how many instructions groups went through."""
        self.put(0, self.real.copy())
        turns = steps = 0
        while self.running:
            place = min(self.running) if turns % ANOTHER else max(self.running)
            group = self.complete(place, Group(self.running.pop(place)))
            while group is not None:
                turns, steps = turns + 1, steps + len(self.runs[place].code) + 1
                if steps > MOST_STEPS:
                    at = self.runs[place].end
                    raise self.fault(f"has not ended after {steps} instructions", at, int(np.argmax(group.mask)))
                after = self.go_through(place, group)
                if after is None:
                    break
                if self.running and (min(self.running) <= after or turns % ANOTHER == 0):
                    self.put(after, group.mask)
                    break
                place, group = after, self.complete(after, group)
        if not self.exited.all():
            raise self.fault(f"stuck: {self._waiting()}", None, int(np.argmin(self.exited)))
        return steps

    def go_through(self, place: int, group: Group) -> int | None:
        """A run of instructions; where the group goes on, all of it, or None."""
        run = self.runs[place]
        at = run.end
        try:
            if run.steps is None:
                run.steps = [(at := each, self.bind(each)) for each in run.code]
            for at, step in run.steps:  # noqa: B007
                step(group)
            at = run.end
            return self.leave(place, run.end, group)
        except BadAccess as error:
            lanes = np.arange(self.n)[group.lanes]
            raise self.fault(str(error), at, int(lanes[error.which])) from None
        except Unsupported as error:
            raise Unsupported(f"{error}: {at} of {self.kernel.name}") from None

    def put(self, place: int, mask: NDArray[np.bool_]) -> None:
        """Threads that can go on there."""
        self.running[place] = self.running[place] | mask if place in self.running else mask

    def complete(self, place: int, group: Group) -> Group | None:
        """Of a group that begins a run with a collective those all of whose mask's lanes have come; the others wait."""
        mask = self.runs[place].mask
        if mask is None:
            return group
        named = self.read(mask, "b32")
        if group.whole and ((named[group.lanes] if len(named) > 1 else named) == ALL).all():
            return group
        come = group.mask | self.parked.pop(place, False)
        named = np.broadcast_to(named, self.n) & self.bits(self.real)
        outside = come & (named >> self.lane.astype(np.uint32) & np.uint32(1) == 0)
        if outside.any():
            raise self.fault("a thread that its mask does not name", self.runs[place].code[0], int(np.argmax(outside)))
        ready = come & (named & self.bits(come) == named)
        if (come & ~ready).any():
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
        expected = self.constant(operands[1]) if len(operands) > 1 else self.block_threads
        arrived = self.arrived.setdefault(number, np.zeros(self.n_blocks, np.int64))
        arrived += np.bincount(self.block_of[mask], minlength=self.n_blocks)
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
            for block in range(self.n_blocks):
                if len(np.unique(self.barrier[released & (self.block_of == block)])) > 1:
                    raise self.fault(f"divergent barrier: {self._waiting()}", end, int(np.argmax(released)))
        if target is not None:
            votes = np.bincount(self.block_of, self.vote & released, self.n_blocks)[self.block_of].astype(np.int64)
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


def _is_barrier(each: Instruction) -> bool:
    return each.words[0] in ("bar", "barrier") and "warp" not in each.words


def _ends_run(each: Instruction) -> bool:
    return each.words[0] in ("bra", "brx", "ret", "exit", "trap") or _is_barrier(each)
