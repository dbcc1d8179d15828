"""The progress bar: a notebook's where it can show one, the terminal's everywhere else."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # In a notebook without ipywidgets the terminal's bar will do: nothing to warn of when the library is imported.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
