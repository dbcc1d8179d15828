"""What each instruction does to a group of threads, as a function that is made of its text once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptx.memory import SHARED, Segment
from ptx.operations import COMPARE, COMPUTED, DIRECT, Array, Function, convert, dtype_of
from ptx.parser import BYTES, Instruction, Unsupported
from ptx.tensor import Layout, Model, multiply
from ptx.threads import Group, Launch, Threads

__all__ = ["Instructions", "Step", "mask_of"]

ALL = np.uint32(0xFFFFFFFF)
NOTHING = {"membar", "fence", "nanosleep", "prefetch", "prefetchu", "griddepcontrol", "discard", "applypriority", "nop"}
Step = Callable[[Group], None]


def mask_of(each: Instruction) -> str | None:
    """The operand that says which lanes have to come to an instruction; of all lanes "-1"."""
    if each.words[0] in ("ldmatrix", "mma"):
        return "-1"
    if each.words[:2] == ("bar", "warp") or each.words[0] in ("shfl", "vote"):
        return each.operands[-1]
    return None


def one_after_the_other(steps: list[Step]) -> Step:
    def all_of_them(g: Group) -> None:
        for step in steps:
            step(g)

    return steps[0] if len(steps) == 1 else all_of_them


@dataclass
class Copies:
    """A cp.async under way: of these threads, in their groups of that number."""

    mask: NDArray[np.bool_]
    group: NDArray[np.int64]
    to: NDArray[np.int64]
    source: NDArray[np.int64]
    valid: NDArray[np.int64]
    size: int


class Instructions(Threads):
    """Threads with what instructions do to them; control is another matter."""

    def __init__(self, launch: Launch, segments: list[Segment], model: Model, numbers: NDArray[np.int64]) -> None:
        super().__init__(launch, segments, model, numbers)
        self.copies: list[Copies] = []
        self.committed = np.zeros(self.n, np.int64)

    def bind(self, each: Instruction) -> Step:
        """What an instruction does to a group."""
        step = self._bind(each)
        if each.guard is None:
            return step
        if mask_of(each) is not None:
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
        name = ".".join(word for word in words[:-1] if word != "rn")
        inputs = [self.read(text, kind) for text in operands[1:]] if name in DIRECT else None
        if inputs is not None:
            function, out = DIRECT[name], self.register(operands[0])
            out = out if kind == "pred" else out.view(dtype_of(kind))
            return lambda g: function(*inputs, out=out, where=g.where)
        if name not in COMPUTED:
            raise Unsupported("this instruction")
        kinds = [kind] * (len(operands) - 1)
        if name in ("shl", "shr"):
            kinds[1] = "u32"
        elif name in ("bfi", "bfe"):
            kinds[-2:] = ["u32", "u32"]
        elif name == "mad.wide":
            kinds[2] = f"{kind[0]}{16 * BYTES[kind]}"
        values = [self.read(text, each) for text, each in zip(operands[1:], kinds, strict=True)]
        return self.compute(COMPUTED[name], operands[0], values)

    def compute(self, function: Callable[..., Array], target: str, inputs: list[Array]) -> Step:
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
            parts = [
                self.register(name) if name in self.kernel.registers else self.read(name, f"u{8 * BYTES[kind] // 2}")
                for name in self.vector(operands[1])
            ]
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
            return one_after_the_other(steps)
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

        def result(invert: bool) -> Callable[..., Array]:
            def of(*values: Array) -> Array:
                found = compare(values[0], values[1])
                found = ~found if invert else found
                return found if combine is None else combine(found, ~third if negated else third)

            return of

        steps = [self.compute(result(i == 1), name, inputs) for i, name in enumerate(names)]
        return one_after_the_other(steps)

    def do_cvt(self, words: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        inputs = []
        for text in operands[1:]:  # the register may be wider
            register = self.register(text) if text in self.kernel.registers else self.read(text, words[-1])
            inputs.append((register, dtype_of(words[-1])))
        function = convert(words)

        def of(*values: Array) -> Array:
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


ATOMIC: dict[str, Function] = {
    "add": lambda old, x: old + x, "min": min, "max": max, "exch": lambda old, x: x, "and": lambda old, x: old & x,
    "or": lambda old, x: old | x, "xor": lambda old, x: old ^ x,
}  # fmt: skip
