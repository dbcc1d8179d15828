"""Weighted matrix factorisation on implicit feedback: exact, fast, with top-k retrieval.

The main entry is :class:`WALS`; ``wals-gpu --help`` is the command line.
"""

from importlib.metadata import PackageNotFoundError, version

from wals_gpu.backends.devices import cuda_status
from wals_gpu.data.interactions import Interactions, as_interactions, read_interactions
from wals_gpu.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    DeviceLostError,
    DistributedError,
    ModelFitError,
    ModelFormatError,
    ParameterWarning,
    SingularSystemError,
)
from wals_gpu.model.recommendations import Explanation, Recommendations
from wals_gpu.model.wals import WALS
from wals_gpu.objective.presets import PRESETS, make_objective
from wals_gpu.training.state import FitRecord

try:
    __version__ = version("wals_gpu")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "PRESETS",
    "WALS",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DeviceLostError",
    "DistributedError",
    "Explanation",
    "FitRecord",
    "Interactions",
    "ModelFitError",
    "ModelFormatError",
    "ParameterWarning",
    "Recommendations",
    "SingularSystemError",
    "as_interactions",
    "cuda_status",
    "make_objective",
    "read_interactions",
]
