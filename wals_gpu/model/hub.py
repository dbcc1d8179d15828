"""Models on the Hugging Face hub, through its own client, ``huggingface_hub``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
        with _errors_of_the_hub(place, api, "uploaded"):
            api.create_repo(place.repo_id, private=private, exist_ok=True)
            if place.revision is not None:
                api.create_branch(place.repo_id, branch=place.revision, exist_ok=True)
        _take_card(api, place, folder)
        save(folder)
        with _errors_of_the_hub(place, api, "uploaded"):
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

    with contextlib.suppress(EntryNotFoundError), _errors_of_the_hub(place, api, "uploaded"):
        # A cache of its own: what is uploaded in a moment makes the page that others would find there an old one.
        with tempfile.TemporaryDirectory(prefix="wals-gpu-") as cache:
            there = api.hf_hub_download(place.repo_id, "README.md", revision=place.revision, cache_dir=cache)
            shutil.copyfile(there, folder / "README.md")


def pull(place: Place, cache_dir: str | PathLike[str] | None, local_files_only: bool) -> Path:
    """A folder with the model of a repository."""
    api = place.api()
    with _errors_of_the_hub(place, api, "downloaded"):
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
def _errors_of_the_hub(place: Place, api: Any, failed: str) -> Iterator[None]:
    """Its client's errors in the words of this library: a name that is none, and a server that cannot be reached.

    What the server answers, that there is no such repository or that it may not be read, is the client's own error.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"repo_id: {error}") from error
    except Exception as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if cause is None or isinstance(cause, HfHubHTTPError) or not _is_of_connection(cause, HfHubHTTPError):
            raise
        raise ConnectionError(
            f"{place.repo_id} could not be {failed}, as there is no connection to {api.endpoint} "
            f"({type(cause).__name__}: {' '.join(str(cause).split())}); check the network, or name another server with "
            "endpoint= or the variable HF_ENDPOINT; WALS.save and WALS.load take a local folder"
        ) from error


def _is_of_connection(error: BaseException, of_answers: type[Exception]) -> bool:
    """Whether an error is one of the package that the client asks with (requests, httpx or httpx2, by its version).

    The client's error of answers is a class of that package, too. Without a network it may also be Python's own.
    """
    packages = {base.__module__.partition(".")[0] for base in of_answers.__mro__} - {"huggingface_hub", "builtins"}
    own = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return bool(packages & own) or isinstance(error, (ConnectionError, TimeoutError))
