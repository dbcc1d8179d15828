"""The emulator's devices, streams and errors: late work, planted defects, and the shipped code without a finding."""

from __future__ import annotations

import contextlib
import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from emulated import load
from emulated_cuda import ON_DEVICE, EmulatedMemory, needs_kernels
from fake_torch import FakeTorch
from rows import make_matrix, problem
from solving import solve_rows

from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_memory import TorchMemory
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.objective.presets import make_objective

pytestmark = [needs_kernels, pytest.mark.skipif(ON_DEVICE, reason="tests the emulator")]
#: As late as streams allow, and some of the work earlier.
LATE = [{"lazy": True}, *({"lazy": True, "order": "random", "seed": seed} for seed in (1, 2, 3))]
WORDS = np.arange(64, dtype=np.uint32)


def fresh(name, **settings):
    module = load(name)
    module.configure(**settings)
    return module


@pytest.fixture(params=["_emulator_tests", "_emulator_tests_checked"])
def module(request):
    yield fresh(request.param, lazy=True, devices=2)
    load(request.param).configure()


@pytest.fixture(params=["_emulated", "_emulated_checked"])
def kernels(request):
    yield fresh(request.param, devices=2)
    load(request.param).configure()


def words(memory):
    return memory.upload(WORDS), memory.upload(np.zeros(64, np.uint32))


def kernel(module, name, inputs, out, stream, *options):
    smem, *rest = options or [0]
    module.feature(name, 1, 64, smem, np.asarray(inputs), np.asarray(out), stream, *rest)


def start(module, memory, inputs, out, stream=None):
    kernel(module, "Reverse", inputs, out, stream or memory.stream)


# When work runs


def test_work_runs_when_somebody_waits_for_it(module):
    memory = EmulatedMemory(module)
    inputs, out = words(memory)
    start(module, memory, inputs, out)
    assert (np.asarray(out) == 2**32 - 1).all()  # not even uploaded
    np.testing.assert_array_equal(memory.download(out), WORDS[::-1])
    module.configure()
    start(module, memory, out, inputs)
    np.testing.assert_array_equal(np.asarray(inputs), WORDS)  # at once


def test_a_stream_waits_for_events_of_others_alone(module):
    first, second = ((0, module.new_stream(0)) for _ in range(2))
    memory = EmulatedMemory(module)
    inputs, out = words(memory)
    module.synchronize(memory.stream)
    other = memory.upload(np.zeros(64, np.uint32))
    module.synchronize(memory.stream)
    start(module, memory, inputs, out, first)
    event = module.record(first)
    start(module, memory, inputs, other, second)
    module.synchronize(second)
    np.testing.assert_array_equal(np.asarray(other), WORDS[::-1])
    assert not np.asarray(out).any()
    module.wait(second, event)
    start(module, memory, out, other, second)
    module.synchronize(second)
    np.testing.assert_array_equal(np.asarray(other), WORDS)


def test_a_graph_is_done_when_it_is_replayed_as_often_as_it_is(module):
    memory = EmulatedMemory(module)
    inputs, out = words(memory)
    module.synchronize(memory.stream)
    main, side, replaying = ((0, module.new_stream(0)) for _ in range(3))
    module.begin_graph(main)
    start(module, memory, inputs, out, main)
    module.wait(side, module.record(main))
    start(module, memory, out, inputs, side)
    module.wait(main, module.record(side))
    graph = module.end_graph(main)
    module.synchronize(main)
    assert not np.asarray(out).any()
    module.reset_counts()
    for turn in range(1, 3):
        module.replay(replaying, graph)
        module.synchronize(replaying)  # and so for the other stream, which is waited for in the graph
        np.testing.assert_array_equal(np.asarray(inputs), WORDS)
        np.testing.assert_array_equal(np.asarray(out), WORDS[::-1])
        assert module.counts()["graphs"] == turn and module.counts()["launches"] == 0


def test_a_replay_is_not_recorded_by_the_streams_that_it_was_recorded_on(module):
    """What threads record on the same streams, one after the other, had in it what was replayed meanwhile."""
    memory = EmulatedMemory(module)
    inputs, out = words(memory)
    module.synchronize(memory.stream)
    main, side, replaying = ((0, module.new_stream(0)) for _ in range(3))

    def record(replayed=None):
        module.begin_graph(main)
        module.wait(side, module.record(main))
        if replayed is None:
            start(module, memory, inputs, out, side)
        else:
            module.replay(replaying, replayed)
        module.wait(main, module.record(side))
        return module.end_graph(main)

    graph = record()
    empty = record(graph)
    module.synchronize(replaying)
    np.testing.assert_array_equal(np.asarray(out), WORDS[::-1])
    module.fill(out.data_ptr(), 0, 256, replaying)
    module.replay(replaying, empty)
    module.synchronize(replaying)
    assert not np.asarray(out).any()


def test_what_a_graph_cannot_have_is_found(module):
    memory = EmulatedMemory(module)
    inputs, out = words(memory)
    module.synchronize(memory.stream)

    def begun():
        main, side = ((0, module.new_stream(0)) for _ in range(2))
        module.begin_graph(main)
        start(module, memory, inputs, out, main)
        return main, side

    main, side = begun()
    for forbidden in (module.synchronize, module.begin_graph):
        with pytest.raises(module.EmulatorError, match="not permitted when stream is capturing"):
            forbidden(main)
    with pytest.raises(module.EmulatorError, match="not permitted"):  # a copy to pageable memory waits
        module.copy(WORDS.copy().ctypes.data, out.data_ptr(), 256, main)
    with pytest.raises(module.EmulatorError, match="uncaptured work"):
        module.wait(main, module.record(side))
    noted = module.record(main)
    with pytest.raises(module.EmulatorError, match="was not capturing"):
        module.end_graph(side)
    module.end_graph(main)
    with pytest.raises(module.EmulatorError, match="uncaptured work"):
        module.wait(side, noted)
    for work_behind in (False, True):
        main, side = begun()
        module.wait(side, module.record(main))
        start(module, memory, inputs, out, side)
        if work_behind:
            event = module.record(side)
            start(module, memory, inputs, out, side)
            module.wait(main, event)
        with pytest.raises(module.EmulatorError, match="unjoined work"):
            module.end_graph(main)
    module.synchronize(main)


def test_pageable_memory_is_read_at_the_call_and_pinned_memory_when_the_copy_runs(module):
    memory = EmulatedMemory(module)
    stream, pageable = memory.stream, WORDS.copy()
    for host, seen in ((pageable, WORDS), (module.pinned(256).view(np.uint32), 0 * WORDS)):
        host[:] = WORDS
        device = memory.empty(64, np.uint32)
        module.copy(device.data_ptr(), host.ctypes.data, 256, stream)
        host[:] = 0
        np.testing.assert_array_equal(memory.download(device), seen)
    late, pinned = memory.upload(WORDS), module.pinned(256).view(np.uint32)
    module.copy(pinned.ctypes.data, late.data_ptr(), 256, stream)
    assert (pinned == 2**32 - 1).all()
    module.synchronize(stream)
    np.testing.assert_array_equal(pinned, WORDS)


def test_what_the_host_does_is_counted(module):
    memory = EmulatedMemory(module)
    module.reset_counts()
    inputs, out = words(memory)
    start(module, memory, inputs, out)
    with memory.side_stream() as stream:
        start(module, memory, inputs, out, stream)
    memory.download(out)
    counts = module.counts()
    expected = {"launches": 2, "uploads": 2, "downloads": 1, "allocations": 2, "events": 2}
    assert {name: counts[name] for name in expected} == expected
    assert counts["waits"] == 2  # the copy to pageable memory, and torch behind it
    module.reset_counts()
    assert not any(module.counts().values())


# Devices and their errors


def test_a_kernel_must_not_touch_memory_of_another_device(module):
    """A call that does not make its device current, as a second thread's."""
    for settings in ({}, {"lazy": True}):
        module.configure(devices=2, **settings)
        memory = EmulatedMemory(module, 1)
        inputs, out = words(memory)
        module.synchronize(memory.stream)
        with pytest.raises(RuntimeError, match=r"wrong device: .* on device 0, (of|to) buffer 'array' of device 1"):
            start(module, memory, inputs, out, (0, 0))
            module.synchronize((0, 0))
        start(module, memory, inputs, out)
        np.testing.assert_array_equal(memory.download(out), WORDS[::-1])
    module.configure(devices=2)
    with pytest.raises(RuntimeError, match="invalid resource handle"):
        start(module, memory, inputs, out, memory.stream[1])
    with pytest.raises(module.EmulatorError, match="invalid device ordinal"):
        module.set_device(2)


def test_each_thread_has_its_current_device(module):
    module.set_device(1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(module.current_device()))
    thread.start()
    thread.join()
    assert (module.current_device(), seen) == (1, [0])
    module.set_device(0)


def test_an_error_in_a_kernel_sticks_to_its_device(module):
    memory, other = EmulatedMemory(module), EmulatedMemory(module, 1)
    inputs, out = words(memory)
    kernel(module, "TwoLines", inputs, out, memory.stream)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"unspecified launch failure: divergent barrier: thread .*features\.cu"):
            memory.download(out)
    with pytest.raises(RuntimeError, match=r"launch of .*: unspecified launch failure: divergent barrier"):
        start(module, memory, inputs, out)
    with pytest.raises(RuntimeError, match="unspecified launch failure: divergent barrier"):
        memory.empty(1, np.float32)
    inputs, out = words(other)
    start(module, other, inputs, out)
    np.testing.assert_array_equal(other.download(out), WORDS[::-1])
    module.reset_device(0)
    np.testing.assert_array_equal(memory.download(memory.upload(WORDS)), WORDS)


def test_a_limit_of_shared_memory_that_launches_lower_for_each_other_is_found(module):
    """`own_limit` sets the limit at each launch, as launch() did once."""

    def refused(own_limit):
        module.configure(lazy=True)
        found, ready = [], threading.Barrier(2)

        def work(smem):
            memory = EmulatedMemory(module)
            inputs, out = words(memory)
            ready.wait()
            try:
                for _ in range(20):
                    kernel(module, "Ballot", inputs, out, memory.stream, smem, own_limit)
                memory.download(out)
            except RuntimeError as error:
                found.append(str(error))

        threads = [threading.Thread(target=work, args=(kib << 10,)) for kib in (50, 60)]  # what every card has
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert not refused(own_limit=False)
    assert any("invalid argument" in text for text in refused(own_limit=True))
    memory = EmulatedMemory(module)
    kernel(module, "Ballot", *words(memory), memory.stream, 163 << 10, True)  # for other tests: the highest again
    memory.download(memory.empty(1, np.int32))


def test_memory_has_an_end(module):
    gc.collect()  # what earlier tests left in cycles is memory of the same device
    module.configure(lazy=True, memory=1 << 20)
    memory = EmulatedMemory(module)
    free = memory.free_bytes()
    assert 7 << 17 < free <= 1 << 20
    first = memory.empty(3 << 18, np.uint8)
    left = free - (3 << 18)
    for make in (
        lambda: memory.empty(1 << 17, np.float32),
        lambda: memory.upload(np.zeros(1 << 17, np.float32)),
    ):
        with pytest.raises(MemoryError, match=f"^{1 << 19} bytes of device memory were asked for, {left} are free"):
            make()
    del first  # torch's allocator waits for what is being freed
    assert len(memory.empty(1 << 17, np.float32))


# Memory and streams


def test_memory_used_on_another_stream_is_freed_after_it(module):
    for is_named in (False, True):
        module.configure(lazy=True)
        memory, side = EmulatedMemory(module), (0, module.new_stream(0))
        inputs, out = words(memory)
        module.synchronize(memory.stream)
        start(module, memory, inputs, out, side)
        if is_named:
            module.share(inputs.data_ptr(), side)
        del inputs
        module.synchronize(memory.stream)  # it is freed here, if nothing is known of `side`
        if is_named:
            module.synchronize(side)
            np.testing.assert_array_equal(memory.download(out), WORDS[::-1])
        else:
            with pytest.raises(RuntimeError, match="buffer 'array', which has been freed"):
                module.synchronize(side)


class NoEvents(EmulatedMemory):
    """A side stream that nothing orders."""

    def side_stream(self):
        self._streams.side.wait_stream = lambda other: None
        self._streams.main.wait_stream = lambda other: None
        return super().side_stream()


@pytest.mark.parametrize("kind", [EmulatedMemory, NoEvents])
def test_an_array_used_on_another_stream_without_an_event_is_found(kind):
    """By the checked build whatever ran first, by the plain one where it ran too late."""
    checked, plain = (fresh(f"_emulator_tests{name}") for name in ("_checked", ""))

    def is_wrong(module):
        memory = kind(module)
        inputs, out = words(memory)
        result = memory.upload(np.zeros(64, np.uint32))
        start(module, memory, inputs, out)
        try:
            with memory.side_stream() as stream:
                start(module, memory, out, result, stream)
            return not np.array_equal(memory.download(result), WORDS)
        except RuntimeError as error:
            return "race: " in str(error) and "on another stream" in str(error)

    for module, settings in ((plain, {"lazy": True}), (checked, {"lazy": True}), (checked, {})):
        module.configure(**settings)
        assert is_wrong(module) == (kind is NoEvents)
        module.configure()


# The shipped code


def exercise(backend, seed=0):
    """All that a backend does, as bytes."""
    terms, other, first = problem(20, [0, 3, 40, 18, 75, 5], seed=seed)
    results = []
    for how in (
        {},
        {"solver": "cg"},
        {"solver": "subspace", "block_size": 16},
        {"solver": "cg", "relaxation": 1.2},
    ):
        x = first.copy()
        results += [solve_rows(backend, terms, other, x, prior=first[::-1], return_loss=True, **how), x]
    results += [backend.loss(terms, first, other, np.ones(1, np.float32)), *backend.topk(first, other, 5)]
    matrix = make_matrix("ials", np.float32, shape=(10, 15))
    bound = make_objective("ials", regularization=0.1).bind(matrix)
    sides = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(size=(n, 9)).astype(np.float32) for n in (10, 15))
    with backend.session(users, items) as session:
        for _ in range(2):
            for side, of_side in zip(("user", "item"), sides, strict=True):
                results.append(session.solve(side, of_side, SolveOptions(), return_loss=True))
        for _ in range(3):  # the second and third as one graph
            results.append(session.iterate(*sides, SolveOptions(), return_loss=True))
        results.append(session.loss(sides[0], sides[1].ridge))
    return [np.asarray(result).tobytes() for result in [*results, users, items]]


@pytest.mark.parametrize("schedule", LATE, ids=str)
def test_results_are_the_same_on_each_device_and_however_late_work_runs(kernels, schedule):
    expected = exercise(CudaBackend(kernels, EmulatedMemory(kernels)))
    kernels.configure(devices=2, **schedule)
    for device in (0, 1):
        assert exercise(CudaBackend(kernels, EmulatedMemory(kernels, device))) == expected
    assert kernels.current_device() == 0


@pytest.mark.parametrize("devices", [(0, 1), (1, 1), (1,)], ids=str)
def test_threads_on_the_same_and_on_different_devices(kernels, devices):
    """A single device number: one backend for both threads, made by neither."""
    expected = [exercise(CudaBackend(kernels, EmulatedMemory(kernels)), seed) for seed in (0, 1)]
    kernels.configure(devices=2, lazy=True)
    backends, found = [CudaBackend(kernels, EmulatedMemory(kernels, d)) for d in devices], {}

    def work(seed):
        try:
            found[seed] = exercise(backends[seed % len(backends)], seed)
        except Exception as error:
            found[seed] = error

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == expected


def test_a_backend_without_device_guards_is_found(kernels):
    class Bare(EmulatedMemory):
        stream = property(lambda self: super().stream[1])

    with pytest.raises(RuntimeError, match="invalid resource handle"):
        exercise(CudaBackend(kernels, Bare(kernels, 1)))
    every = [function.__doc__ for name, function in vars(kernels).items() if name.startswith("solve_")]
    assert len(every) > 5 and all(": Stream" in text for text in every)


def test_a_graph_whose_memory_goes_is_found(kernels):
    """Buffers that others outgrow are freed, unless the graph that works in them holds them."""

    class Forgetful(EmulatedMemory):
        def address(self, array):
            return int(array.data_ptr())

    matrix = make_matrix("ials", np.float32, shape=(10, 15))
    bound = make_objective("ials", regularization=0.1).bind(matrix)
    for make in (EmulatedMemory, Forgetful):
        backend = CudaBackend(kernels, make(kernels))
        sides = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
        users, items = (np.ones((n, 9), np.float32) for n in (10, 15))
        with backend.session(users, items) as session:
            for _ in range(2):
                session.iterate(*sides, SolveOptions())
            for name, array in list(session._buffers._arrays.items()):
                session._buffers.get(name, 9 * len(array), array.dtype)
            del array
            gc.collect()
            found = pytest.raises(RuntimeError, match="out of bounds")
            with found if make is Forgetful else contextlib.nullcontext():
                session.iterate(*sides, SolveOptions())


def test_an_upload_buffer_that_is_reused_too_early_is_found(kernels):
    class OneBuffer(EmulatedMemory):
        def upload(self, array):
            array = np.ascontiguousarray(array).reshape(-1)
            if array.dtype.fields:
                array = array.view(np.uint8)
            if not hasattr(self, "buffer"):
                self.buffer = self.module.pinned(1 << 16)
            self.buffer[: array.nbytes] = array.view(np.uint8)
            out = self.empty(array.size, array.dtype)
            self.module.copy(out.data_ptr(), self.buffer.ctypes.data, array.nbytes, self.stream)
            return out

    expected = exercise(CudaBackend(kernels, EmulatedMemory(kernels)))
    assert exercise(CudaBackend(kernels, OneBuffer(kernels))) == expected  # at once: nobody notices
    kernels.configure(lazy=True)
    try:
        assert exercise(CudaBackend(kernels, OneBuffer(kernels))) != expected
    except (RuntimeError, ArithmeticError, ValueError):
        pass  # numbers that lead to addresses nobody has, or to no solution


# TorchMemory


def test_what_fails_to_be_recorded_leaves_streams_as_they_were(module):
    memory = EmulatedMemory(module)
    inputs, out = words(memory)
    torch, before = memory.torch, memory.stream

    def unjoined():
        assert memory.stream != before
        memory._streams.side.wait_stream(memory._streams.main)
        start(module, memory, inputs, out, memory._streams.side.pair)

    now = torch.current_stream(memory.device)
    for wrong, text in ((unjoined, "unjoined work"), (lambda: memory.upload(WORDS), "no upload")):
        with pytest.raises(RuntimeError, match=text):
            memory.record(wrong, module.new_stream)
        assert memory.stream == before and torch.current_stream(memory.device).pair == now.pair
    recorded = memory.record(lambda: start(module, memory, inputs, out), module.new_stream)
    memory.replay(recorded)
    np.testing.assert_array_equal(memory.download(out), WORDS[::-1])


def test_tensors_of_the_callers_stream_are_waited_for(module):
    torch = FakeTorch(module)
    memory, theirs = TorchMemory(0, torch), torch.cuda.Stream(torch.device("cuda", 0))
    with torch.cuda.stream(theirs):
        inputs = torch.from_numpy(WORDS).to(memory.device, non_blocking=True)
        out = torch.empty(64, np.dtype(np.uint32), memory.device)
        start(module, memory, inputs, out, theirs.pair)
        used = memory.upload(out)
    assert used.data_ptr() == out.data_ptr()
    result = memory.upload(np.zeros(64, np.uint32))
    start(module, memory, used, result)
    del used, out  # their allocator may not give it to others before it has been read
    with torch.cuda.stream(theirs):
        theirs.synchronize()
    np.testing.assert_array_equal(memory.download(result), WORDS)


def test_out_of_memory_tells_what_a_solve_takes(kernels):
    terms, other, first = problem(20, [0, 3, 40, 18, 75, 5])
    spectrum = CudaBackend(kernels, EmulatedMemory(kernels)).spectrum(terms, other)
    kernels.configure(memory=1 << 14)
    memory = EmulatedMemory(kernels)
    memory.free_bytes = lambda: 1 << 40  # as where others take it in between
    with pytest.raises(MemoryError, match=r"bytes of device memory were asked for, .* are free; .* was expected to"):
        solve_rows(CudaBackend(kernels, memory), terms, other, first, spectrum=spectrum)


def test_memory_is_of_torchs_current_device_unless_told():
    cuda = SimpleNamespace(current_device=lambda: 3, Stream=lambda device: SimpleNamespace(cuda_stream=7))
    torch = SimpleNamespace(cuda=cuda, device=lambda kind, index: SimpleNamespace(type=kind, index=index))
    assert TorchMemory(torch=torch).stream == (3, 7)
    assert TorchMemory(1, torch).stream == (1, 7)
