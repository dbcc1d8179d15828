"""Models that replace each other every night: :func:`publish`, and folders of models that answer while they change."""

from wals_gpu.publishing.condition import Condition
from wals_gpu.publishing.folder import BusyError, ModelFolder
from wals_gpu.publishing.run import Outcome, publish

__all__ = ["BusyError", "Condition", "ModelFolder", "Outcome", "publish"]
