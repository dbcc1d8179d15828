"""Exceptions and warnings of the package, each a kind of the built-in one that Python programmers expect."""

from __future__ import annotations

from numpy.linalg import LinAlgError

__all__ = [
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DeviceLostError",
    "DistributedError",
    "EmptyTableError",
    "ListLengthError",
    "ModelFitError",
    "ModelFormatError",
    "ParameterWarning",
    "SingularSystemError",
]


class ModelFitError(ValueError):
    """Training cannot go on, for example because a factor became NaN."""


class DataError(ValueError):
    """Input data cannot be used: an unreadable file, an id that is missing, a value that is not a number."""


class EmptyTableError(DataError):
    """A table has no rows, or a file not one byte."""


class ListLengthError(ValueError, MemoryError):
    """Lists are to be so long that their answer has no room in the memory that is left; nothing was computed yet."""


class DeviceError(ValueError):
    """A device cannot do what was asked of it, such as compute in float64; the message names the argument."""


class DeviceLostError(DeviceError):
    """A device stopped working: nothing can be computed on it any more in this process."""


class DistributedError(RuntimeError):
    """The processes of a fit on several machines cannot go on together: one is gone, or they differ in what they do."""


class ModelFormatError(ValueError):
    """A saved model is damaged, incomplete, or written by a newer version."""


class CheckpointError(ValueError):
    """A checkpoint is not of this fit: it was written with other data or settings, or would be overwritten."""


class ParameterWarning(UserWarning):
    """Input was accepted, but changed (converted, merged) in a way that its owner may want to know."""


class SingularSystemError(LinAlgError):
    """The linear system of a row is not positive definite.

    Parameters
    ----------
    row : int
        The first such row, counted in the rows being solved.
    remedy : str
        What to do about it.
    who : str, optional
        The row in the user's words, such as "user 3 (id 'ann')".
    """

    def __init__(self, row: int, remedy: str = "increase the regularization", who: str | None = None) -> None:
        super().__init__(row, remedy, who)  # the arguments themselves, so that the exception can be pickled
        self.row = row
        self.remedy = remedy
        self.who = who

    def __str__(self) -> str:
        return f"the linear system of {self.who or f'row {self.row}'} is not positive definite; {self.remedy}"
