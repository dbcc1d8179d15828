"""Progress bars: a notebook's where it can show one, the terminal's everywhere else."""

from __future__ import annotations

import warnings
from typing import Any

from wals_gpu.checks import flag

with warnings.catch_warnings():
    # In a notebook without ipywidgets the terminal's bar will do: nothing to warn of when the library is imported.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: float | None, is_shown: bool, **options: Any) -> Any:
    """A bar of tqdm, or what stands for one that is not shown.

    Making a bar of tqdm, shown or not, starts a thread and takes a lock that forked processes share: where one of them
    ends while it has the lock, all others wait for ever.
    """
    return tqdm(total=total, **options) if flag("show_progress", is_shown) else _Hidden(total)


class _Hidden:
    """What of tqdm's bars is used here."""

    def __init__(self, total: float | None) -> None:
        self.total, self.n = total, 0.0

    def __enter__(self) -> _Hidden:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        self.n += n

    def set_postfix(self, *_: Any, **__: Any) -> None: ...

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...
