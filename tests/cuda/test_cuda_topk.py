"""Searches on the device: what they move, what stays there, the bound that rules items out, and odd sizes."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from emulated import load
from emulated_cuda import ON_DEVICE, EmulatedMemory, emulated_backend, needs_kernels
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random

from wals_gpu import reference
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_memory import load_cuda
from wals_gpu.retrieval import ExactIndex

pytestmark = needs_kernels


class CountingMemory:
    """Device memory that counts what goes over the bus; both ways wait for the device."""

    def __init__(self, memory):
        self._memory = memory
        self.clear()

    def clear(self):
        self.uploads, self.downloads, self.workspace = [], [], None

    def upload(self, array):
        if isinstance(array, np.ndarray):
            self.uploads.append(array.nbytes)
        return self._memory.upload(array)

    def download(self, array):
        found = self._memory.download(array)
        self.downloads.append(found.nbytes)
        return found

    def empty(self, n, dtype):
        array = self._memory.empty(n, dtype)
        if np.dtype(dtype) == np.uint8:
            self.workspace = array
        return array

    def __getattr__(self, name):
        return getattr(self._memory, name)


def counting_backend(memory_limit=None):
    module = load_cuda() if ON_DEVICE else load("_emulated")
    return CudaBackend(module, CountingMemory(EmulatedMemory(module)), memory_limit)


def left_to_three_products(backend, n_queries, n_items, d, k):
    """Which queries (B,) of the last search were left to the second pass: the end of its workspace."""
    end = backend.device.kernels.topk_bytes(n_queries, n_items, d, k, 2 * backend.device.limits.processors)
    workspace = backend.device.memory.download(backend.device.memory.workspace)
    return workspace[end - 4 * n_queries : end].view(np.uint32) > 0


def vectors(rng, n, d):
    return rng.standard_normal((n, d), np.float32)


def read_only(array):
    array.flags.writeable = False
    return array


def check(found, x, y, k, excluded=None, size=None):
    """Scores are float32 dot products, in order, of items that are the best but for rounding."""
    ids, scores = found
    expected_ids, expected = reference.topk(x, y, k, excluded)
    np.testing.assert_array_equal(ids < 0, expected_ids < 0)
    there = ids >= 0
    exact = np.take_along_axis(x.astype(np.float64) @ y.T.astype(np.float64), np.where(there, ids, 0).astype(int), 1)
    norms = np.linalg.norm(x.astype(float), axis=1)[:, None] * np.linalg.norm(y.astype(float), axis=1)[ids]
    assert (np.abs(np.where(there, exact - scores, 0)) <= 2e-6 * norms)[there].all()
    assert (np.abs(np.where(there, exact - np.where(there, expected, 0), 0)) <= 4e-6 * norms.max(1)[:, None]).all()
    falling = (scores[:, :-1] > scores[:, 1:]) | ((scores[:, :-1] == scores[:, 1:]) & (ids[:, :-1] < ids[:, 1:]))
    assert (falling | ~there[:, 1:]).all()


@pytest.mark.parametrize(("metric", "options"), [("dot", {}), ("cosine", {}), ("dot", {"deny_items": [3]})])
def test_one_upload_and_one_download_for_a_user(metric, options):
    rng = np.random.default_rng(0)
    backend, y = counting_backend(), vectors(rng, 3000, 20)
    index, memory = ExactIndex(y, metric=metric, backend=backend), backend.device.memory
    first = index.search(y[5], k=10, **options)
    memory.clear()
    again = index.search(y[5], k=10, **options)
    assert memory.uploads == [80 + (0 if not options else 3000 // 128 * 16 + 16)]
    assert memory.downloads == [2 * 4 * 10]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    memory.clear()
    index.search(y[:7], k=4, deny=[[1], [2, 3], [], [], [4], [], [0]], **options)
    assert len(memory.uploads) == 1 and memory.downloads == [2 * 4 * 7 * 4]
    assert len(backend.tables) == 1
    del index
    gc.collect()
    assert len(backend.tables) == 0 and backend.device.kept_bytes == 0


def test_items_that_may_change_are_copied_each_time():
    rng = np.random.default_rng(1)
    backend, y, x = counting_backend(), vectors(rng, 300, 8), vectors(rng, 2, 8)
    view = y.view()
    view.flags.writeable = False  # its memory is y's, which may be written to
    for items in (y, view):
        before = backend.topk(x, items, 3)[0]
        y *= -1
        assert (backend.topk(x, items, 3)[0] != before).any()
    assert len(backend.tables) == 0
    read_only(y)
    backend.topk(x, y[50:], 3)
    backend.topk(x, y, 3)
    gc.collect()  # the table of y[50:] went with it
    assert len(backend.tables) == 1
    norms = read_only(np.full(300, 2, np.float32))
    np.testing.assert_array_equal(backend.topk(x, y, 3, norms=norms)[1], backend.topk(x, y, 3)[1] / 2)
    assert len(backend.tables) == 2
    backend.tables.clear()
    assert len(backend.tables) == 0 and backend.device.kept_bytes == 0


def test_tables_that_do_not_fit_together_make_room():
    rng = np.random.default_rng(2)
    x, tables = vectors(rng, 2, 16), [read_only(vectors(rng, 1000, 16)) for _ in range(4)]
    of_one = emulated_backend().device.kernels.topk_table_bytes(1000, 16)
    backend = counting_backend(memory_limit=5 * of_one)
    expected = [emulated_backend().topk(x, y, 3) for y in tables]
    for y, (ids, scores) in [*zip(tables, expected, strict=True), (tables[0], expected[0])]:
        found = backend.topk(x, y, 3)
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], scores)
        assert 1 <= len(backend.tables) <= 2 and backend.device.kept_bytes == len(backend.tables) * of_one
    none = counting_backend(memory_limit=of_one)
    none.topk(x, tables[0], 3)
    assert len(none.tables) == 0


@pytest.mark.parametrize("factors", [1, 17, 100, 513])
@pytest.mark.parametrize(("items", "k"), [(1, 1), (1, 7), (130, 1024), (1024, 1024), (2500, 1024), (700, 20)])
def test_odd_sizes(items, factors, k):
    rng = np.random.default_rng(items + factors)
    x, y = vectors(rng, 5, factors), vectors(rng, items, factors)
    x[2], y[items // 2] = 0, 0
    excluded = csr_matrix((rng.random((5, items)) < 0.2).astype(np.float32))
    for lists in (None, excluded):
        found = emulated_backend().topk(x, y, k, lists)
        check(found, x, y, k, lists)
        of_cpu = CpuBackend(1).topk(x, y, k, lists)
        np.testing.assert_array_equal(found[0] < 0, of_cpu[0] < 0)
        np.testing.assert_allclose(found[1], of_cpu[1], rtol=2e-5, atol=2e-5 * np.sqrt(factors))


def test_nothing_is_left():
    rng = np.random.default_rng(3)
    x, y = vectors(rng, 3, 9), vectors(rng, 5000, 9)
    everything = csr_matrix(np.ones((3, 5000)))
    for options in ({"excluded": everything}, {"permitted": np.zeros(5000, bool)}):
        ids, scores = emulated_backend().topk(x, y, 6, **options)
        assert (ids == -1).all() and (scores == -np.inf).all()
    one = np.arange(5000) == 4321
    ids, _ = emulated_backend().topk(x, y, 6, permitted=one)
    assert (ids[:, 0] == 4321).all() and (ids[:, 1:] == -1).all()


SCALES = {
    "plain": (1, 1),
    "small": (1e-8, 1e-8),
    "large": (1e14, 1e14),
    "tiny": (1e-20, 1e-12),
    "huge": (1e16, 1e18),
    "far": (1e-30, 1e30),
}


@pytest.mark.parametrize("scale", SCALES)
def test_one_product_and_three_find_the_same(scale):
    """Few results of many items by one product and its bound; many of the same items by three products."""
    rng = np.random.default_rng(4)
    x, y = vectors(rng, 6, 24) * np.float32(SCALES[scale][0]), vectors(rng, 3000, 24) * np.float32(SCALES[scale][1])
    y[rng.integers(0, 3000, 300)] = y[7]  # ties
    backend = counting_backend()
    ids, scores = backend.topk(x, y, 20)
    left = left_to_three_products(backend, 6, 3000, 24, 20)
    assert left.all() if scale in ("tiny", "huge", "far") else not left.any()
    all_ids, all_scores = backend.topk(x, y, 1000)
    np.testing.assert_array_equal(ids, all_ids[:, :20])
    np.testing.assert_array_equal(scores, all_scores[:, :20])
    if scale != "huge":
        return
    y *= np.float32(1e20)  # scores beyond float32
    ids, scores = backend.topk(x, y, 20)
    all_ids, all_scores = backend.topk(x, y, 1000)
    np.testing.assert_array_equal(ids, all_ids[:, :20])
    np.testing.assert_array_equal(scores, all_scores[:, :20])


@pytest.mark.skipif(ON_DEVICE, reason="a device has its own tensor cores")
@pytest.mark.parametrize("chip", ["exact", "v100", "a100", "h100"])
@pytest.mark.parametrize("factors", [40, 513])
def test_one_product_and_three_find_the_same_on_any_chip(chip, factors):
    """Nearly parallel vectors of one sign, of which sums are cut most: what is next to the k-th best counts."""
    rng = np.random.default_rng(factors)
    x, y = (1 + np.float32(0.02) * vectors(rng, n, factors) for n in (4, 1500))
    backend = counting_backend()
    backend.device.kernels.configure(tensor=chip)
    few, many = backend.topk(x, y, 5), backend.topk(x, y, 1000)
    backend.device.kernels.configure()
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:, :5])
    check(few, x, y, 5)


def test_items_that_are_nearly_all_alike_are_left_to_three_products():
    rng = np.random.default_rng(5)
    x, y = vectors(rng, 4, 16), vectors(rng, 1, 16) + np.float32(1e-6) * vectors(rng, 4000, 16)
    x[3] = 0
    backend = counting_backend()
    found = backend.topk(x, y, 10)
    np.testing.assert_array_equal(left_to_three_products(backend, 4, 4000, 16, 10)[3], False)
    assert left_to_three_products(backend, 4, 4000, 16, 10).any()
    check(found, x, y, 10)
    np.testing.assert_array_equal(found[0], backend.topk(x, y, 500)[0][:, :10])
    np.testing.assert_array_equal(found[0][3], np.arange(10))


def test_a_query_finds_the_same_alone_and_among_others():
    rng = np.random.default_rng(6)
    x, y = vectors(rng, 70, 16), read_only(vectors(rng, 9000, 16))
    excluded = sparse_random(70, 9000, density=0.01, format="csr", random_state=0)
    excluded.sort_indices()
    backend = emulated_backend()
    ids, scores = backend.topk(x, y, 100, excluded)
    check((ids, scores), x, y, 100, excluded)
    for row in (0, 63, 64, 69):
        alone = backend.topk(x[row : row + 1], y, 100, excluded[row])
        np.testing.assert_array_equal(alone[0][0], ids[row])
        np.testing.assert_array_equal(alone[1][0], scores[row])


def chip_product(q, y):
    """hi hi of f16 vectors (n, P) as the coarsest chip adds: four products and the sum, each cut at 2^-23 of the
    largest, and so is the result."""

    def cut(values, largest):
        unit = np.exp2(np.floor(np.log2(np.maximum(largest, 1e-300))) - 23)
        return np.trunc(values / unit) * unit

    total = np.zeros(len(q))
    for j in range(0, q.shape[1], 4):
        terms = np.concatenate([total[:, None], q[:, j : j + 4] * y[:, j : j + 4]], axis=1)
        total = cut(terms, np.abs(terms).max(1)[:, None]).sum(1)
        total = cut(total, np.abs(total))
    return total


@pytest.mark.parametrize("factors", [1, 16, 100, 513, 1024])
@pytest.mark.parametrize("kind", ["any", "worst"])
def test_the_bound_holds_on_the_coarsest_chip(factors, kind):
    rng = np.random.default_rng(factors)
    width = emulated_backend().device.kernels.padded(factors)
    q, y = (np.zeros((200, width), np.float32) for _ in range(2))
    for array in (q, y):
        if kind == "worst":  # next to the middle between two f16 numbers, all to one side
            array[:, :factors] = 256 * (1 + 2.0**-11 - 2.0**-16) * 2.0 ** rng.integers(-1, 1, (200, factors))
        else:
            array[:, :factors] = rng.standard_normal((200, factors)) * 10.0 ** rng.uniform(-6, 0, (200, factors))
        array *= np.exp2(8 - np.floor(np.log2(np.abs(array).max(1))))[:, None].astype(np.float32)
    one = chip_product(*(array.astype(np.float16).astype(np.float64) for array in (q, y)))
    exact = (q.astype(np.float64) * y).sum(1)
    norms = np.linalg.norm(q.astype(float), axis=1) * np.linalg.norm(y.astype(float), axis=1)
    off = np.abs(one - exact) / norms
    bound = emulated_backend().device.kernels.topk_bound(factors)
    assert (off <= bound - 2**-16).all()  # the rest is for the scores themselves
    assert kind == "any" or off.max() > 0.8 * 2**-10  # and it is not far from what can happen


def test_the_device_is_full():
    """Blocks of a launch against those that run at once; each block's segment is equally long."""
    kernels = emulated_backend().device.kernels
    together, item_tiles = 264, 128  # of an H100
    for n_items in (27_000, 60_000, 1_000_000):
        for n_queries, k in [(1, 10), (1, 1000), (64, 10), (3000, 100), (4096, 10), (4096, 1000), (10_304, 10)]:
            segments = kernels.topk_segments(n_queries, n_items, k, together)
            blocks = -(-n_queries // 64) * segments
            rounds = -(-blocks // together)
            tiles = -(-n_items // item_tiles)
            shortest = segments == tiles or segments * n_queries * k > 2**22  # more lists would fill the memory
            assert blocks >= 0.85 * rounds * together or shortest, (n_items, n_queries, k, segments)
    assert kernels.topk_segments(1, 1_000_000, 1000, together) >= 132  # of one query, more than an H100 has processors


def test_threads_share_a_table():
    rng = np.random.default_rng(7)
    backend, y = counting_backend(), read_only(vectors(rng, 2000, 8))
    x = vectors(rng, 16, 8)
    expected, found = CpuBackend(1).topk(x, y, 5)[0], [None] * 16

    def search(row):
        found[row] = backend.topk(x[row : row + 1], y, 5)[0][0]

    threads = [threading.Thread(target=search, args=(row,)) for row in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)
    assert len(backend.tables) == 1


@pytest.mark.skipif(ON_DEVICE, reason="arrays of the emulator")
def test_arrays_on_the_device():
    """Queries and items there already, with lists and norms; only the lists are uploaded."""
    rng = np.random.default_rng(8)
    backend, x, y = counting_backend(), vectors(rng, 5, 12), vectors(rng, 900, 12)

    class OnDevice:
        """What torch, DLPack and the like look like from here."""

        dtype = "torch.float32"

        def __init__(self, array):
            self.flat, self.shape = backend.device.memory._memory.upload(array), array.shape

        def __getitem__(self, rows):
            return OnDevice(np.array(self.flat).reshape(self.shape)[rows])

    upload = backend.device.memory.upload
    backend.device.memory.upload = lambda array: array.flat if isinstance(array, OnDevice) else upload(array)
    permitted = rng.random(900) < 0.5
    found = backend.topk(OnDevice(x), OnDevice(y), 6, permitted=permitted)
    assert len(backend.device.memory.uploads) == 1
    check(found, x, y, 6, csr_matrix(np.tile(~permitted, (5, 1))))
    wide = OnDevice(x)
    wide.dtype = "torch.float64"
    with pytest.raises(ValueError, match="float32"):
        backend.topk(wide, y, 6)
