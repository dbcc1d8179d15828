"""Devices behind one interface; nothing outside this package branches on the device."""

from wals_gpu.backends.devices import make_backend
from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend, NeighborBackend, Session
from wals_gpu.backends.solve import SolveOptions

__all__ = ["Backend", "NeighborBackend", "Session", "SolveOptions", "Spectrum", "make_backend"]
