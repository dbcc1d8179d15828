"""Models on the Hugging Face hub, through its own client, ``huggingface_hub``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from wals_gpu.errors import ModelFormatError

__all__ = ["Place", "pull", "push"]

#: All that a model consists of; whatever else is in a repository is not ours, and neither taken nor removed.
_FILES = ("model.json", "model-*.safetensors", "README.md")


@dataclass(frozen=True)
class Place:
    """A repository, and how to get there; :meth:`wals_gpu.WALS.push_to_hub` documents each."""

    repo_id: str
    revision: str | None = None
    token: str | bool | None = None
    endpoint: str | None = None

    def api(self) -> Any:
        """The client of the server."""
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise ImportError("the hub needs huggingface_hub: pip install 'wals_gpu[hub]'", name=error.name) from error
        return HfApi(endpoint=self.endpoint, token=self.token, library_name="wals_gpu")


def push(place: Place, save: Callable[[Path], None], private: bool, commit_message: str) -> str:
    """Upload what `save` writes to a folder, in one commit, in place of a model that is there; its address."""
    api = place.api()
    with tempfile.TemporaryDirectory(prefix="wals-gpu-") as temporary:
        folder = Path(temporary)
        with _error_of_the_hub():
            api.create_repo(place.repo_id, private=private, exist_ok=True)
            if place.revision is not None:
                api.create_branch(place.repo_id, branch=place.revision, exist_ok=True)
        _take_card(api, place, folder)
        save(folder)
        with _error_of_the_hub():
            done = api.upload_folder(
                repo_id=place.repo_id,
                folder_path=folder,
                revision=place.revision,
                commit_message=commit_message,
                allow_patterns=list(_FILES),
                delete_patterns=["model-*.safetensors"],  # of the model before; not those that are uploaded
            )
    return str(done.commit_url)


def _take_card(api: Any, place: Place, folder: Path) -> None:
    """The page that is in the repository: a save leaves it alone if somebody has edited it."""
    from huggingface_hub.errors import EntryNotFoundError

    with contextlib.suppress(EntryNotFoundError), _error_of_the_hub():
        there = api.hf_hub_download(place.repo_id, "README.md", revision=place.revision)
        shutil.copyfile(there, folder / "README.md")


def pull(place: Place, cache_dir: str | PathLike[str] | None, local_files_only: bool) -> Path:
    """A folder with the model of a repository."""
    api = place.api()
    with _error_of_the_hub():
        folder = api.snapshot_download(
            place.repo_id,
            revision=place.revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(_FILES),
        )
    if not (Path(folder) / "model.json").exists():
        where = "" if place.revision is None else f", revision {place.revision},"
        raise ModelFormatError(f"{place.repo_id}{where} holds no model of wals_gpu: there is no model.json")
    return Path(folder)


@contextlib.contextmanager
def _error_of_the_hub() -> Any:
    """What its client says of a name that is none is a ValueError everywhere else in this library, too."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"repo_id: {error}") from error
