"""Door to :mod:`wals_gpu.model.finetune`: a text encoder trained on interactions."""

from wals_gpu.model.finetune import FineTuneRound, fine_tune

__all__ = ["FineTuneRound", "fine_tune"]
