"""Door to :mod:`wals_gpu.data.stored`: interactions on disk, larger than the memory."""

from wals_gpu.data.stored import StoredMatrix, write_stored

__all__ = ["StoredMatrix", "write_stored"]
