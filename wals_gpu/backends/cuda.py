"""The CUDA backend: NumPy arrays in and out, native kernels on device memory in between.

What it consists of: :mod:`.cuda_solve` solves rows, :mod:`.cuda_loss` has losses and Gram matrices, :mod:`.cuda_topk`
searches; they work on :mod:`.cuda_factors` and :mod:`.cuda_terms`, in the memory of a :class:`.cuda_device.Device`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda_device import Buffers, Device
from wals_gpu.backends.cuda_errors import tells_device_errors
from wals_gpu.backends.cuda_factors import DeviceSpectrum, Factors, Target, check_factors
from wals_gpu.backends.cuda_features import CudaFeatures
from wals_gpu.backends.cuda_loss import add_data_loss, add_ridge_loss, spectrum_of
from wals_gpu.backends.cuda_memory import Recorded, TorchMemory, load_cuda
from wals_gpu.backends.cuda_solve import Outcome, RowSolver, Started, ridge_loss
from wals_gpu.backends.cuda_terms import TermsCache
from wals_gpu.backends.cuda_topk import ItemTables, topk
from wals_gpu.backends.host import Spectrum, solve_parts
from wals_gpu.backends.session import iterate_in_turn
from wals_gpu.backends.solve import EXACT, SolveMemory, SolveOptions, SolveSizes
from wals_gpu.errors import DeviceError
from wals_gpu.objective.terms import RowTerms, SideTerms, other_side

__all__ = ["CudaBackend", "CudaSession"]


@tells_device_errors
class CudaBackend:
    """Row solves, loss and top-k on a CUDA device, in float32.

    What it computes, its arguments and its errors are those of :class:`.cpu.CpuBackend`; results are equal to float32
    accuracy, and the same to the last bit each time. Arrays of the caller stay NumPy arrays; the terms of a matrix are
    copied to the device once, factors on each call, or in a :meth:`session` once.

    Parameters
    ----------
    module, memory : optional
        Kernels and memory in place of the device's; by default those of :func:`.cuda_memory.load_cuda` and
        :class:`.cuda_memory.TorchMemory`.
    memory_limit : int, optional
        Device memory to use, in bytes; by default what is free. Rows that do not fit together are solved in parts.
    device : int, optional
        The number of the device, whichever thread uses the backend; by default torch's current one. Not with `memory`.
    """

    name = "cuda"

    def __init__(
        self,
        module: ModuleType | None = None,
        memory: TorchMemory | None = None,
        memory_limit: int | None = None,
        device: int | None = None,
    ) -> None:
        kernels = load_cuda() if module is None else module
        self.device = Device(kernels, TorchMemory(device) if memory is None else memory, memory_limit)
        self.terms = TermsCache(self.device)
        self.tables = ItemTables(self.device)
        self.solver = RowSolver(self.device, self.terms)
        # On the host: they touch what is listed alone, or what the host has and wants back.
        host = CpuBackend()
        self.topk_listed, self.score_entries, self.transpose = host.topk_listed, host.score_entries, host.transpose

    def check(
        self,
        *,
        factors: int | None = None,
        dtype: np.dtype | None = None,
        options: SolveOptions | None = None,
        k: int | None = None,
    ) -> None:
        """Refuse what the kernels cannot do.

        Raises
        ------
        DeviceError
            A kind of ValueError: another dtype than float32, more factors than the kernels take, blocks of "subspace"
            that are too large for them, or more results than a search can give.
        """
        limits = self.device.kernels.LIMITS
        if dtype is not None and dtype != np.float32:
            raise DeviceError(f"dtype must be float32 on a CUDA device (device='cuda'), got {dtype}")
        if factors is not None and not 1 <= factors <= limits.most_device_factors:
            raise DeviceError(f"factors must be from 1 to {limits.most_device_factors} on a CUDA device, got {factors}")
        if options is not None and options.solver == "subspace" and options.block_size > limits.kernel_sizes[-1]:
            sizes = f"a multiple of {limits.tile} from {limits.tile} to {limits.kernel_sizes[-1]}"
            raise DeviceError(f"block_size must be {sizes} on a CUDA device, got {options.block_size}")
        if k is not None and k > limits.most_results:
            raise DeviceError(f"k must be at most {limits.most_results} on a CUDA device, got {k}")

    def session(
        self,
        users: NDArray[np.floating],
        items: NDArray[np.floating],
        *,
        may_move: bool = False,
        is_shared: bool = False,
    ) -> CudaSession:
        """See :meth:`.session.Backend.session`. Factors stay in device memory if those of both sides take less than a
        quarter of it."""
        return CudaSession(self, users, items, is_shared)

    def solve_rows(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        factors: NDArray[np.floating],
        options: SolveOptions = EXACT,
        *,
        prior: NDArray[np.floating] | None = None,
        return_loss: bool = False,
        spectrum: Spectrum | None = None,
    ) -> float | None:
        """As :meth:`.cpu.CpuBackend.solve_rows`, in float32; see :meth:`check`."""
        self.check(options=options)
        check_factors(other)
        memory, buffers = self.device.memory, Buffers(self.device)
        self.device.expect(terms, other.shape[0], other.shape[1], options, has_prior=prior is not None)
        own, of_other = Factors(memory, factors, "own"), Factors(memory, other, "other")
        if spectrum is None:
            on_device = spectrum_of(self.device, self.terms, terms, of_other, buffers)
        else:
            on_device = DeviceSpectrum.upload(memory, spectrum)
        target = Target(own, slice(0, terms.n_rows), prior)
        return self.solver.solve(terms, of_other, target, on_device, options, return_loss, buffers)

    def memory_of(self, sizes: SolveSizes) -> SolveMemory:
        """See :meth:`.cuda_device.Device.memory_of`."""
        return self.device.memory_of(sizes)

    def empty_factors(self, n: int, factors: int, dtype: np.dtype) -> NDArray[np.floating]:
        """An (n, D) array, not initialised. float32 alone."""
        array = np.empty((n, factors), dtype)
        check_factors(array)
        return array

    def spectrum(self, terms: SideTerms, other: NDArray[np.floating]) -> Spectrum:
        """As :meth:`.cpu.CpuBackend.spectrum`."""
        factors = Factors(self.device.memory, other, "other")
        on_device = spectrum_of(self.device, self.terms, terms, factors, Buffers(self.device))
        return on_device.download(self.device.memory)

    def loss(
        self,
        user_terms: RowTerms,
        user_factors: NDArray[np.floating],
        item_factors: NDArray[np.floating],
        item_ridge: NDArray[np.floating],
        *,
        user_prior: NDArray[np.floating] | None = None,
        item_prior: NDArray[np.floating] | None = None,
    ) -> float:
        """As :meth:`.cpu.CpuBackend.loss`, dot products and sums in float64."""
        memory = self.device.memory
        users, items = Factors(memory, user_factors, "user"), Factors(memory, item_factors, "item")
        return self._loss(user_terms, users, items, item_ridge, Buffers(self.device), user_prior, item_prior)

    def _loss(
        self,
        user_terms: RowTerms,
        users: Factors,
        items: Factors,
        item_ridge: NDArray[np.floating],
        buffers: Buffers,
        user_prior: NDArray[np.floating] | None = None,
        item_prior: NDArray[np.floating] | None = None,
    ) -> float:
        device, outcome = self.device, Outcome(self.device)
        add_data_loss(device, self.terms, user_terms, users, items, outcome.address("loss"), buffers)
        for factors, ridge, prior in ((users, user_terms.ridge, user_prior), (items, item_ridge, item_prior)):
            weight = self.terms.ridge(ridge)
            add_ridge_loss(device, factors, weight, outcome.address("ridge"), buffers, prior)
        found = outcome.read()
        return user_terms.target_square + float(found["loss"]) + float(found["ridge"])

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> float:
        """Sum over rows of ``ridge |x - prior|^2``, in float64; `ridge` is (R,) or (1,)."""
        own, weight = Factors(self.device.memory, factors, "own"), self.terms.ridge(ridge)
        return ridge_loss(self.device, own, weight, Buffers(self.device), prior)

    def topk(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        excluded: csr_matrix | None = None,
        *,
        permitted: NDArray[np.bool_] | None = None,
        norms: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """As :meth:`.cpu.CpuBackend.topk`, for at most 1,024 results; scores are float32.

        Queries and items may also be on the device already (torch, DLPack, ``__cuda_array_interface__``). Results are
        on the host. What is searched stays on the device where it cannot change, see :class:`.cuda_topk.ItemTables`.
        """
        if min(k, items.shape[0]) > LIMITS.most_results:
            self.check(k=k)
        return topk(self.device, self.tables, queries, items, k, excluded, permitted, norms)

    def keep(self, *arrays: NDArray[np.floating]) -> None:
        """See :meth:`.session.KeepingBackend.keep`."""
        self.tables.keep(*arrays)


@dataclass
class _Iteration:
    """An iteration that was made, by what it depends on; from the second of the same on as one CUDA graph."""

    key: tuple[Any, ...]
    halves: list[tuple[str, Started]]
    recorded: Recorded | None = None
    is_refused: bool = False  # by CUDA, as a graph


@tells_device_errors
class CudaSession:
    """See :class:`.session.Session`. Factors stay in device memory where they fit and nobody else writes to them; they
    stay in the basis that they began in: rotations cost next to nothing on a device. Iterations are recorded as a CUDA
    graph once there are two of the same, and then started as one."""

    def __init__(
        self, backend: CudaBackend, users: NDArray[np.floating], items: NDArray[np.floating], is_shared: bool
    ) -> None:
        self._backend, device = backend, backend.device
        fit = users.nbytes + items.nbytes <= device.available() // 4
        plain = all(array.flags.c_contiguous and array.dtype == np.float32 for array in (users, items))
        is_kept = fit and plain and not is_shared
        self._sides = {
            "user": Factors(device.memory, users, "user", is_kept=is_kept),
            "item": Factors(device.memory, items, "item", is_kept=is_kept),
        }
        self._buffers = Buffers(device)
        self._outcome: Outcome | None = None  # of iterations: made by the first
        self._latest: _Iteration | None = None
        self._users_basis: Any = None  # from their half of an iteration to the items'
        self._kept_bytes = users.nbytes + items.nbytes if is_kept else 0
        device.kept_bytes += self._kept_bytes

    def solve(
        self,
        side: str,
        terms: SideTerms,
        options: SolveOptions,
        prior: NDArray[np.floating] | None = None,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """See :meth:`.session.Session.solve`."""
        backend, own, other = self._backend, self._sides[side], self._sides[other_side(side)]
        backend.check(options=options)
        check_factors(other.host)
        if isinstance(terms, RowTerms):
            backend.device.expect(terms, other.host.shape[0], other.host.shape[1], options, has_prior=prior is not None)
        spectrum = self._spectrum(side, terms)

        def solve(rows: slice, part: RowTerms) -> float | None:
            target = Target(own, rows, None if prior is None else prior[rows])
            return backend.solver.solve(part, other, target, spectrum, options, return_loss, self._buffers)

        loss = solve_parts(terms, solve)
        return loss if return_loss else None

    def iterate(
        self,
        users: SideTerms,
        items: SideTerms,
        options: SolveOptions,
        errors_of: Callable[[str], AbstractContextManager[object]] = nullcontext,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """See :meth:`.session.Session.iterate`. What the device does it does without a wait but for the last: whether
        rows of either side were not solved, and the loss."""
        if not (isinstance(users, RowTerms) and isinstance(items, RowTerms) and self._kept_bytes):
            return iterate_in_turn(self, users, items, options, errors_of, return_loss)
        backend, memory = self._backend, self._backend.device.memory
        backend.check(options=options)
        if self._outcome is None:
            self._outcome = Outcome(backend.device)
        outcome = self._outcome

        def start() -> list[tuple[str, Started]]:
            return self._start(outcome, users, items, options, errors_of, return_loss)

        latest, key = self._latest, self._key(users, items, options, return_loss)
        if latest is None or latest.key != key or None in key:
            latest = self._latest = None  # its memory may be needed
            halves = start()
            latest = self._latest = _Iteration(self._key(users, items, options, return_loss), halves)
        else:
            if latest.recorded is None and not latest.is_refused:
                latest.recorded = backend.device.record(start)
                latest.is_refused = latest.recorded is None
            if latest.recorded is None:
                latest.halves = start()
            else:
                memory.replay(latest.recorded)
                for factors in self._sides.values():
                    factors.to_write()
        found = outcome.read()
        for half, (side, started) in enumerate(latest.halves):
            if found["failed"][half]:
                with errors_of(side):
                    started.check()
        return users.target_square + float(found["loss"]) + float(found["ridge"]) if return_loss else None

    def _key(self, users: RowTerms, items: RowTerms, options: SolveOptions, return_loss: bool) -> tuple[Any, ...]:
        """What an iteration depends on but for the factors; terms that are not on the device as they are: None."""
        find = self._backend.terms.find
        return find(users), find(items), options, return_loss

    def _start(
        self,
        outcome: Outcome,
        users: RowTerms,
        items: RowTerms,
        options: SolveOptions,
        errors_of: Callable[[str], AbstractContextManager[object]],
        return_loss: bool,
    ) -> list[tuple[str, Started]]:
        """Start all kernels of an iteration."""
        backend, buffers = self._backend, self._buffers
        outcome.clear()
        halves: list[tuple[str, Started]] = []
        for half, (side, terms) in enumerate((("user", users), ("item", items))):
            own, other = self._sides[side], self._sides[other_side(side)]
            backend.device.expect(terms, other.host.shape[0], other.host.shape[1], options, has_prior=False)
            with errors_of(side):
                spectrum = self._spectrum(side, terms)
                started = backend.solver.start(
                    terms, other, Target(own, slice(0, terms.n_rows)), spectrum, options, outcome, buffers,
                    half=half, return_loss=return_loss and side == "item",
                )  # fmt: skip
            halves.append((side, started))
        if return_loss:
            ridge, total = backend.terms.ridge(users.ridge), outcome.address("ridge")
            add_ridge_loss(backend.device, self._sides["user"], ridge, total, buffers)
        return halves

    def _spectrum(self, side: str, terms: SideTerms) -> DeviceSpectrum:
        """What the rows of `side` need of the other. The items' starts from the basis of the users' just before it: as
        a fit with one ridge comes to rest, both Gram matrices become diagonal in one basis, and 4 sweeps are enough
        instead of 13. The users' starts from nothing: a fit that goes on from its factors has to do the same."""
        backend, start = self._backend, self._users_basis if side == "item" else None
        other = self._sides[other_side(side)]
        spectrum = spectrum_of(backend.device, backend.terms, terms, other, self._buffers, start)
        self._users_basis = spectrum.vectors if side == "user" else None
        return spectrum

    def loss(self, user_terms: RowTerms, item_ridge: NDArray[np.floating]) -> float:
        """See :meth:`.session.Session.loss`."""
        users, items = self._sides["user"], self._sides["item"]
        return self._backend._loss(user_terms, users, items, item_ridge, self._buffers)

    def ridge_loss(self, side: str, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None) -> float:
        """See :meth:`.session.Session.ridge_loss`."""
        weight = self._backend.terms.ridge(ridge)
        return ridge_loss(self._backend.device, self._sides[side], weight, self._buffers, prior)

    def features(self, features: Mapping[str, NDArray[np.floating]]) -> dict[str, CudaFeatures] | None:
        """See :meth:`.session.Session.features`. None where factors do not stay on the device, or would not beside the
        features: then they are no longer kept there."""
        device, sides = self._backend.device, self._sides
        n_bytes = self._kept_bytes + sum(array.nbytes for array in features.values())
        fits = n_bytes <= (device.available() + self._kept_bytes) // 4
        if not (self._kept_bytes and fits and all(array.dtype == np.float32 for array in features.values())):
            self._keep_nothing()
            return None
        device.kept_bytes += n_bytes - self._kept_bytes
        self._kept_bytes = n_bytes
        return {
            side: CudaFeatures(device, self._backend.terms, sides[side], sides[other_side(side)], self._buffers, array)
            for side, array in features.items()
        }

    def scale(self, side: str, factor: float) -> None:
        """See :meth:`.session.Session.scale`."""
        own = self._sides[side]
        if own.is_kept:
            self._backend.device.start("scale", own.to_write(), own.host.size, factor)
        else:
            own.host *= own.host.dtype.type(factor)

    def factors(self, side: str) -> NDArray[np.floating]:
        """See :meth:`.session.Session.factors`."""
        return self.arrays()[f"{side}_factors"]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`.session.Session.arrays`."""
        # Both or none: where the device is lost meanwhile, the host's factors are of one iteration.
        for factors, newest in [(factors, factors.newest()) for factors in self._sides.values()]:
            factors.fetch(newest)
        return {f"{side}_factors": factors.host for side, factors in self._sides.items()}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """See :meth:`.session.Session.restore`."""
        for name, array in self.arrays().items():
            np.copyto(array, arrays[name])
        for factors in self._sides.values():
            factors.refresh()
        self._users_basis = self._latest = None

    can_be_lost = True

    def forget_device(self) -> None:
        """The device is lost: from now on the session has what is on the host, and solves nothing."""
        for factors in getattr(self, "_sides", {}).values():  # none yet, where it is lost before the session is there
            factors.forget()
        self._latest = None

    def close(self) -> None:
        """See :meth:`.session.Session.close`."""
        self._keep_nothing()
        self._buffers.clear()

    def _keep_nothing(self) -> None:
        self.arrays()
        for side, factors in self._sides.items():
            self._sides[side] = Factors(self._backend.device.memory, factors.host, side)
        self._users_basis = self._latest = None
        self._backend.device.kept_bytes -= self._kept_bytes
        self._kept_bytes = 0

    def __enter__(self) -> CudaSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
