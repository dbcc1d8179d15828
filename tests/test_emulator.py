"""The CUDA emulator: what it computes, and that it finds what it says it finds (csrc/emulator/tests)."""

import re

import numpy as np
import pytest
from emulated import ROOT, load

TESTS = ROOT / "csrc" / "emulator" / "tests"
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
    table = rng.integers(-4, 5, (50, 32)).astype(np.float32)  # small whole numbers: tf32 sums are exact
    device = [
        module.device_array(a, name)
        for a, name in (
            (row_ptr, "row_ptr"),
            (col_idx, "col_idx"),
            (table, "table"),
            (np.zeros((n_rows, 32), "f4"), "out"),
        )
    ]
    module.planted(bug, *device)
    grams = [table[col_idx[b:e]].T @ table[col_idx[b:e]] for b, e in zip(row_ptr[:-1], row_ptr[1:], strict=True)]
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
