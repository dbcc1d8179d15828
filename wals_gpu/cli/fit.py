"""``wals-gpu fit``: learn from interactions and save a model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wals_gpu.backends.launched import is_launched
from wals_gpu.checks import warn
from wals_gpu.cli import nightly
from wals_gpu.cli.inputs import check_model, load_model, new_model, read_data, reading_options, refuse_model
from wals_gpu.cli.options import (
    add_computation,
    add_data,
    add_model,
    add_rank_timeout,
    check_device,
    positive,
    rank_timeout,
    share_or_path,
)
from wals_gpu.cli.output import in_words, print_json, say
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.cli.tables import check_writable
from wals_gpu.cli.texts import add_texts, check_texts, hybrid, read_texts
from wals_gpu.data.files import CURRENT, real_folder, remove_folder
from wals_gpu.data.interactions import Interactions
from wals_gpu.model.starting import SavedStart
from wals_gpu.model.wals import WALS
from wals_gpu.objective.presets import PRESETS
from wals_gpu.training.plan import check_start

if TYPE_CHECKING:
    from wals_gpu.distributed.group import Group
    from wals_gpu.distributed.shards import Shards

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  wals-gpu fit plays.parquet --out model
  wals-gpu fit plays.csv --out model --user-column listener --item-column track
  wals-gpu fit plays.parquet --out model --objective ials \\
      --set unobserved_weight=0.01 --set regularization=0.005 --factors 64

  wals-gpu fit plays.parquet --out model --iterations 50 --validation 0.1 --patience 3
  wals-gpu fit plays.parquet --out model --checkpoint-dir unfinished --resume
  wals-gpu fit plays.parquet --out new --settings settings.json --warm-start model
  wals-gpu fit plays.parquet --time-column time --warm-start models --out models \\
      --publish-if "ndcg@20 >= yesterday - 0.002"
  wals-gpu fit plays.parquet --out model --items tracks.csv --text title,description \\
      --encoder roberta-base

With --resume, the same command begins the fit and goes on with it after a crash; the
checkpoint is removed once the model is saved.

Ctrl-C once: the running iteration ends, the model so far is saved, exit status 130.
Ctrl-C twice: stop at once and save nothing.

With --publish-if: exit status 3 where the model is refused, 4 where another run is on;
Ctrl-C publishes nothing. docs/production.md has recipes.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "fit", "learn from interactions and save a model", run, _objectives() + EXAMPLES)
    add_data(parser)
    parser.add_argument(
        "--out", metavar="MODEL", type=Path, required=True, help="folder to save to; a model there is replaced"
    )
    parser.add_argument(
        "--save-dtype",
        choices=["float16"],
        help="type of the factors in the folder, rounded to it (default: as fitted)",
    )
    add_model(parser)
    parser.add_argument(
        "--warm-start", metavar="MODEL", type=Path,
        help="begin with the factors of this model, of as many factors; who or what is new begins at random",
    )  # fmt: skip
    add_computation(parser)
    add_rank_timeout(parser)
    nightly.add(parser)
    group = parser.add_argument_group("validation and checkpoints")
    group.add_argument(
        "--validation",
        metavar="SHARE|FILE",
        type=share_or_path,
        help="measure on this share, which is held out, or on a file of other interactions; the best factors are saved",
    )
    group.add_argument("--metric", help="what to measure, such as ndcg@10 or recall@20 (default ndcg@10)")
    group.add_argument("--validate-every", metavar="N", type=positive, help="iterations between (default 1)")
    group.add_argument("--patience", metavar="N", type=positive, help="stop after N measurements without a new best")
    group.add_argument(
        "--checkpoint-dir", metavar="FOLDER", type=Path, help="keep a checkpoint here until the model is saved"
    )
    group.add_argument("--checkpoint-every", metavar="N", type=positive, help="iterations between (default 1)")
    group.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    add_texts(parser)


def _objectives() -> str:
    """The objectives with their parameters and defaults, read from the objectives themselves."""
    indent: dict[str, Any] = {"initial_indent": " " * 4, "subsequent_indent": " " * 6, "break_on_hyphens": False}
    lines = ["objectives, and what --set can change (defaults shown):"]
    for name, preset in PRESETS.items():
        about = (preset.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        parameters = ", ".join(f"{key}={value}" for key, value in preset().parameters().items())
        lines += [f"  {name}", *(textwrap.fill(text, 79, **indent) for text in (about, parameters))]
    return "\n".join(lines) + "\n\n"


def run(args: argparse.Namespace) -> int:
    """Fit and save; 130 where Ctrl-C ended it early."""
    if is_launched():
        return _run_on_ranks(args)
    _check(args)
    model = new_model(args) if args.encoder is None else hybrid(args, *read_texts(args))
    if args.publish_if is not None:
        with _interruptible("then nothing is published") as is_stopped:
            return nightly.run(args, model, lambda: read_data(args), _options(args, None), _add_left_over, is_stopped)
    start = None if args.warm_start is None else _start_of(model, args)
    data = read_data(args)
    _check_space(args.out, model, _sizes_of(data))
    interrupted = _fit_until_interrupted(model, data, start, args)
    _add_left_over(model)
    model.save(args.out, dtype=args.save_dtype)
    if args.checkpoint_dir is not None and not interrupted:
        remove_folder(args.checkpoint_dir)
    sizes = _sizes_of(data)
    (_print_for_programs if args.json else _print_for_people)(args.out, model, sizes, interrupted)
    return 130 if interrupted else 0


def _check(args: argparse.Namespace) -> None:
    """What can be refused before any work."""
    nightly.check(args)
    if args.publish_if is None:
        _check_target(args.out)
    else:
        check_writable(args.out, _nearest_folder(args.out))
    _check_companions(args)
    if args.checkpoint_dir is not None and args.checkpoint_dir.resolve() == args.out.resolve():
        raise ValueError("--checkpoint-dir and --out must be different folders")
    check_texts(args)
    check_device(args)
    for path in (args.validation, args.items):  # opened much later
        if isinstance(path, (str, Path)) and not os.path.exists(path) and not re.search(r"[*?\[]|://", str(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _check_companions(args: argparse.Namespace) -> None:
    """Options that mean something only beside another one."""
    for needed, others in (
        ("validation", ("metric", "validate_every", "patience")),
        ("checkpoint_dir", ("checkpoint_every", "resume")),
    ):
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]
        if given and getattr(args, needed) is None:
            needs = "needs" if len(given) == 1 else "need"
            raise ValueError(f"{' and '.join(given)} {needs} --{needed.replace('_', '-')}")
    if args.popularity_exponent == "auto" and args.validation is None:
        raise ValueError("--popularity-exponent auto needs --validation, by which it is chosen; or give a number")


def _check_target(path: Path) -> None:
    """Refuse to put a model where something else is, or where nothing can be."""
    if path.name == CURRENT and real_folder(path) != path:
        raise ValueError(
            f"--out: {path} leads to the model in use, which is replaced as a whole: --out {path.parent} --publish-if"
        )
    if path.is_dir():
        check_writable(path, path)
        if not any(path.iterdir()):
            return
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            if json.loads((path / "model.json").read_bytes())["format"] == "wals_gpu":
                return
        if os.path.lexists(path / CURRENT):
            raise ValueError(f"--out: {path} is a folder of models, for --publish-if; give another name")
        raise ValueError(f"--out: {path} is there and is not a model folder; give a new name, or remove it yourself")
    if path.exists() or path.is_symlink():
        raise ValueError(f"--out: {path} is there and is not a folder; give a new name, or remove it yourself")
    check_writable(path, _nearest_folder(path))


def _nearest_folder(path: Path) -> Path:
    """What is there of a path."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _check_space(path: Path, model: WALS, sizes: tuple[int, int, int]) -> None:
    """Refuse a fit whose model the disk has no room for, as far as it can be told before."""
    n_users, n_items, n_entries = sizes
    needed = ((n_users + n_items) * model.factors + n_entries) * model.dtype.itemsize + 4 * n_entries
    free = shutil.disk_usage(_nearest_folder(path)).free
    if needed > free:
        raise ValueError(f"--out {path}: the model takes {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there")


def _add_left_over(model: WALS) -> None:
    """Items of the catalogue that nobody has."""
    if model.item_prior is not None and model.item_ids is not None:
        embeddings, ids = model.item_prior.left_over(model.item_ids)
        if ids:
            model.add_items(embeddings, ids)


def _start_of(model: WALS, args: argparse.Namespace) -> WALS:
    """The model of --warm-start; one that `model` cannot begin with is refused before the interactions are read."""
    start = load_model(args, args.warm_start, "--warm-start")
    check_start(model.factors, start.factors)
    return start


def _fit_until_interrupted(model: WALS, data: Interactions, start: WALS | None, args: argparse.Namespace) -> bool:
    """Fit, from another model where there is one; whether Ctrl-C ended it early.

    The first Ctrl-C lets the running iteration finish, so that the factors of both sides belong together and can be
    saved; the second stops at once.
    """
    options = _options(args, data)
    if start is not None:
        options["warm_start"] = start
    with _interruptible() as is_stopped:
        model.fit(data, callback=lambda *_: is_stopped(), show_progress=not args.quiet, **options)
    return is_stopped() and len(model.history_) < model.iterations


def _options(args: argparse.Namespace, data: Interactions | None) -> dict[str, Any]:
    """Of a fit."""
    names = ("validation", "metric", "validate_every", "patience", "checkpoint_dir", "checkpoint_every", "resume")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if isinstance(args.validation, str) and data is not None:
        known = {"user_ids": data.user_ids, "item_ids": data.item_ids, "unknown": "drop"}
        options["validation"] = read_data(args, args.validation, **known, time_column=None)
    return options


@contextlib.contextmanager
def _interruptible(end: str = "then saving (Ctrl-C again: stop now and save nothing)") -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; the second time, it is a KeyboardInterrupt."""
    stop = False

    def on_interrupt(signum: int, frame: Any) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True
        say(f"stopping after this iteration, {end}")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: stop
    finally:
        signal.signal(signal.SIGINT, before)


def _run_on_ranks(args: argparse.Namespace) -> int:
    """The same on each of the processes that torchrun started; rank 0 speaks for all."""
    # Imported here: all commands but these run where the native module does not.
    from wals_gpu.distributed.device import device_of_rank
    from wals_gpu.distributed.fit import fit_sharded
    from wals_gpu.distributed.group import gather_json, together
    from wals_gpu.distributed.launch import connected, threads_of_rank

    with connected(rank_timeout(args)) as group:
        args.quiet = args.quiet or group.rank > 0
        args.threads = args.threads or threads_of_rank()
        with together(group):
            args.device = device_of_rank(args.device)
            if "device" in args.settings:
                args.settings["device"] = args.device
            _check(args)
            _check_restarts(args)
            args.settings["num_threads"] = args.threads
            model = new_model(args)
        if args.encoder is not None:
            model = _hybrid_on_ranks(group, args)
        if args.publish_if is not None:
            with _interruptible("then nothing is published") as is_stopped:
                read = partial(_read_on_ranks, group, model, args)
                return nightly.run(args, model, read, _options(args, None), _add_left_over, is_stopped, group)
        with together(group):
            if args.warm_start is not None:
                check_model(args.warm_start, "--warm-start")
                check_start(model.factors, SavedStart(args.warm_start).factors)
        shards = _read_on_ranks(group, model, args, args.warm_start)
        sizes = _sizes_of(shards)
        with together(group):
            options = _options(args, None)
            if isinstance(args.validation, str):
                refuse_model(args.validation, "a file of interactions")
                options = reading_options(args) | options
            _check_space(args.out, model, sizes)
        with _interruptible() as is_stopped:
            fitted = fit_sharded(
                model,
                shards,
                group,
                warm_start=False if args.warm_start is None else args.warm_start,
                callback=lambda _: is_stopped(),
                show_progress=not args.quiet,
                **options,
            )
        with together(group, "adding the items that nobody has"):
            _add_left_over(fitted.local)
        fitted.save(args.out, dtype=args.save_dtype)
        interrupted = any(gather_json(group, is_stopped())) and len(fitted.history) < model.iterations
        if group.rank == 0:
            if args.checkpoint_dir is not None and not interrupted:
                shutil.rmtree(args.checkpoint_dir, ignore_errors=True)
            (_print_for_programs if args.json else _print_for_people)(args.out, fitted.local, sizes, interrupted)
    return 130 if interrupted else 0


def _check_restarts(args: argparse.Namespace) -> None:
    """Warn where torchrun is to begin again after a loss, and the checkpoint would be refused then."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and args.checkpoint_dir is not None and not args.resume:
        warn("torchrun is to restart ranks that are lost, but they go on from --checkpoint-dir only with --resume")


def _hybrid_on_ranks(group: Group, args: argparse.Namespace) -> WALS:
    """Rank 0 encodes the texts: in other batches, vectors would have other last bits."""
    import numpy as np

    from wals_gpu.distributed.group import gather_json, together

    ids: list[Any] = []
    model = None
    with together(group, "encoding texts"):
        ids, texts = read_texts(args)
        if group.rank == 0:
            model = hybrid(args, ids, texts)
    embeddings = None if model is None or model.item_prior is None else model.item_prior.embeddings
    shape, dtype = gather_json(group, None if embeddings is None else [embeddings.shape, embeddings.dtype.name])[0]
    with together(group, "making room for the vectors of texts"):
        embeddings = np.empty(shape, dtype) if embeddings is None else np.ascontiguousarray(embeddings)
    assert embeddings is not None
    group.broadcast(embeddings)
    return hybrid(args, ids, embeddings, is_encoded=True) if model is None else model


def _sizes_of(data: Interactions | Shards) -> tuple[int, int, int]:
    """U, I and Z; of shards, every rank makes the call."""
    if isinstance(data, Interactions):
        n_users, n_items = data.matrix.shape
        return n_users, n_items, data.matrix.nnz
    return (*data.shape, data.count_entries())


def _read_on_ranks(group: Group, model: WALS, args: argparse.Namespace, warm_start: Path | None = None) -> Shards:
    """A part of the files on each rank."""
    from wals_gpu.distributed.fit import read_for
    from wals_gpu.distributed.group import together

    with together(group):
        for one in args.interactions:
            refuse_model(one, "a file of interactions")
        options = reading_options(args)
    return read_for(model, args.interactions, group, False if warm_start is None else warm_start, **options)


def _print_for_programs(out: Path, model: WALS, sizes: tuple[int, int, int], interrupted: bool) -> None:
    n_users, n_items, n_entries = sizes
    print_json(
        {
            "model": str(out),
            "users": n_users,
            "items": n_items,
            "entries": n_entries,
            "objective": {"name": model.objective.name, **model.objective.parameters()},
            "regularization": model.regularization_,
            "history": [dataclasses.asdict(record) for record in model.history_],
            "best_iteration": model.best_iteration_,
            "popularity_exponent": model.popularity_exponent_,
            "interrupted": interrupted,
        }
    )


def _print_for_people(out: Path, model: WALS, sizes: tuple[int, int, int], interrupted: bool) -> None:
    seconds = sum(record.seconds for record in model.history_)
    stopped = len(model.history_) < model.iterations
    iterations = f"{len(model.history_)} iterations" + (f" of {model.iterations}" if stopped else "")
    print(f"{in_words(*sizes)}; {model.factors} factors, {iterations} in {seconds:.1f} s")
    if model.best_iteration_ is not None:
        best = model.history_[model.best_iteration_ - 1].validation
        print(f"best {model.validation_metric_} {best:.4f}, after iteration {model.best_iteration_}")
    if model.popularity_exponent == "auto":
        print(f"popularity exponent {model.popularity_exponent_:g}")
    print(f"saved {out}" + (": usable, but training was interrupted" if interrupted else ""))
