"""nvcc's PTX of every kernel, run by tools/ptx from the launches of the backend's own host code; and tools/ptx itself:
what it computes, and that it finds what it says it finds."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import beside
import numpy as np
import pytest

sys.path.insert(0, str(beside.ROOT / "tools"))
import ptx_cases
from emulated import load
from emulated_cuda import ON_DEVICE
from ptx.launches import find_nvcc, read_kernels
from ptx.machine import check_known, run
from ptx.memory import Segment
from ptx.parser import Fault, Kernel, Unsupported, parse
from ptx.tensor import MODELS, Layout, dot
from ptx.threads import Launch

from wals_gpu.errors import ModelFitError, SingularSystemError

interprets = pytest.mark.waits_for(*() if ON_DEVICE else ("emulator", "ptx"))


# The library's kernels


def needs_nvcc():
    """CI sets WALS_GPU_REQUIRE_NVCC: there a skip is a failure."""
    if ON_DEVICE:
        pytest.skip("a device runs what nvcc made by itself")
    if find_nvcc() is None:
        if os.environ.get("WALS_GPU_REQUIRE_NVCC") == "1":
            pytest.fail("WALS_GPU_REQUIRE_NVCC=1, but there is no nvcc", pytrace=False)
        pytest.skip("no nvcc in PATH")


@pytest.fixture(scope="module")
def found():
    needs_nvcc()
    return beside.result("ptx")["runs"]


@interprets
@pytest.mark.parametrize(
    ("on", "name"),
    [
        (on, name)
        for on, run_of in beside.PTX_RUNS.items()
        for name in ptx_cases.CASES
        if not run_of.tensor_cores_alone or name.startswith(ptx_cases.TENSOR_CORES)
    ],
)
def test_what_nvcc_made_computes_the_definition(found, on, name):
    of = found[on]["cases"][name]
    assert not of["error"], of["error"]
    assert sum(of["launched"].values()) > 1000


@interprets
def test_every_kernel_is_run(found):
    """On one card or another: small ones have shapes of their own."""
    kernels = {kernel for each in found.values() for kernel in each["kernels"]}
    launched = {kernel for each in found.values() for case in each["cases"].values() for kernel in case["launched"]}
    assert len(kernels) > 50
    assert launched == kernels


@interprets
@pytest.mark.parametrize("architecture", sorted({each.architecture for each in beside.PTX_RUNS.values()}))
def test_every_instruction_is_known(architecture):
    """Also those that no case comes to."""
    needs_nvcc()
    for kernel in read_kernels(Path(beside.result("ptx")["folder"]).glob(f"*.{architecture}.ptx")).values():
        check_known(kernel)


# Faults planted in what nvcc made


@pytest.fixture(scope="module")
def text():
    """PTX of the exact kernels for compute_80."""
    needs_nvcc()
    return (Path(beside.result("ptx")["folder"]) / "solve_exact.80.ptx").read_text()


@pytest.fixture(scope="module")
def others():
    """The other kernels that the case needs."""
    needs_nvcc()
    folder = Path(beside.result("ptx")["folder"])
    return read_kernels(folder / f"{source}.80.ptx" for source in ("dense", "solve_giant"))


def run_case(name: str, kernels: dict[str, Kernel]) -> None:
    ptx_cases.run(name, kernels, MODELS["exact"], load("_emulated"))


WRONG = (AssertionError, ModelFitError, SingularSystemError)  # a result that the case does not take
#: What is replaced by what in the exact kernels, and how the case "exact, 32" then fails.
PLANTED = {
    "registers of mma in another order": (
        r"(mma\.sync\S+ \{.*?\}, \{%r\w+),(%r\w+),(%r\w+)", r"\1,\3,\2", WRONG, "",
    ),
    "registers of its right factor in another order": (r"\{(%r\w+),(%r\w+)\}, \{%f", r"{\2,\1}, {%f", WRONG, ""),
    "ldmatrix transposed, or not": (r"\.x4(\.trans)?\.", lambda m: ".x4." if m[1] else ".x4.trans.", WRONG, ""),
    "no wait for copies": (r"cp\.async\.wait_group \d+;", "", Fault, "a copy never waited for"),
    "a wait too short": (r"(wait_group) (\d+);", lambda m: f"{m[1]} {int(m[2]) + 1};", (*WRONG, Fault), ""),
    "a structure of another size": (
        r"(solve_(?:primal|dual)\w+_param_0\[\d*)8\]", r"\g<1>0]", Fault, "parameters .* on the host, .* in its PTX",
    ),
    "a load behind an array": (r"(ld\.global\.f32 \s*%f\d+, \[%rd\d+)\]", r"\1+99999992]", Fault, "out of bounds"),
    "a store behind shared memory": (r"(st\.shared\.f32 \s*\[%r\w+)\]", r"\1+200000]", Fault, "of shared memory"),
    "a vector that is not aligned": (
        r"(ld\.shared\.v4\.f32 \s*\{[^}]*\}, \[%r\w+)\]", r"\1+4]", Fault, "misaligned",
    ),
    "a shuffle from another lane": (r"shfl\.sync\.bfly", "shfl.sync.up", WRONG, ""),
    "a barrier that some do not come to": (
        r"bar\.sync(\s*)0;", r"setp.ne.u32 %p1, %tid.x, 3; @%p1 bar.sync\g<1>0;", Fault, "stuck|divergent",
    ),
}  # fmt: skip


@interprets
@pytest.mark.parametrize("what", PLANTED)
def test_planted_faults_are_found(text, others, what):
    pattern, replacement, error, message = PLANTED[what]
    changed = re.sub(pattern, replacement, text)
    assert changed != text, "there is nothing of the kind to change"
    with pytest.raises(error) as found:
        run_case("exact, 32", parse(changed) | others)
    assert re.search(message, str(found.value))


@interprets
def test_fields_that_the_compilers_place_otherwise_are_found(text, others, monkeypatch):
    """As if g++ had two pointers of RotatedRows in another order than nvcc."""

    def otherwise(kernel, grid, block, shared_bytes, data):
        if kernel.parameters[0].size > 100:
            data = data[:24] + data[40:48] + data[32:40] + data[24:32] + data[48:]
        return Launch(kernel, grid, block, shared_bytes, data)

    monkeypatch.setattr("ptx.launches.Launch", otherwise)
    with pytest.raises((*WRONG, Fault)):
        run_case("exact, 32", parse(text) | others)


@interprets
def test_the_case_passes_without_a_fault(text, others):
    run_case("exact, 32", parse(text) | others)


@interprets
def test_a_kernel_that_is_not_there(text):
    with pytest.raises(Fault, match=r"there is no PTX of \w*gram_kernel"):
        run_case("exact, 32", parse(text))


# Instructions


def kernel_of(body: str, registers: str = "", shared: str = ""):
    """A kernel that has its input and output in %rd1 and %rd2, and 4 and 8 times the thread's number behind them."""
    return parse(f"""
.version 9.0
.target sm_80
.extern .shared .align 128 .b8 dynamic[];
.visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)
{{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %rd<20>; .reg .f64 %fd<20>;
    {registers} {shared}
    ld.param.u64 %rd1, [k_param_0];
    ld.param.u64 %rd2, [k_param_1];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    mul.wide.u32 %rd4, %r1, 8;
    {body}
    ret;
}}
""")["k"]


def execute(
    body: str, data, out, *, threads: int = 32, grid: int = 1, shared_bytes: int = 0, model="exact", **declared
):
    """Runs a body on copies; the output."""
    data, out = np.array(data), np.array(out)
    segments = [
        Segment(name, base, array.reshape(-1).view(np.uint8))
        for name, base, array in (("input", 1 << 20, data), ("output", 1 << 30, out))
    ]
    parameters = np.array([1 << 20, 1 << 30], np.uint64).tobytes()
    launch = Launch(kernel_of(body, **declared), (grid, 1, 1), (threads, 1, 1), shared_bytes, parameters)
    run(launch, segments, MODELS[model])
    return out


def of_two(instruction: str, a, b, out=None):
    """The instruction on pairs of numbers of 32 or 64 bits, each thread its own."""
    a, b = np.asarray(a), np.asarray(b)
    out = np.zeros_like(a) if out is None else out
    size, n = a.itemsize, len(a)
    bits = 8 * size
    place = "%rd3" if size == 4 else "%rd4"
    r = {4: ["%r10", "%r11"], 8: ["%rd10", "%rd11"]}[size]
    to = {4: ("%r12", "%rd3"), 8: ("%rd12", "%rd4")}[out.itemsize]
    body = f"""
        add.s64 %rd5, %rd1, {place}; add.s64 %rd6, %rd5, {size * n};
        ld.global.b{bits} {r[0]}, [%rd5]; ld.global.b{bits} {r[1]}, [%rd6];
        {instruction.format(to[0], *r)};
        add.s64 %rd7, %rd2, {to[1]}; st.global.b{8 * out.itemsize} [%rd7], {to[0]};"""
    return execute(body, np.concatenate([a, b.astype(a.dtype)]), out, threads=n)


def ints(seed, dtype, n=64):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    edge = np.array([0, 1, 2, 3, 31, 32, 33, info.max, info.min, info.max - 1, info.min + 1], dtype)
    return np.concatenate([edge, rng.integers(info.min, info.max, n - len(edge), dtype, endpoint=True)])


def floats(seed, dtype=np.float32, n=64):
    rng = np.random.default_rng(seed)
    edge = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-38, 65504], dtype)
    return np.concatenate(
        [edge, (rng.normal(size=n - len(edge)) * 10.0 ** rng.integers(-9, 9, n - len(edge))).astype(dtype)]
    )


def big(values):
    return [int(x) for x in values]


INTEGER = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul.lo": lambda a, b: a * b, "min": min, "max": max,
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
    "div": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "rem": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", INTEGER)
def test_integers(name, kind):
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")
    a, b = ints(1, dtype), np.roll(ints(2, dtype), 5)
    if name in ("div", "rem"):
        b[b == 0] = 7
        b[(a == np.iinfo(dtype).min) & (b == -1 if kind[0] == "s" else False)] = 3
    named = name in ("and", "or", "xor")
    found = of_two(f"{name}.{'b' if named else kind[0]}{kind[1:]} {{}}, {{}}, {{}}", a, b)
    mask = (1 << int(kind[1:])) - 1
    wanted = [INTEGER[name](x, y) & mask for x, y in zip(big(a), big(b), strict=True)]
    assert big(found.view(f"u{dtype.itemsize}")) == wanted


def test_products_shifts_and_bits():
    a, b = ints(3, np.int32), ints(4, np.int32)
    pairs = list(zip(big(a), big(b), strict=True))
    np.testing.assert_array_equal(
        of_two("mul.wide.s32 {}, {}, {}", a, b, np.zeros(64, np.int64)), [x * y for x, y in pairs]
    )
    np.testing.assert_array_equal(of_two("mul.hi.s32 {}, {}, {}", a, b), [x * y >> 32 for x, y in pairs])
    by = (ints(5, np.uint32) % np.uint32(40)).astype(np.uint32)
    u = a.view(np.uint32)
    shifts = list(zip(big(u), big(a), big(by), strict=True))
    np.testing.assert_array_equal(of_two("shl.b32 {}, {}, {}", u, by), [x << n & 0xFFFFFFFF for x, _, n in shifts])
    np.testing.assert_array_equal(of_two("shr.u32 {}, {}, {}", u, by), [x >> n for x, _, n in shifts])
    np.testing.assert_array_equal(of_two("shr.s32 {}, {}, {}", a, by), [x >> n for _, x, n in shifts])
    for name, of in {
        "popc.b32 {0}, {1}": lambda x: x.bit_count(),
        "clz.b32 {0}, {1}": lambda x: 32 - x.bit_length(),
        "brev.b32 {0}, {1}": lambda x: int(f"{x:032b}"[::-1], 2),
        "bfind.u32 {0}, {1}": lambda x: x.bit_length() - 1 if x else 0xFFFFFFFF,
        "bfind.shiftamt.u32 {0}, {1}": lambda x: 32 - x.bit_length() if x else 0xFFFFFFFF,
        "lop3.b32 {0}, {1}, 0xff00ff00, 0x12345678, 0xca": lambda x: x & 0xFF00FF00 | ~x & 0x12345678,
        "prmt.b32 {0}, {1}, 0x44332211, 0x5410": lambda x: x & 0xFFFF | 0x2211 << 16,
        "shf.l.wrap.b32 {0}, {1}, {1}, 5": lambda x: (x << 5 | x >> 27) & 0xFFFFFFFF,
        "not.b32 {0}, {1}": lambda x: x ^ 0xFFFFFFFF,
    }.items():
        np.testing.assert_array_equal(of_two(name, u, u), [of(x) for x in big(u)], err_msg=name)
    wide = ints(6, np.uint64)
    low = of_two("bfi.b64 {}, {}, {}, 32, 32", wide, wide[::-1].copy())
    assert big(low) == [
        (y & 0xFFFFFFFF) | (x & 0xFFFFFFFF) << 32 for x, y in zip(big(wide), big(wide[::-1]), strict=True)
    ]


FLOAT = {
    "add.f{}": np.add, "sub.f{}": np.subtract, "mul.f{}": np.multiply, "div.rn.f{}": np.divide, "min.f{}": np.fmin,
    "max.f{}": np.fmax, "copysign.f{}": lambda a, b: np.copysign(b, a),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FLOAT)
def test_floats(name, dtype):
    a, b = floats(1, dtype), np.roll(floats(2, dtype), 3)
    with np.errstate(all="ignore"):
        wanted = FLOAT[name](a, b)
    np.testing.assert_array_equal(of_two(f"{name.format(8 * a.itemsize)} {{}}, {{}}, {{}}", a, b), wanted)


def test_fused_products_round_once():
    a = np.array([1 + 2.0**-12, 3, 2.0**-60], np.float32)
    found = of_two("fma.rn.f32 {0}, {1}, {2}, 0fBF800000", a, a)
    np.testing.assert_array_equal(found, np.float32(a.astype(np.float64) ** 2 - 1))
    assert found[0] == np.float32(2.0**-11 + 2.0**-24)  # the product rounded by itself would lose its last bit


def test_approximations_are_as_far_off_as_they_may_be():
    x = np.abs(floats(7))[9:]
    found = of_two("rsqrt.approx.f32 {0}, {1}", x, x).astype(np.float64) * np.sqrt(x.astype(np.float64)) - 1
    assert (abs(found) < 2.0**-22.9 + 2.0**-24).all() and (found > 2.0**-24).any() and (found < -(2.0**-24)).any()


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(name):
    a, b = floats(1), np.roll(floats(1), 1)
    b[::2] = a[::2]
    ordered = ~(np.isnan(a) | np.isnan(b))
    wanted = getattr(
        np,
        {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}[
            name
        ],
    )(a, b)
    select = "setp.{}.f32 %p1, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p1"
    out = np.zeros(64, np.uint32)
    np.testing.assert_array_equal(of_two(select.format(name), a, b, out), wanted & ordered)
    np.testing.assert_array_equal(of_two(select.format(name + "u"), a, b, out), wanted | ~ordered)


def test_conversions():
    x = floats(8)
    with np.errstate(all="ignore"):
        half = x.astype(np.float16)
    found = of_two("cvt.rn.f16x2.f32 {}, {}, {}", x, x[::-1].copy(), np.zeros(64, np.uint32))
    pairs = found.view(np.uint16).reshape(-1, 2)
    nan = np.isnan(x)
    np.testing.assert_array_equal(pairs[~nan[::-1], 0], half.view(np.uint16)[::-1][~nan[::-1]])
    np.testing.assert_array_equal(pairs[~nan, 1], half.view(np.uint16)[~nan])
    whole = of_two("cvt.rzi.s32.f32 {0}, {1}", x, x, np.zeros(64, np.int32))
    clipped = np.clip(np.nan_to_num(np.trunc(x.astype(np.float64)), posinf=1e99, neginf=-1e99), -(2**31), 2**31 - 1)
    np.testing.assert_array_equal(whole, clipped)
    a = ints(9, np.int32)
    np.testing.assert_array_equal(of_two("cvt.s64.s32 {0}, {1}", a, a, np.zeros(64, np.int64)), a)
    np.testing.assert_array_equal(
        of_two("cvt.rn.f32.s32 {0}, {1}", a, a, np.zeros(64, np.float32)), a.astype(np.float32)
    )
    f = of_two(
        "{{.reg .b16 low, high; mov.b32 {{low, high}}, {1}; cvt.f32.f16 {0}, high; }}",
        found,
        found,
        np.zeros(64, np.float32),
    )
    np.testing.assert_array_equal(f, half.astype(np.float32))


# Control, memory and warps


def test_branches_loops_and_many_blocks():
    """Thread t adds up 1 to t + block, in a loop that each leaves at its own time."""
    out = execute(
        """
        mov.u32 %r2, %ctaid.x; mov.u32 %r8, %ntid.x; mad.lo.s32 %r3, %r2, %r8, %r1; add.s32 %r4, %r1, %r2;
        mov.u32 %r5, 0;
    $loop:
        setp.eq.s32 %p1, %r4, 0; @%p1 bra $done;
        add.s32 %r5, %r5, %r4; add.s32 %r4, %r4, -1; bra.uni $loop;
    $done:
        mul.wide.u32 %rd5, %r3, 4; add.s64 %rd6, %rd2, %rd5; st.global.u32 [%rd6], %r5;""",
        [0], np.zeros(70 * 96, np.uint32), threads=96, grid=70,
    )  # fmt: skip
    n = np.arange(96) + np.arange(70)[:, None]
    np.testing.assert_array_equal(out.reshape(70, 96), n * (n + 1) // 2)


def test_threads_that_wait_for_each_other_in_a_loop_get_on():
    out = execute(
        """
        setp.ne.u32 %p1, %r1, 40; @%p1 bra $wait; bra.uni $late;
    $wait:
        ld.volatile.global.u32 %r2, [%rd2]; setp.eq.u32 %p2, %r2, 0; @%p2 bra $wait; bra.uni $end;
    $late:
        mov.u32 %r3, 1; st.global.u32 [%rd2], %r3;
    $end:
        add.s64 %rd5, %rd2, %rd3; st.global.u32 [%rd5+4], %r1;""",
        [0], np.zeros(65, np.uint32), threads=64,
    )  # fmt: skip
    np.testing.assert_array_equal(out, [1, *range(64)])


def test_atomics_lane_after_lane():
    out = execute(
        """
        and.b32 %r2, %r1, 3; mul.wide.u32 %rd5, %r2, 4; add.s64 %rd6, %rd2, %rd5; atom.global.add.u32 %r3, [%rd6], 1;
        add.s64 %rd7, %rd2, %rd3; st.global.u32 [%rd7+16], %r3; red.global.max.u32 [%rd2+272], %r1;""",
        [0], np.zeros(69, np.uint32), threads=64,
    )  # fmt: skip
    assert (out[:4] == 16).all() and out[68] == 63
    np.testing.assert_array_equal(out[4:68], np.arange(64) // 4)


def test_shuffles_and_votes():
    value = np.arange(100, 164, dtype=np.uint32)
    load = "add.s64 %rd5, %rd1, %rd3; ld.global.u32 %r2, [%rd5]; add.s64 %rd6, %rd2, %rd3;"
    lane, base = np.arange(64) % 32, np.arange(64) // 32 * 32
    for text, wanted in {
        "shfl.sync.bfly.b32 %r3, %r2, 5, 31, -1": value[base + (lane ^ 5)],
        "shfl.sync.up.b32 %r3|%p1, %r2, 3, 0, -1": value[base + np.where(lane >= 3, lane - 3, lane)],
        "shfl.sync.down.b32 %r3, %r2, 2, 31, -1": value[base + np.where(lane < 30, lane + 2, lane)],
        "shfl.sync.idx.b32 %r3, %r2, 9, 31, -1": value[base + 9],
        "shfl.sync.idx.b32 %r3, %r2, 1, 0x181f, -1": value[base + lane // 8 * 8 + 1],
        "and.b32 %r4, %r2, 1; setp.ne.u32 %p1, %r4, 0; vote.sync.ballot.b32 %r3, %p1, -1": np.full(64, 0xAAAAAAAA),
    }.items():
        out = execute(f"{load} {text}; st.global.u32 [%rd6], %r3;", value, np.zeros(64, np.uint32), threads=64)
        np.testing.assert_array_equal(out, wanted, err_msg=text)


def test_halves_of_a_warp_meet_by_their_masks():
    out = execute(
        """
        mov.u32 %r3, 0xffff; setp.lt.u32 %p1, %r1, 16; @%p1 bra $one; mov.u32 %r3, 0xffff0000;
        shfl.sync.bfly.b32 %r4, %r1, 1, 31, %r3; bra.uni $join;
    $one:
        shfl.sync.bfly.b32 %r4, %r1, 2, 31, %r3;
    $join:
        bar.warp.sync -1; add.s64 %rd5, %rd2, %rd3; st.global.u32 [%rd5], %r4;""",
        [0], np.zeros(32, np.uint32),
    )  # fmt: skip
    np.testing.assert_array_equal(out, [i ^ 2 for i in range(16)] + [i ^ 1 for i in range(16, 32)])


COPY = """
    mov.u32 %r2, dynamic; shl.b32 %r3, %r1, 4; add.s32 %r4, %r2, %r3; mul.wide.u32 %rd5, %r1, 16;
    add.s64 %rd6, %rd1, %rd5;
    cp.async.cg.shared.global [%r4], [%rd6], 16, %r5; cp.async.commit_group;
"""
STORE = "ld.shared.u32 %r6, [%r4]; add.s64 %rd7, %rd2, %rd3; st.global.u32 [%rd7], %r6;"


def test_copies_land_at_the_wait():
    data = np.arange(128, dtype=np.uint32)
    options = {"threads": 32, "shared_bytes": 512}
    full = "setp.lt.u32 %p1, %r1, 20; selp.b32 %r5, 16, 0, %p1;" + COPY
    out = execute(f"{full} cp.async.wait_group 0; {STORE}", data, np.zeros(32, np.uint32), **options)
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 20, data[::4], 0))
    early = execute(f"{full} {STORE} cp.async.wait_all;", data, np.zeros(32, np.uint32), **options)
    assert (early == 0xFFFFFFFF).all()
    two = full + "cp.async.commit_group; cp.async.wait_group 1;" + STORE
    np.testing.assert_array_equal(execute(two, data, np.zeros(32, np.uint32), **options), out)


BAD = {
    "out of bounds: 16 bytes at 240 of the 248 bytes of input": "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+240];",
    "no device array at address 0x1000f8, 0 bytes behind input": "ld.global.u32 %r2, [%rd1+248];",
    "no device array at address 0x10015c, 100 bytes behind input": "ld.global.u32 %r2, [%rd1+348];",
    "out of bounds: no device array at address 0x0": "mov.u64 %rd9, 0; st.global.u32 [%rd9], %r1;",
    "of the block's 64 bytes of shared memory": "mov.u32 %r2, dynamic; st.shared.u32 [%r2+64], %r1;",
    "of the block's 64 bytes of shared": "mov.u32 %r2, 0; st.shared.u32 [%r2], %r1;",
    "misaligned: 8 bytes": "ld.global.v2.u32 {%r2, %r3}, [%rd1+4];",
    "a copy never waited for": "mov.u32 %r2, dynamic; cp.async.ca.shared.global [%r2], [%rd1], 4;",
    "has not ended": "$for: bra $for;",
    "threads wait in `bar.sync 0`": "setp.lt.u32 %p1, %r1, 5; @%p1 bra $out; bar.sync 0; $out:",
    "divergent barrier": "setp.lt.u32 %p1, %r1, 5; @%p1 bra $out; bar.sync 0; bra $end; $out: bar.sync 0; $end:",
    "wait for other lanes in `shfl": """setp.lt.u32 %p1, %r1, 5; @%p1 bra $out;
        shfl.sync.idx.b32 %r2, %r1, 0, 31, -1; $out:""",
    "a thread that its mask does not name": "shfl.sync.idx.b32 %r2, %r1, 0, 31, 0xff;",
    "reads a lane that has not come": """setp.gt.u32 %p1, %r1, 7; @%p1 bra $out;
        shfl.sync.bfly.b32 %r2, %r1, 8, 31, 0xff; $out:""",
    "trap": "trap;",
}


@pytest.mark.parametrize("message", BAD)
def test_faults_are_named(message, monkeypatch):
    monkeypatch.setattr("ptx.machine.MOST_STEPS", 50_000)
    with pytest.raises(Fault, match=message) as fault:
        execute(BAD[message], np.zeros(62, np.uint32), np.zeros(64, np.uint32), shared_bytes=64)
    assert "of k" in str(fault.value) and "thread (" in str(fault.value)


def test_what_is_unknown_is_named():
    for body in (
        "tex.1d.v4.f32.s32 %r2, [%rd1];",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1}, {%fd2}, {%fd3}, {%fd4};",
    ):
        with pytest.raises(Unsupported, match=rf"PTX line \d+.*of k|{body[:5]}"):
            execute(body, np.zeros(64, np.uint32), np.zeros(64, np.uint32))


# Tensor cores


@pytest.mark.parametrize("shape", ["m16n8k16", "m16n8k8"])
def test_fragments_lie_as_the_manual_says(shape):
    """Each place of each matrix once; single elements, so that no two errors make up for each other."""
    layout = Layout(shape, "f16")
    depth = layout.depth
    for places, size in ((layout.a, 16 * depth), (layout.b, 8 * depth), (layout.c, 128)):
        assert sorted(places) == list(range(size))
    if shape == "m16n8k16":  # groupID = lane / 4: "row = groupID for ai where 0 <= i < 2 || 4 <= i < 6"
        for lane, i in ((0, 0), (5, 1), (17, 2), (30, 5), (31, 7)):
            row = lane // 4 + (0 if i in (0, 1, 4, 5) else 8)
            column = lane % 4 * 2 + (i & 1) + (0 if i < 4 else 8)
            assert layout.a[8 * lane + i] == row * 16 + column


NASTY = [  # addends, and their sum as a V100, an A100 and an H100 make it
    ([1, -1, 2.0**-26], [0, 0, 0]),
    ([1, 2.0**-24, 2.0**-24], [1, 1 + 2.0**-23, 1 + 2.0**-23]),
    ([2, -2, 2.0**-24], [0, 0, 2.0**-24]),
]


@pytest.mark.parametrize(("addends", "sums"), NASTY)
def test_chips_cut_addends_off(addends, sums):
    a, b = np.zeros((1, 16, 16)), np.zeros((1, 16, 8))
    a[0, 0, : len(addends)] = 1
    b[0, : len(addends), 0] = addends
    for model, wanted in zip(("v100", "a100", "h100"), sums, strict=True):
        assert dot(a, b, np.zeros((1, 16, 8)), MODELS[model])[0, 0, 0] == wanted, model
    exact = float(np.sum(addends))
    assert abs(dot(a, b, np.zeros((1, 16, 8)), MODELS["exact"])[0, 0, 0] - exact) <= 2.0**-23 * exact


@pytest.mark.parametrize("model", MODELS)
def test_no_product_loses_more_than_its_bound(model):
    """Under the bound by far at random, and near it where many small addends meet a large one."""
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(300, 16, 16)) * 2.0 ** rng.integers(-12, 3, (300, 16, 16))).astype(np.float16).astype(float)
    b = (rng.normal(size=(300, 16, 8)) * 2.0 ** rng.integers(-12, 3, (300, 16, 8))).astype(np.float16).astype(float)
    a[:50, :, 1:], b[:50], a[:50, :, 0] = 2.0**-12 * 1.9, 2.0**-11 * 1.9, 2.0**11
    c = rng.normal(size=(300, 16, 8)).astype(np.float32).astype(float)
    c[::2] = 0
    lost = np.abs(dot(a, b, c, MODELS[model]) - (a @ b + c))
    share = lost / (MODELS[model].error() * (np.abs(a) @ np.abs(b) + np.abs(c)))
    assert 0.1 < share.max() <= 1
