"""Devices behind one interface; nothing outside this package branches on the device."""

from wals_gpu.backends.devices import Backend, held, make_backend
from wals_gpu.backends.host import Spectrum

__all__ = ["Backend", "Spectrum", "held", "make_backend"]
