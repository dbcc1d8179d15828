"""The CUDA emulator: what it computes, and that it finds what it says it finds (tools/cuda_emulator/tests)."""

import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from emulated import ROOT, load

sys.path.insert(0, str(ROOT / "tools"))
from ptx.tensor import MODELS, Layout, multiply

pytestmark = pytest.mark.waits_for("emulator")
TESTS = ROOT / "tools" / "cuda_emulator" / "tests"
# Orders in which threads and blocks take turns; results and findings may depend on none of them.
SCHEDULES = [
    {"order": "forward"},
    {"order": "reverse"},
    {"order": "random", "seed": 1},
    {"order": "random", "seed": 2, "resident_blocks": 3},
    {"order": "forward", "eager_copies": True, "resident_blocks": 2},
]


def lines(source: str, tag: str) -> set[str]:
    """ "file:line" of the lines of a test kernel's source that end with the comment "line: tag"."""
    text = (TESTS / source).read_text().splitlines()
    found = {f"{source}:{n}" for n, line in enumerate(text, 1) if line.rstrip().endswith(f"// line: {tag}")}
    assert found, f"no line of {source} is marked {tag!r}"
    return found


@pytest.fixture(params=["plain", "checked"])
def module(request):
    module = load("_emulator_tests" + ("_checked" if request.param == "checked" else ""))
    assert module.checked == (request.param == "checked")
    module.configure()
    yield module
    module.configure()


@pytest.fixture
def checked():
    module = load("_emulator_tests_checked")
    module.configure()
    yield module
    module.configure()


@pytest.fixture
def plain():
    module = load("_emulator_tests")
    module.configure()
    yield module
    module.configure()


# ---- the planted bugs ----


def planted(module, bug: int, n_rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Runs the planted kernel on rows of 0 to 40 items; returns its result and the right one."""
    rng = np.random.default_rng(bug)
    lengths = np.array([0, 1, 15, 16, 17, 40])[:n_rows]
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    col_idx = rng.integers(0, 50, row_ptr[-1]).astype(np.int32)
    table = rng.integers(-4, 5, (50, 32)).astype(np.float32)  # small whole numbers: sums are exact
    arrays = {"row_ptr": row_ptr, "col_idx": col_idx, "table": table, "out": np.zeros((n_rows, 32), np.float32)}
    device = [module.device_array(array, name) for name, array in arrays.items()]
    module.planted(bug, *device)
    grams = [table[col_idx[b:e]].T @ table[col_idx[b:e]] for b, e in pairwise(row_ptr)]
    return device[3], np.array([gram.sum(1) for gram in grams])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_clean_kernel_is_right_and_silent(module, schedule):
    module.configure(**schedule)
    out, expected = planted(module, 0)
    np.testing.assert_array_equal(out, expected)


# bug: kind, and what must be named: at least one line of each of these tags
CHECKED_FINDINGS = {
    1: ("race", ["copy", "read"]),  # no barrier after the wait for copies
    2: ("copy in flight", ["read", "copy"]),  # no wait for copies
    3: ("out of bounds", ["overrun"]),  # a store behind shared memory's last array
    4: ("divergent barrier", ["divergent"]),  # a barrier in a branch
    5: ("race", ["use", "store"]),  # no barrier between the fragments' store and use
    6: ("divergent warp", ["half"]),  # half of a warp shuffles with the whole warp's mask
    7: ("race", ["result"]),  # two blocks write one row
    8: ("out of bounds", ["copy"]),  # an index outside the table
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("bug", CHECKED_FINDINGS)
def test_the_checked_build_finds_each_planted_bug(checked, bug, schedule):
    kind, tags = CHECKED_FINDINGS[bug]
    checked.configure(**schedule)
    with pytest.raises(checked.EmulatorError) as error:
        planted(checked, bug)
    findings = [f for f in str(error.value).splitlines() if f.startswith(kind)]
    named = set(re.findall(r"planted\.cu:\d+", "\n".join(findings)))
    assert all(named & lines("planted.cu", tag) for tag in tags), error.value
    assert named <= set().union(*(lines("planted.cu", tag) for tag in tags)) or bug in (4, 6), error.value


# What the plain build sees at once; the others give a wrong result or, by luck, a right one.
PLAIN_FINDINGS = {
    2: ("copy never waited for", "copy"),
    3: ("out of bounds", "overrun"),
    4: ("divergent barrier", "divergent"),
    6: ("divergent warp", "half"),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("bug", PLAIN_FINDINGS)
def test_the_plain_build_finds_some(plain, bug, schedule):
    kind, tag = PLAIN_FINDINGS[bug]
    plain.configure(**schedule)
    with pytest.raises(plain.EmulatorError, match=f"(?m)^{kind}") as error:
        planted(plain, bug)
    assert any(line in str(error.value) for line in lines("planted.cu", tag)), error.value


@pytest.mark.parametrize("bug", [1, 5])
def test_poisoned_shared_memory_shows_missing_barriers_in_the_plain_build(plain, bug):
    wrong = 0
    for schedule in SCHEDULES[:4]:
        plain.configure(**schedule)
        out, expected = planted(plain, bug)
        wrong += not np.array_equal(out, expected)
    assert wrong >= 3


# ---- features ----


def feature(module, name, words, *, n_blocks=1, block=None, smem=0, n_out=None):
    """Runs a feature kernel, one word a thread (`words` is a multiple of blocks); returns its words."""
    words = np.ascontiguousarray(words, np.uint32)
    block = block or len(words) // n_blocks
    inputs = module.device_array(words, "in")
    out = module.device_array(np.zeros(n_out or n_blocks * block, np.uint32), "out")
    module.feature(name, n_blocks, block, smem, inputs, out)
    return out


def random_words(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)


def warps(x):
    return np.asarray(x).reshape(-1, 32)


def pack_bits(odd):
    """The ballot of each row of booleans."""
    return (odd.astype(np.uint64) << np.arange(odd.shape[1], dtype=np.uint64)).sum(1).astype(np.uint32)


LANE = np.arange(32)
EXPECTED = {
    "Shuffle": lambda x: x[:, [5] * 32],
    "ShuffleWidth8": lambda x: x[:, LANE // 8 * 8 + (LANE + 3) % 8],
    "ShuffleUp": lambda x: x[:, np.where(LANE % 16 >= 3, LANE - 3, LANE)],
    "ShuffleXor": lambda x: x[:, LANE ^ 9],
    "ShuffleDouble": lambda x: x[:, LANE ^ 1],
    "ShuffleHalves": lambda x: np.hstack(
        [x[:, LANE[:16] ^ 3], np.repeat(pack_bits(x[:, 16:] & 1)[:, None] << np.uint32(16), 16, axis=1)]
    ),
    "Ballot": lambda x: np.repeat(pack_bits(x & 1)[:, None], 32, axis=1),
    "Reverse": lambda x: x.ravel()[::-1],
    "WarpExchange": lambda x: x[:, LANE ^ 1],
    "HalfWords": lambda x: x & 0xFFFF,
    "CountBarrier": lambda x: np.full(x.size, (x & 1).sum()),
    "OrBarrier": lambda x: np.full(x.size, (x & 1).any()),
    "CopyStages": lambda x: x,
    "Bits": lambda x: np.array([v.bit_count() + 100 * (v & -v).bit_length() for v in map(int, x.ravel())]),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", EXPECTED)
def test_features(module, name, schedule):
    module.configure(**schedule)
    words = random_words(64)
    cases = [words, words | 1, words & ~np.uint32(1), words % np.uint32(3)]
    if name == "ShuffleDouble":
        cases = [words >> np.uint32(1)]
    for case in cases:
        np.testing.assert_array_equal(
            feature(module, name, case), np.ravel(EXPECTED[name](warps(case))).astype(np.uint32)
        )


def test_atomics(module):
    words = random_words(64)
    for schedule in SCHEDULES:
        module.configure(**schedule)
        got = feature(module, "AtomicKinds", words)[:3]
        total = np.uint32(-int((words & 255).sum()) % 2**32)
        np.testing.assert_array_equal(got, [total, words.max(), np.bitwise_or.reduce(words)])
        assert feature(module, "Counter", random_words(256), n_blocks=8, n_out=257)[256] == 256


def test_resident_blocks_run_interleaved(module):
    module.configure(resident_blocks=4)
    assert feature(module, "GridBarrier", random_words(128), n_blocks=4, n_out=129)[:128].all()


def test_the_random_order_depends_on_its_seed_alone(plain):
    def ticket_order(seed):
        plain.configure(order="random", seed=seed)
        out = feature(plain, "BlocksByAtomic", random_words(16 * 32), n_blocks=16, n_out=16 * 32 + 17)
        return np.flatnonzero(out[: 16 * 32 : 32])

    assert ticket_order(1) == ticket_order(1)
    assert len({int(ticket_order(seed)[0]) for seed in range(8)}) > 1


# name: kind, tags of lines that must be named; found by both builds
FINDINGS_OF_BOTH = {
    "CopyMisaligned": ("misaligned", ["misaligned copy"]),
    "VectorMisaligned": ("misaligned", ["misaligned vector"]),
    "TwoLines": ("divergent barrier", ["first of two", "second of two"]),
    "ExitEarly": ("divergent barrier", ["others left"]),
    "OutsideMask": ("divergent warp", ["outside"]),
    "SourceOutsideMask": ("divergent warp", ["source"]),
    "TwoMasks": ("divergent warp", ["one mask", "other mask"]),
    "Recursion": ("stack overflow", ["deep"]),
}
FINDINGS_OF_CHECKED = {
    "ReverseNoBarrier": ("race", ["race write", "race read"]),
    "WarpExchangeByBallot": ("race", ["ballot write", "ballot read"]),
    "WarpExchangeAcrossWarps": ("race", ["across write", "across read"]),
    "WriteAfterRead": ("race", ["war read", "war write"]),
    "CopyOverread": ("race", ["overread read", "copy of a word"]),
    "Uninitialised": ("uninitialised read", ["uninitialised"]),
    "CopyTouched": ("copy in flight", ["in flight"]),
    "NegativeIndex": ("out of bounds", ["before"]),
    "TooFar": ("out of bounds", ["behind"]),
    "SharedTooFar": ("out of bounds", ["shared behind"]),
}


def check_finding(module, name, kind, tags, **arguments):
    for schedule in SCHEDULES:
        module.configure(**schedule)
        with pytest.raises(module.EmulatorError) as error:
            feature(module, name, np.ones(64, np.uint32), smem=256, **arguments)
        found = "\n".join(
            f for f in str(error.value).splitlines() if f.startswith(kind + ":") or f.startswith(kind + " in")
        )
        for tag in tags:
            assert any(line in found for line in lines("features.cu", tag)), error.value


@pytest.mark.parametrize("name", FINDINGS_OF_BOTH)
def test_findings_of_both_builds(module, name):
    check_finding(module, name, *FINDINGS_OF_BOTH[name])


@pytest.mark.parametrize("name", ["TooFar", "SharedTooFar"])
def test_the_plain_build_faults_behind_arrays(plain, name):
    check_finding(plain, name, *FINDINGS_OF_CHECKED[name])


def test_findings_name_the_access(checked):
    with pytest.raises(checked.EmulatorError, match="byte -4 of buffer 'in' of 256 bytes"):
        feature(checked, "NegativeIndex", np.ones(64, np.uint32))
    with pytest.raises(
        checked.EmulatorError, match=r"read of 4 bytes at byte 256 of buffer 'in' of 256 bytes by thread \(0, "
    ):
        feature(checked, "TooFar", np.ones(64, np.uint32))


@pytest.mark.parametrize("name", FINDINGS_OF_CHECKED)
def test_findings_of_the_checked_build(checked, name):
    check_finding(checked, name, *FINDINGS_OF_CHECKED[name])


def test_an_atomic_orders_nothing_between_blocks(checked):
    checked.configure(resident_blocks=4)
    with pytest.raises(checked.EmulatorError, match=r"race: byte .* of buffer 'out'") as error:
        feature(checked, "BlocksByAtomic", random_words(8 * 32), n_blocks=8, n_out=8 * 32 + 9)
    assert all(
        any(line in str(error.value) for line in lines("features.cu", tag)) for tag in ("part written", "part read")
    )


@pytest.mark.parametrize("schedule", SCHEDULES[::3], ids=str)
@pytest.mark.parametrize("name", ["Memory", "Atomic", "Barrier", "Warp"])
def test_a_kernel_that_hangs_is_ended_with_its_name_and_place(module, name, schedule):
    module.configure(**schedule, seconds=0.05)
    kernel = "SpinInWarp" if name == "Warp" else f"SpinOn{name}"
    with pytest.raises(module.EmulatorError, match=rf"hang: .*{kernel}.* has not ended after 0.05 s; thread") as error:
        feature(module, kernel, np.ones(64, np.uint32))
    assert any(line in str(error.value) for line in lines("features.cu", f"spin {name.lower()}")), error.value
    np.testing.assert_array_equal(feature(module, "Reverse", np.arange(64)), np.arange(64)[::-1])


def test_seconds_have_to_be_some(module):
    with pytest.raises(ValueError, match="seconds must be above 0, got 0"):
        module.configure(seconds=0)


def test_a_launch_works_after_one_that_failed(module):
    for name in ("TwoLines", "Recursion", "ShuffleXor", "TooFar"):
        words = np.ones(64, np.uint32)
        try:
            feature(module, name, words)
        except module.EmulatorError:
            pass
        np.testing.assert_array_equal(feature(module, "Reverse", np.arange(64)), np.arange(64)[::-1])


def test_memory_of_the_host_is_no_buffer(checked):
    words, out = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    with pytest.raises(checked.EmulatorError, match="in no known buffer"):
        checked.feature("Reverse", 1, 64, 0, words, out)


# ---- limits ----


def test_limits_of_a_launch(module):
    words = np.ones(64, np.uint32)
    for architecture, kib in ((75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)):
        module.configure(architecture=architecture)
        feature(module, "Ballot", words, smem=kib * 1024)
        with pytest.raises(module.EmulatorError, match=f"at most {kib * 1024} on sm_{architecture}"):
            feature(module, "Ballot", words, smem=kib * 1024 + 1)
        with pytest.raises(module.EmulatorError, match="static and dynamic"):  # 4096 bytes of them are static
            feature(module, "Reverse", words, smem=kib * 1024 - 4095)
    feature(module, "Reverse", np.ones(1024))
    for blocks, block in ((1, 1025), (-1, 32), (1, 0)):
        with pytest.raises(module.EmulatorError, match=r"limit: a (grid|block) of"):
            module.feature("Ballot", blocks, block, 0, words, words)
    module.feature("Ballot", 0, 32, 0, words, np.ones_like(words))  # no blocks, no launch
    with pytest.raises(module.EmulatorError, match="carves 4000 bytes, 256 were asked for"):
        feature(module, "CarvedTooMuch", words, smem=256)


def test_settings_are_checked(module):
    for wrong in ({"order": "sideways"}, {"resident_blocks": 0}, {"resident_blocks": 17}, {"architecture": 70}):
        with pytest.raises(ValueError):
            module.configure(**wrong)


# ---- numbers ----


def test_halves_round_as_numpy_does(plain):
    every_half = np.arange(65536, dtype=np.uint32)
    same = feature(plain, "PackHalf", every_half, n_blocks=64)
    number = ~np.isnan(every_half.astype(np.uint16).view(np.float16))
    np.testing.assert_array_equal(same[number], every_half[number])
    values = random_words(1 << 16, seed=3)
    halves = every_half[:0x7C00].astype(np.uint16).view(np.float16).astype(np.float32)  # finite, from 0 up
    ties = ((halves[1:] + halves[:-1]) / 2).view(np.uint32)  # half way between neighbours
    small = np.uint32(0x33000000) + values % np.uint32(1 << 27)  # of the exponents where halves are subnormal
    for x in (values, np.resize(np.concatenate([ties, ties + 1]), 1 << 16), small):
        number = ~np.isnan(x.view(np.float32))
        with np.errstate(over="ignore"):
            expected = x.view(np.float32).astype(np.float16).view(np.uint16)
        half = feature(plain, "ToHalf", x, n_blocks=64) & 0xFFFF
        np.testing.assert_array_equal(half[number], expected[number])


# The published layouts as CUTLASS writes them (its MMA traits for SM80): element v of lane t is at sum(t's digits x
# strides) + sum(v's digits x strides) of a column-major matrix; digits of lanes are 4 and 8, of elements 2.
# K, and for A (16, K), B (8, K) and C (16, 8) the strides of lanes and of elements
K, LAYOUTS = 16, (((32, 1), (16, 8, 128)), ((16, 1), (8, 64)), ((32, 1), (16, 8)))


def positions(layout):
    """(32, elements): where the layout puts each lane's elements."""
    (lane4, lane8), strides = layout
    lanes = np.arange(32) % 4 * lane4 + np.arange(32) // 4 * lane8
    elements = sum((np.arange(2 ** len(strides)) >> digit & 1) * stride for digit, stride in enumerate(strides))
    return lanes[:, None] + elements


def to_registers(values):
    """(32, n) numbers in (32, n / 2) words."""
    return np.ascontiguousarray(values.astype(np.float16)).view(np.uint32)


def mma(module, a, b, c):
    """d = a (16, K) times b (8, K) transposed + c (16, 8) by the kernel, through the published layouts."""
    of = [matrix.ravel(order="F")[positions(layout)] for matrix, layout in zip((a, b, c), LAYOUTS, strict=True)]
    words = [to_registers(of[0]), to_registers(of[1]), of[2].astype(np.float32).view(np.uint32)]
    inputs = module.device_array(np.concatenate([w.ravel() for w in words]), "in")
    out = module.device_array(np.zeros(128, np.uint32), "out")
    module.feature("mma_f16", 1, 32, 0, inputs, out)
    d = np.empty(128, np.float32)
    d[positions(LAYOUTS[2])] = out.view(np.float32).reshape(32, 4)
    return d.reshape(16, 8, order="F")


def test_mma_follows_the_published_layouts(module):
    for layout, size in zip(LAYOUTS, (16 * K, 8 * K, 128), strict=True):
        assert sorted(positions(layout).ravel()) == list(range(size))
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(-8, 9, (16, K)), rng.integers(-8, 9, (8, K)), rng.integers(-99, 99, (16, 8))
    for schedule in SCHEDULES:
        module.configure(**schedule)
        np.testing.assert_array_equal(mma(module, a, b, c), a @ b.T + c)
    # and one element at a time, so that no two errors can make up for each other
    for i, k, j in ((0, 0, 0), (3, 5, 2), (11, K - 1, 7), (15, K // 2, 4)):
        one_a, one_b = np.zeros((16, K)), np.zeros((8, K))
        one_a[i, k], one_b[j, k] = 3, 5
        expected = np.zeros((16, 8))
        expected[i, j] = 15
        np.testing.assert_array_equal(mma(module, one_a, one_b, np.zeros((16, 8))), expected)


def test_mma_rounds_as_said(plain):
    plain.configure(tensor="exact")
    zero_c = np.zeros((16, 8), np.float32)
    a, b = np.zeros((16, K), np.float32), np.zeros((8, K), np.float32)
    a[0, :2], b[:, 0], b[:, 1] = [1, 2.0**-12 * 1.5], 1, 2.0**-12  # the sum 1 + 1.5 2^-24 would round up
    assert (mma(plain, a, b, zero_c)[0] == 1).all()
    assert (mma(plain, -a, b, zero_c)[0] == -1).all()
    a[0, :3], b[:, 1], b[:, 2] = [2.0**15, 1, -(2.0**15)], 1, 2.0**15  # products are summed before they are rounded
    b[:, 0] = 2.0**15
    assert (mma(plain, a, b, zero_c)[0] == 1).all()


def test_mma_cuts_addends_off_as_chips_do(plain):
    a, b, zero_c = np.zeros((16, 16)), np.zeros((8, 16)), np.zeros((16, 8), np.float32)
    a[0, :3], b[:, :3] = 1, [1, -1, 2.0**-24]
    found = []
    for chip in ("v100", "a100", "h100", "exact"):
        plain.configure(tensor=chip)
        found.append(mma(plain, a, b, zero_c)[0, 0])
    assert found == [0, 2.0**-24, 2.0**-24, 2.0**-24]
    with pytest.raises(ValueError, match="tensor must be v100, t4, a100, h100 or exact, got v101"):
        plain.configure(tensor="v101")


@pytest.mark.parametrize("chip", MODELS)
def test_mma_has_the_bits_of_an_interpreter_written_by_itself(plain, chip):
    """tools/ptx reads PTX's registers and adds up as the same chips in its own way."""
    plain.configure(tensor=chip)
    rng = np.random.default_rng(0)
    for large in (0, 1, 1e4):
        numbers = rng.normal(size=(3, 32, 8)) * 2.0 ** rng.integers(-12, 5, (3, 32, 8))
        a, b = to_registers(numbers[0]), to_registers(numbers[1, :, :4])
        c = (large * numbers[2, :, :4]).astype(np.float32)
        inputs = plain.device_array(np.concatenate([w.view(np.uint32).ravel() for w in (a, b, c)]), "in")
        out = plain.device_array(np.zeros(128, np.uint32), "out")
        plain.feature("mma_f16", 1, 32, 0, inputs, out)
        registers = ([each[None, :, i] for i in range(each.shape[1])] for each in (a, b, c))
        expected = multiply(Layout("m16n8k16", "f16"), *registers, MODELS[chip])
        np.testing.assert_array_equal(out, expected.view(np.uint32).ravel())


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_follows_the_published_layout(module, transposed):
    """PTX: lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l // 4 of each matrix, or of its transpose."""
    halves = random_words(32 * 8).astype(np.uint16).reshape(4, 8, 8)  # row i of matrix m comes from lane 8 m + i
    source = halves.transpose(0, 2, 1) if transposed else halves
    expected = source.reshape(4, 32, 2).transpose(1, 0, 2)
    inputs = module.device_array(halves.reshape(-1).view(np.uint32), "in")
    out = module.device_array(np.zeros(32 * 4, np.uint32), "out")
    module.feature("ldmatrix_trans" if transposed else "ldmatrix", 1, 32, 512, inputs, out)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(32, 4, 2), expected)


# ---- the profile ----

PROFILE = {  # tag of one access by a warp: space, wavefronts or sectors, the least possible
    ("BankRows", "column write"): ("shared", 32, 1),
    ("BankRows", "row write"): ("shared", 1, 1),
    ("BankRows", "padded write"): ("shared", 1, 1),
    ("BankRows", "one word"): ("shared", 1, 1),
    ("BankVectors", "vector row"): ("shared", 4, 4),
    ("BankVectors", "vector column"): ("shared", 32, 4),  # 8 lanes at a time, all in banks 0 to 3
    ("BankVectors", "vector padded"): ("shared", 4, 4),
    ("Sectors", "dense"): ("global", 4, 4),
    ("Sectors", "strided"): ("global", 32, 4),
    ("Sectors", "same"): ("global", 1, 1),
    ("Sectors", "vector"): ("global", 16, 16),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "tag"), PROFILE)
def test_profile_counts_wavefronts_and_sectors(checked, name, tag, schedule):
    checked.configure(**schedule, profile=True)
    checked.reset_profile()
    inputs = checked.device_array(np.ones(512, np.uint32), "in")
    out = checked.device_array(np.zeros(96, np.uint32), "out")
    checked.feature(name, 3, 32, 0, inputs, out)
    found = [r for r in checked.profile() if f"features.cu:{r['line']}" in lines("features.cu", tag)]
    space, units, ideal = PROFILE[name, tag]
    assert [(r["space"], r["requests"], r["units"], r["ideal"]) for r in found] == [(space, 3, 3 * units, 3 * ideal)]
    checked.reset_profile()
    assert checked.profile() == []


def test_only_the_checked_build_has_a_profile(plain):
    with pytest.raises(plain.EmulatorError, match="only the checked build"):
        plain.profile()
