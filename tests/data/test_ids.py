"""Ids as a sequence: loops, positions, membership, arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from wals_gpu.data.ids import Ids

WORDS = Ids(pa.array(["ann", "bob", "eve", "zoé"]), "user")
NUMBERS = Ids(np.array([-5, 10, 20, 2**40]), "user")
UNSIGNED = Ids(np.array([0, 7, 8, 2**64 - 1], np.uint64), "user")
EMPTY = Ids(np.array([], np.int64), "user")

every = pytest.mark.parametrize("ids", [WORDS, NUMBERS, UNSIGNED], ids=["strings", "integers", "unsigned"])


@every
def test_ids_are_a_sequence(ids):
    plain = ids.ids.tolist()
    assert list(ids) == plain == ids.tolist() == ids.to_numpy().tolist() and list(reversed(ids)) == plain[::-1]
    assert {type(each) for each in ids} == {type(plain[0])}
    assert [ids[k] for k in range(-4, 4)] == [plain[k] for k in range(-4, 4)]
    assert type(ids[np.int32(1)]) is type(plain[0]) and ids[np.uint8(1)] == ids[np.array(1)] == plain[1]
    for part in (slice(None), slice(1, 3), slice(None, None, -1), slice(-2, None), slice(9, 12)):
        assert ids[part].tolist() == plain[part]
    assert ids[[3, 0, 0]].tolist() == [plain[3], plain[0], plain[0]]
    assert ids[np.array([[0, 1], [2, 3]])].tolist() == [plain[:2], plain[2:]]
    assert ids[np.array([True, False, False, True])].tolist() == [plain[0], plain[3]]
    assert ids[[]].tolist() == []
    assert list(EMPTY) == EMPTY[:].tolist() == EMPTY.tolist() == [] and 0 not in EMPTY


@every
def test_positions_outside_are_refused(ids):
    for index in (4, -5, np.int64(4)):
        with pytest.raises(IndexError, match=r"index must be in \[-4, 4\) for 4 user ids"):
            ids[index]
    with pytest.raises(IndexError):
        ids[[4]]
    with pytest.raises(IndexError, match=r"take\(\) reads -1 as 'none'"):  # not silently the last one
        ids[np.array([0, -1])]
    with pytest.raises(IndexError, match="a mask must have shape"):
        ids[np.array([True, False])]
    for index in ("ann", 1.0, None, True, ["ann"], [0.5]):
        with pytest.raises(TypeError, match="index_of"):
            ids[index]


def test_what_is_no_text_is_no_id():
    many = Ids(pa.array(sorted(f"user {k}" for k in range(1000))), "user")  # a few are looked for in another way
    for ids in (WORDS, many):
        for wrong in (b"ann", ["ann", b"bob"], ["ann", 3], [None], ["ann", None], ["ann", np.nan], "\ud800", {"ann"}):
            with pytest.raises(TypeError, match="user ids are strings, got"):
                ids.find(wrong)
    assert WORDS.find([]).shape == (0,) and WORDS.find(np.array(["bob", "x"])).tolist() == [1, -1]


@every
def test_membership_never_fails(ids):
    plain = ids.tolist()
    assert all(each in ids for each in plain)
    for stranger in (
        "nobody", 3, 2**70, -(2**70), 1.0, 10.0, None, True, b"ann", ["ann"], [10], {"a": 1}, {10}, (7,), object(),
        np.array(["ann"]), np.array([10, 20]), np.nan, "\ud800", np.datetime64("2024-01-01"),
    ):  # fmt: skip
        assert stranger not in ids, stranger
    assert (np.str_("bob") in ids) == ("bob" in plain)
    assert (np.int64(20) in ids) == (20 in plain)
    assert (np.uint64(7) in ids) == (7 in plain)
    assert False not in UNSIGNED and np.False_ not in UNSIGNED  # 0 is


@every
def test_ids_convert_to_arrays(ids):
    array = np.asarray(ids)
    assert array.dtype == ids.ids.dtype and array.tolist() == ids.tolist()
    assert np.array(ids, dtype=object).tolist() == ids.tolist()
    copied = np.array(ids)
    copied[0] = copied[1]  # nobody else's
    assert ids[0] != ids[1]
    assert pa.array(ids).to_pylist() == ids.tolist()
    assert np.isin(ids.tolist()[:2], np.asarray(ids)).all()
    assert ids == Ids(ids.ids if ids.kind == "integer" else pa.array(ids), "user")
    with pytest.raises(TypeError, match="unhashable"):
        hash(ids)


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="copy= of numpy.asarray is NumPy 2's")
def test_an_array_is_shared_only_where_there_is_one():
    assert np.shares_memory(np.asarray(NUMBERS, copy=False), NUMBERS.ids)
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(WORDS, copy=False)
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(NUMBERS, dtype=np.float64, copy=False)


def test_frames_take_ids():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for ids in (WORDS, NUMBERS):
        frame = pd.DataFrame({"user": ids, "n": range(4)})
        assert frame["user"].tolist() == ids.tolist() and pd.Index(ids).tolist() == ids.tolist()
        assert frame[frame["user"].isin(ids)].shape == (4, 2)
        assert pl.Series(ids.tolist()).to_list() == ids.tolist()


@every
def test_subsets(ids):
    part = ids.subset([0, 2])
    assert isinstance(part, Ids) and part.side == "user" and part.kind == ids.kind
    assert part.tolist() == [ids[0], ids[2]] and part.find(ids[2]) == 1
    assert ids.subset([]).tolist() == [] and ids.subset(range(4)) == ids
    with pytest.raises(ValueError, match="strictly increasing"):
        ids.subset([2, 0])


def test_a_loop_over_many_ids_gives_all():
    many = np.arange(200_003) * 3
    assert list(Ids(many)) == many.tolist()
    assert list(Ids.encode(pa.array(many.astype(str)))[0])[-1] == max(map(str, many))


@pytest.mark.parametrize("texts", [True, False], ids=["strings", "integers"])
def test_ids_with_others_among_them(texts):
    """A few are put into their places, many sorted with the rest."""
    rng = np.random.default_rng(0)
    for n_old, n_new in ((0, 3), (5, 0), (7, 9), (400, 1), (400, 5), (400, 90)):
        values = rng.choice(5000, n_old + n_new, replace=False).tolist()
        values = [f"é{value}" if value % 3 else f"z{value}" for value in values] if texts else values
        old, new = sorted(values[:n_old]), values[n_old:]
        ids = Ids(pa.array(old, pa.large_string()) if texts else np.array(old, np.int64), "item")
        merged, places, added = ids.insert(new)
        assert merged.tolist() == sorted(values) and merged.side == "item"
        assert merged.take(places).tolist() == old and merged.take(added).tolist() == new
    with pytest.raises(ValueError, match=r"item ids must be (strictly increasing|distinct)"):
        ids.insert([old[3]])


def test_integers_with_larger_ones_among_them():
    merged, _, added = NUMBERS.subset([1, 2]).insert([2**64 - 1, 3])
    assert merged.tolist() == [3, 10, 20, 2**64 - 1] and added.tolist() == [3, 0]
    with pytest.raises(
        ValueError, match="user ids must be integers of 64 bits together, got -5 and 18446744073709551615"
    ):
        NUMBERS.insert([2**64 - 1])


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_numbers_that_lie_close_together_are_looked_up_and_others_sorted_alike(kind):
    from wals_gpu.data.ids import dense_positions

    rng, limits = np.random.default_rng(3), np.iinfo(kind)
    ends = [(limits.min, limits.min + 100), (limits.max - 100, limits.max)]
    if limits.max > 40_000:  # as far apart as a table is made for, and one further
        ends += [(7, 7 + 500 + (1 << 14) - 1), (7, 7 + 500 + (1 << 14)), (limits.min, limits.max)]
    for low, high in ends:
        numbers = rng.integers(low, high, 500, dtype=kind, endpoint=True)
        numbers[17], numbers[400] = low, high
        distinct, position = np.unique(numbers, return_inverse=True)
        ids, found = Ids.encode(pa.array(numbers), "user")
        assert ids.tolist() == distinct.tolist() and found.dtype == np.int32
        np.testing.assert_array_equal(found, position)
        dense = dense_positions([numbers[:100], numbers[:0], numbers[100:]])
        assert (dense is not None) == (high - low < 500 + (1 << 14))
        if dense is not None:
            assert dense[0].tolist() == distinct.tolist()
            np.testing.assert_array_equal(dense[1], position)
    assert dense_positions([]) is None and dense_positions([np.empty(0, kind)]) is None
