"""The native module: what it refuses, the dense kernels, transposition, instruction sets."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array
from solving import solve_rows

from wals_gpu import _cpu
from wals_gpu.backends import make_backend
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.solve import TILE
from wals_gpu.objective.terms import RowTerms

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


# What is refused: everything that would read or write outside an array


def arguments(**changes):
    """Arguments of solve_rows for 2 rows, 3 columns, D = 4, with changes to them or to fields of terms."""
    one = np.ones(1, np.float32)
    terms = {
        "row_ptr": np.array([0, 2, 3]),
        "col_idx": np.array([0, 2, 1], np.int32),
        "rhs": np.ones(3, np.float32),
        "gram": None,
        "gram_offset": -0.5,
        "background": one,
        "ridge": one,
        "other_background": one,
        "target_square": 0.0,
    }
    other = np.eye(3, 4, dtype=np.float32)
    call = {
        "table": _cpu.rotate(other, None, 1),
        "spectrum": np.ones(4),
        "rotation": np.eye(4),
        "prior": None,
        "factors": np.zeros((2, 4), np.float32),
        "solver": "cholesky",
        "cg_steps": 3,
        "cg_tolerance": 0.0,
        "block": 64,
        "relaxation": 1.0,
        "loss": None,
        "n_threads": 1,
    }
    terms |= {name: value for name, value in changes.items() if name in terms}
    call |= {name: value for name, value in changes.items() if name in call}
    assert all(name in terms or name in call for name in changes)
    return {"terms": RowTerms(**terms), **call}


def test_the_arguments_below_are_right_but_for_their_change():
    call = arguments()
    assert _cpu.solve_rows(**call).tolist() == [0, 0]
    assert call["factors"].any()


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_ptr": np.array([0, 2, 4])}, "row_ptr and terms.col_idx do not fit"),
        ({"row_ptr": np.array([0, 2, 2])}, "row_ptr and terms.col_idx do not fit"),
        ({"row_ptr": np.array([0, 4, 3])}, "row_ptr and terms.col_idx do not fit"),
        ({"row_ptr": np.array([1, 2, 3])}, "row_ptr and terms.col_idx do not fit"),
        ({"row_ptr": np.array([0, -1, 3])}, "row_ptr and terms.col_idx do not fit"),
        ({"row_ptr": np.array([[0, 2, 3]])}, "row_ptr must be"),
        ({"row_ptr": np.empty(0, np.int64)}, "row_ptr must be"),
        ({"row_ptr": np.array([0, 3])}, "one row for each row of terms"),
        ({"col_idx": np.array([0, 3, 1], np.int32)}, "index outside"),
        ({"col_idx": np.array([0, -1, 1], np.int32)}, "index outside"),
        ({"rhs": np.ones(2, np.float32)}, "neither"),
        ({"rhs": np.ones((3, 1), np.float32)}, "neither"),
        ({"gram": np.ones(4, np.float32)}, "neither"),
        ({"background": np.ones(3, np.float32)}, "neither"),
        ({"ridge": np.empty(0, np.float32)}, "neither"),
        ({"table": np.zeros((3, 4), np.float32)}, "table must be padded"),
        ({"table": np.zeros((3, 3, 16), np.float32)}, "table must be padded"),
        ({"prior": _cpu.rotate(np.zeros((3, 4), np.float32), None, 1)}, "table must be padded"),
        ({"spectrum": np.ones(3)}, "spectrum must be"),
        ({"rotation": np.eye(3)}, "rotation must be"),
        ({"rotation": np.ones(16)}, "rotation must be"),
        ({"factors": np.zeros((3, 4), np.float32)}, "one row for each row of terms"),
        ({"factors": np.zeros((2, 4), np.float32, order="F")}, "writeable, C-ordered"),
        ({"factors": np.zeros((2, 8), np.float32)[:, ::2]}, "writeable, C-ordered"),
        ({"factors": read_only(np.zeros((2, 4), np.float32))}, "writeable"),
        ({"factors": np.zeros(8, np.float32)}, "writeable, C-ordered"),
        ({"factors": np.zeros((2, 4), np.int32)}, "float32 or float64"),
        ({"factors": np.zeros((2, 4), np.float16)}, "float32 or float64"),
        ({"solver": "lu"}, "unknown solver"),
        ({"block": 0}, "multiple of 16"),
        ({"block": 24}, "multiple of 16"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _cpu.solve_rows(**arguments(**changes))


def test_a_table_off_its_cache_line_is_refused():
    memory = np.zeros(3 * 16 + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    aligned, shifted = (memory[s : s + 48].reshape(3, 16) for s in (start, start + 1 if start < 15 else start - 1))
    _cpu.solve_rows(**arguments(table=aligned))
    with pytest.raises(ValueError, match="table must be padded"):
        _cpu.solve_rows(**arguments(table=shifted))


@pytest.mark.parametrize(
    "changes",
    [
        {"rhs": np.ones(3)},
        {"ridge": np.ones(1)},
        {"table": np.zeros((3, 8))},
        {"row_ptr": np.array([0.0, 2, 3])},
        {"col_idx": np.array([0, 2, 1], np.int64)},
        {"col_idx": None},
    ],
)
def test_dtypes_are_never_narrowed_in_silence(changes):
    with pytest.raises(TypeError):
        _cpu.solve_rows(**arguments(**changes))


def test_loss_gram_rotate_and_transpose_refuse_what_does_not_fit():
    terms = arguments()["terms"]
    x, y = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    assert np.isfinite(_cpu.entry_loss(terms, x, y, 1))
    for wrong in ((x[:, :3], y), (x[:1], y), (x, y[:2]), (x[0], y), (x.astype(np.int8), y)):
        with pytest.raises(ValueError, match=r"factors must|outside"):
            _cpu.entry_loss(terms, *wrong, 1)
    with pytest.raises(ValueError, match="neither"):
        _cpu.gram(y, np.ones(2, np.float32), 1)
    with pytest.raises(ValueError, match="factors must be"):
        _cpu.gram(y[0], np.ones(1, np.float32), 1)
    with pytest.raises(ValueError, match="rotation must be"):
        _cpu.rotate(y, np.eye(3), 1)
    with pytest.raises(ValueError, match="factors must be"):
        _cpu.rotate(y[0], None, 1)
    row_ptr, col_idx, value = np.array([0, 2, 3]), np.array([0, 2, 1], np.int32), np.ones(3, np.float32)
    for wrong, message in (
        ((row_ptr[:2], col_idx, value, 3), "do not fit"),
        ((row_ptr[:0], col_idx[:0], None, 3), "do not fit"),
        ((np.array([0, 4, 3]), col_idx, value, 3), "must not fall"),
        ((row_ptr, col_idx, value, 2), "out of range"),
        ((row_ptr, -col_idx, value, 3), "out of range"),
        ((row_ptr, col_idx, value[:2], 3), "value must be"),
        ((row_ptr, col_idx, np.ones(3, np.int32), 3), "float32 or float64"),
    ):
        with pytest.raises(ValueError, match=message):
            _cpu.transpose(*wrong, 1)


@pytest.mark.parametrize("n", [0, -1])
def test_no_threads_are_refused(n):
    code = (
        "import numpy as np; from wals_gpu import _cpu; y = np.ones((3, 4))\n"
        f"for call in (lambda: _cpu.gram(y, np.ones(1), {n}), lambda: _cpu.rotate(y, np.eye(4), {n})):\n"
        "    try: call()\n"
        "    except ValueError as error: print(error)\n"
    )
    assert run_python(code).stdout.count("threads") == 2


def test_a_signal_ends_a_run_of_rows_that_threads_share():
    """Each row takes a hundredth of a second, less than the time between two questions whether to go on."""

    class Ended(Exception):
        pass

    def end(number, frame):
        raise Ended

    rows, n, d = 600, _cpu.LIMITS.giant_entries, 250
    assert n * d**2 > _cpu.LIMITS.giant_work
    one = np.ones(1, np.float32)
    col_idx = np.tile(np.arange(n, dtype=np.int32), rows)
    terms = RowTerms(np.arange(rows + 1) * n, col_idx, one, one, 0.0, 0 * one, one, one, 0.0)
    factors = np.full((rows, d), np.nan, np.float32)
    other = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    before = signal.signal(signal.SIGALRM, end)
    solved = np.zeros(rows, bool)
    try:
        for seconds in (0.2, 2, 20):  # before the first row is solved on a slow processor
            if not solved.any():
                with pytest.raises(Ended):
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    solve_rows(CpuBackend(2), terms, other, factors)
                solved = np.isfinite(factors).all(axis=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < solved.sum() < rows


# Dense kernels


@both_dtypes
@pytest.mark.parametrize("d", [1, 3, 8, 33, 130])
def test_gram(d, dtype, isa):
    rng = np.random.default_rng(d)
    for n in (0, 1, 255, 256, 257, 2 * 1024 + 5, 5001):
        y = rng.normal(size=(n, d)).astype(dtype)
        weight = rng.uniform(0, 2, n).astype(dtype)
        for w in (weight, np.full(1, 0.5, dtype)):
            y64 = y.astype(np.float64)
            weighted = y64 * np.broadcast_to(w, n)[:, None]
            got = _cpu.gram(y, w, 2)
            assert got.dtype == np.float64 and np.array_equal(got, got.T)
            # Sums in float64, whatever the dtype: off by a few roundings of the sum of absolute values.
            assert np.all(abs(got - weighted.T @ y64) <= 2e-15 * np.sqrt(max(n, 64)) * (abs(weighted).T @ abs(y64)))


@both_dtypes
@pytest.mark.parametrize("d", [1, 7, 16, 33, 130])
def test_rotate(d, dtype, isa):
    rng = np.random.default_rng(d)
    q = rng.normal(size=(d, d))
    lane = 64 // np.dtype(dtype).itemsize
    for n in (0, 1, 2, 7, 257):
        y = rng.normal(size=(n, d)).astype(dtype)
        for rotation in (None, q):
            table = _cpu.rotate(y, rotation, 2)
            assert table.shape == (n, -(-d // lane) * lane) and table.dtype == dtype and table.ctypes.data % 64 == 0
            assert not table[:, d:].any()
            expected = y.astype(np.float64) if rotation is None else y.astype(np.float64) @ q
            size = abs(y.astype(np.float64)) @ abs(q)
            error = abs(table[:, :d] - expected)
            if rotation is None:
                assert not error.any()
            else:  # computed in float64 and rounded once
                assert np.all(error <= np.finfo(dtype).eps / 2 * abs(expected) * 1.001 + 1e-15 * d * size)


def test_arrays_of_any_layout_are_read_as_they_are():
    rng = np.random.default_rng(0)
    big = rng.normal(size=(20, 30))
    for view in (big[::2, 1::3], big.T, np.asfortranarray(big)):
        w = np.ones(1)
        np.testing.assert_array_equal(_cpu.gram(view, w, 1), _cpu.gram(np.ascontiguousarray(view), w, 1))
        np.testing.assert_array_equal(_cpu.rotate(view, None, 1)[:, : view.shape[1]], view)


# Transposition


def assert_transposed(matrix, threads):
    backend = CpuBackend(threads)
    got = backend.transpose(matrix)
    assert got.shape == matrix.shape[::-1] and got.dtype == matrix.dtype and got.indices.dtype == np.int32
    got.check_format(full_check=True)
    assert got.has_canonical_format
    expected = matrix.T.tocsr()
    expected.sort_indices()
    np.testing.assert_array_equal(got.indptr, expected.indptr)
    np.testing.assert_array_equal(got.indices, expected.indices)
    np.testing.assert_array_equal(got.data, expected.data)


@both_dtypes
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_transpose(threads, dtype):
    rng = np.random.default_rng(1)
    for shape, density in (((1, 1), 1), ((5, 9), 0.4), ((300, 2), 0.5), ((2, 3000), 0.3), ((1500, 1001), 0.3)):
        matrix = csr_matrix(random_array(shape, density=density, rng=rng, dtype=dtype, format="csr"))
        matrix.sort_indices()
        assert_transposed(matrix, threads)
    assert matrix.nnz > 7 * 2**16 - 2**16  # enough entries for six threads or more to have a part each
    for shape in ((0, 4), (4, 0), (3, 3)):
        assert_transposed(csr_matrix(shape, dtype=dtype), threads)


@pytest.mark.parametrize("threads", [1, 5])
def test_transpose_of_one_very_long_row_and_of_stored_zeros(threads):
    values = np.arange(400_000, dtype=np.float64)  # the first is a stored zero
    one_row = csr_matrix((values, np.arange(400_000), [0, 0, 400_000, 400_000]), shape=(3, 400_000))
    assert_transposed(one_row, threads)


def test_transpose_without_values():
    row_ptr, col_idx, value = _cpu.transpose(np.array([0, 2, 3]), np.array([0, 2, 2], np.int32), None, 3, 1)
    assert value is None and row_ptr.tolist() == [0, 1, 1, 3] and col_idx.tolist() == [0, 0, 1]


# Instruction sets, threads, device


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["", *_cpu.available_isas()])
def test_environment_chooses_the_instruction_set(name):
    done = run_python("from wals_gpu import _cpu; print(_cpu.isa())", WALS_GPU_ISA=name)
    assert done.stdout.strip() == (name or _cpu.available_isas()[0]), done.stderr


@pytest.mark.parametrize("name", ["avx9", "AVX2", " "])
def test_a_wrong_instruction_set_is_refused_at_import(name):
    done = run_python("from wals_gpu import _cpu", WALS_GPU_ISA=name)
    assert done.returncode == 1
    last = done.stderr.strip("\n").splitlines()[-1]
    assert last == (
        f"ImportError: WALS_GPU_ISA must be one of {' '.join(_cpu.available_isas())} on this processor, got {name}"
    )


def test_a_wrong_instruction_set_changes_nothing(isa):
    with pytest.raises(ValueError, match="no such instruction set"):
        _cpu.use_isa("avx9")
    assert _cpu.isa() == isa


def test_every_processor_has_the_baseline():
    assert _cpu.available_isas()[-1] == "baseline"
    assert len(set(_cpu.available_isas())) == len(_cpu.available_isas())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only on Linux can a process be kept off processors")
def test_number_of_threads():
    assert CpuBackend().num_threads == len(os.sched_getaffinity(0))
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); from wals_gpu.backends.cpu import *; "
    )
    assert run_python(code + "print(CpuBackend().num_threads)").stdout == "1\n"
    assert make_backend("cpu", 3).num_threads == 3
    assert make_backend("cpu", 10**9).num_threads == max(64, os.cpu_count())  # each thread has memory of its own


def test_unknown_device():
    with pytest.raises(ValueError, match=re.escape("device must be 'auto', 'cpu' or 'cuda', got 'tpu'")):
        make_backend("tpu")


def test_loss_needs_a_place_for_every_row():
    with pytest.raises(ValueError, match="loss must be"):
        _cpu.solve_rows(**arguments(loss=np.zeros(3)))
    with pytest.raises(ValueError, match="loss must be"):
        _cpu.solve_rows(**arguments(loss=read_only(np.zeros(2))))


@both_dtypes
@pytest.mark.parametrize("wide", [False, True])
def test_rotate_together(dtype, wide, isa):
    rng = np.random.default_rng(0)
    backend = CpuBackend(2)
    arrays = [backend.empty_factors(n, 48, np.dtype(dtype)) for n in (1, 301)]
    for array in arrays:
        array[:] = rng.standard_normal(array.shape)
    q = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    basis = backend.session(*arrays, may_move=True).basis
    expected = [array.astype(np.float64) @ q for array in arrays]
    _cpu.rotate_together(*arrays, basis, q, wide, 2)
    for got, want in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 if dtype == np.float32 else 1e-13)
    np.testing.assert_allclose(basis, q, atol=1e-14)


def test_rotate_together_refuses_what_it_cannot_do_in_place():
    good = np.zeros((3, 16))
    bads = (np.zeros((3, 15)), np.zeros((3, 32)), np.zeros((3, 32))[:, ::2], read_only(np.zeros((3, 16))), np.zeros(16))
    for bad in (*bads, np.zeros((3, 16), "f4")):
        with pytest.raises((ValueError, IndexError)):
            _cpu.rotate_together(good, bad, np.eye(16), np.eye(16), True, 1)
    for basis in (np.eye(32), np.eye(15)):
        with pytest.raises(ValueError):
            _cpu.rotate_together(good, good.copy(), basis, np.eye(16), True, 1)
    assert CpuBackend(1).session(np.zeros((3, 15)), np.zeros((3, 15)), may_move=True).basis is None


def test_the_tile_of_options_is_the_kernels():
    assert TILE == _cpu.LIMITS.tile
