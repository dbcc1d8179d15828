"""``device="auto"``: the CPU, but for fits that a CUDA device does sooner."""

from __future__ import annotations

import logging

from wals_gpu.backends import self_check
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import FitWork
from wals_gpu.checks import warn
from wals_gpu.errors import DeviceError

__all__ = ["AutoBackend"]

log = logging.getLogger(__name__)

#: Multiply-adds of a fit below which nothing is asked of CUDA: eight cores of a server do them in two seconds, which is
#: what the start of CUDA and torch takes in a new process.
LEAST_WORK = 2e11

#: Seconds that this start takes, and the upload of the interactions, on the safe side.
START_SECONDS = 3.0


class AutoBackend(CpuBackend):
    """The CPU, and a choice of the device for each fit.

    Answers stay on the CPU, whatever their number: what a user gets alone and in a list of all is the same to the last
    bit.
    """

    chooses = True

    def choose(self, work: FitWork) -> tuple[Backend, str]:
        """See :func:`.devices.choose_backend`. What is chosen, and why, is logged."""
        backend, why = self._choose(work)
        told = f"{'cpu' if backend is self else backend.name} (device='auto': {why})"
        log.info("%s", told)
        return backend, told

    def _choose(self, work: FitWork) -> tuple[Backend, str]:
        amount = self_check.work(work.sides[0].n_entries, work.sides[0].factors, work.options)
        if work.before == "cpu":
            return self, "the checkpoint is of the CPU"
        if work.before is None and amount * work.iterations < LEAST_WORK:
            return self, "the fit is small"
        if work.sides[0].itemsize != 4:
            return self, "CUDA devices compute in float32"
        try:
            backend = self_check.cuda_backend()
            backend.check(factors=work.sides[0].factors, options=work.options, k=work.k)
            needed = max(backend.memory_of(side).fixed for side in work.sides)
            free = backend.device.available()
            if needed > free:
                return self, f"the fit needs {needed / 2**30:.1f} GiB on the CUDA device, {free / 2**30:.1f} are free"
        except (RuntimeError, DeviceError, ImportError, MemoryError) as error:
            return self, str(error)
        try:
            outcome = self_check.approve(backend)
        except RuntimeError as error:  # nobody has asked for this device, but who has it will want to know
            warn(f"device='auto' takes the CPU: {error}")
            return self, str(error)
        if work.before is not None:
            return backend, "the checkpoint is of a CUDA device"
        if outcome is None or not outcome.cuda:
            return backend, "the fit is large"
        seconds = [work.iterations * (fixed + rate * amount) for fixed, rate in (outcome.cpu, outcome.cuda)]
        if seconds[1] + START_SECONDS >= seconds[0]:
            return self, f"{outcome.device} would save nothing of some {seconds[0]:.1f} s"
        return backend, f"{outcome.device} is about {outcome.speedup(amount):.0f} times as fast in such a fit"
