"""The command line, ``wals-gpu``: fit, recommend, similar, embed, evaluate, doctor, demo."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.linalg import LinAlgError
from tqdm.auto import tqdm

from wals_gpu.cli.lists import item_lists, user_lists
from wals_gpu.cli.parser import make_parser, say
from wals_gpu.tables import format_table

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from wals_gpu.data.ids import Ids
    from wals_gpu.data.interactions import Interactions
    from wals_gpu.model.wals import WALS

__all__ = ["main"]

# What bad input, a full disk or a missing extra raise. One line on stderr instead of a traceback, exit status 2.
_EXPECTED = (ValueError, TypeError, LookupError, OSError, MemoryError, LinAlgError, ImportError)

_USERS_PER_CHUNK = 4096


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit status: 0 done, 1 the installation is not usable (``doctor``), 2 bad input, 130 interrupted.
    """
    args = make_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = _COMMANDS[args.command](args) or 0
            sys.stdout.flush()  # so that a reader that has gone away shows here and not at exit
            return status
        except KeyboardInterrupt:
            kept = getattr(args, "checkpoint_dir", None)
            say("interrupted; nothing was saved" + (f" but the checkpoint in {kept}" if kept else ""))
            return 130
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except _EXPECTED as error:
            if args.traceback:
                traceback.print_exc()
            say(f"error: {_one_line(error)}")
            return 2


# ------------------------------------------------------------------------------------------------------------- commands


def _fit(args: argparse.Namespace) -> int:
    _check_model_target(args.out)
    if args.checkpoint_dir is not None and args.checkpoint_dir.resolve() == args.out.resolve():
        raise ValueError("--checkpoint-dir and --out must be different folders")
    if (args.items is None) != (args.encoder is None):
        raise ValueError(
            "--items and --encoder belong together: a table of items, and what turns its texts into vectors"
        )
    if args.encoder is None and (args.text is not None or args.strength is not None):
        raise ValueError("--text and --strength need --items and --encoder")
    model = _new_model(args) if args.encoder is None else _new_hybrid(args)
    data = _read(args)
    interrupted = _fit_until_interrupted(model, data, args)
    if model.item_prior is not None and model.item_ids is not None:
        embeddings, ids = model.item_prior.left_over(model.item_ids)
        if ids:
            model.add_items(embeddings, ids)
    model.save(args.out)
    if args.checkpoint_dir is not None and not interrupted:
        from wals_gpu.data.files import remove_folder

        remove_folder(args.checkpoint_dir)
    n_users, n_items = data.matrix.shape
    seconds = sum(record.seconds for record in model.history_)
    if args.json:
        _print_json(
            {
                "model": str(args.out),
                "users": n_users,
                "items": n_items,
                "entries": data.matrix.nnz,
                "objective": {"name": model.objective.name, **model.objective.parameters()},
                "history": [dataclasses.asdict(record) for record in model.history_],
                "best_iteration": model.best_iteration_,
                "interrupted": interrupted,
            }
        )
    else:
        stopped = len(model.history_) < model.iterations
        done = f"{len(model.history_)} iterations" + (f" of {model.iterations}" if stopped else "")
        print(f"{_shape_text(data)}; {model.factors} factors, {done} in {seconds:.1f} s")
        if model.best_iteration_ is not None:
            best = model.history_[model.best_iteration_ - 1].validation
            print(f"best {model.validation_metric_} {best:.4f}, after iteration {model.best_iteration_}")
        print(f"saved {args.out}" + (": usable, but training was interrupted" if interrupted else ""))
    return 130 if interrupted else 0


def _recommend(args: argparse.Namespace) -> None:
    ways = sum([bool(args.users), args.all, args.users_file is not None, args.text is not None])
    if ways != 1:
        asked = "USER ids, --users-file FILE, --all or --text TEXT"
        raise ValueError(f"say for whom: {asked}" + (" (only one of them)" if ways else ""))
    if args.text is not None:
        _recommend_for_text(args)
        return
    if args.all and args.out is None:
        raise ValueError("--all needs --out FILE (.parquet or .csv)")
    if args.out is not None:
        _writer_for(args.out)  # refuse a wrong name before the model is loaded
    model = _load(args.model)
    if args.all:
        n_users = model.n_users
        users = np.arange(n_users) if model.user_ids is None else model.user_ids.ids
    else:
        texts = args.users or _lines(args.users_file)
        users = _parse_ids(texts, model.user_ids, model.n_users, "user")
    options: dict[str, Any] = {"filter_seen": not args.include_seen, "explore": args.explore, "noise": args.noise}
    options |= {"random_state": args.seed} | item_lists(args, model) | user_lists(args, model, users)
    chunks = model.recommend_chunks(users, args.k, chunk_size=_USERS_PER_CHUNK, **options)
    if args.out is not None:
        progress = tqdm(total=len(users), desc="recommend", unit="user", delay=1, disable=args.quiet)
        with progress:
            rows = _write_recommendations(args.out, model, chunks, progress.update)
        if args.json:
            _print_json({"out": str(args.out), "users": len(users), "rows": rows})
        else:
            print(f"wrote {rows:,} rows for {len(users):,} users to {args.out}")
        return
    found = [(user, _pairs(ids, scores)) for batch in chunks for user, ids, scores in zip(*batch, strict=True)]
    if args.json:
        _print_json([{"user": _plain(user), "items": [_named(pair) for pair in pairs]} for user, pairs in found])
    else:
        table: list[list[object]] = [
            [str(user), rank, str(item), score] for user, pairs in found for rank, (item, score) in enumerate(pairs, 1)
        ]
        print(format_table(["user", "rank", "item", "score"], table))


def _recommend_for_text(args: argparse.Namespace) -> None:
    for_users = {"--out": args.out, "--deny": args.deny, "--allow": args.allow, "--explore": args.explore}
    for_users |= {"--noise": args.noise, "--seed": args.seed, "--include-seen": args.include_seen or None}
    if unfit := [name for name, value in for_users.items() if value is not None]:
        raise ValueError(f"{', '.join(unfit)} cannot be used with --text, which is for no user")
    model = _load(args.model)
    lists = item_lists(args, model)
    ids, scores = model.search(model.project_items([args.text])[0], args.k, metric="cosine", **lists)
    pairs = _pairs(ids, scores)
    if args.json:
        _print_json({"text": args.text, "items": [_named(pair) for pair in pairs]})
    else:
        print(
            format_table(
                ["rank", "item", "cosine"], [[n, str(item), score] for n, (item, score) in enumerate(pairs, 1)]
            )
        )


def _similar(args: argparse.Namespace) -> None:
    model = _load(args.model)
    items = _parse_ids(args.items, model.item_ids, model.n_items, "item")
    # The item itself is not asked for, whatever the lists say.
    ids, scores = model.similar_items(items, args.k, deny=[[item] for item in items], **item_lists(args, model))
    found = []
    for item, row, score in zip(items, ids, scores, strict=True):
        found.append((item, _pairs(row, score)))
    if args.json:
        _print_json([{"item": _plain(item), "similar": [_named(pair) for pair in pairs]} for item, pairs in found])
    else:
        rows = [
            [str(item), rank, str(other), score]
            for item, pairs in found
            for rank, (other, score) in enumerate(pairs, 1)
        ]
        print(format_table(["item", "rank", "similar", "cosine"], rows))


def _evaluate(args: argparse.Namespace) -> None:
    from wals_gpu import evaluation

    if args.protocol == "temporal" and args.time_column is None:
        raise ValueError("--protocol temporal needs --time-column COLUMN")
    model = _new_model(args)
    data = _read(args)
    matrix, fold_in = data.matrix, None
    times: Any = None if args.time_column is None else _read_times(args)
    if args.protocol == "random":
        train, test = evaluation.random_holdout(matrix, args.fraction, args.seed)
    elif args.protocol == "leave-one-out":
        train, test = evaluation.leave_one_out(matrix, times, args.seed)
    elif args.protocol == "temporal":
        train, test = evaluation.temporal_split(matrix, times, fraction=args.fraction)
    else:
        train, fold_in, test, *_ = evaluation.strong_generalisation_split(
            matrix, args.heldout, args.fraction, args.seed
        )
    began = time.perf_counter()
    model.fit(train, show_progress=not args.quiet)
    seconds = time.perf_counter() - began
    options: dict[str, Any] = {"fold_in": fold_in, "few_shot": args.cohorts, "random_state": args.seed}
    if args.negatives is not None:
        options["candidates"] = evaluation.sample_negatives(
            train if fold_in is None else fold_in, test, args.negatives, args.seed
        )
    report = evaluation.evaluate(model, train, test, args.k, **options)
    if args.json:
        objective = {"name": model.objective.name, **model.objective.parameters()}
        _print_json(
            {"protocol": args.protocol, "seed": args.seed, "objective": objective, "fit_seconds": seconds}
            | report.to_dict()
        )
    else:
        print(f"{_shape_text(data)}; {train.nnz:,} to train on, {test.nnz:,} to find; fitted in {seconds:.1f} s\n")
        print(f"{report}\n[in brackets: 95 % interval, bootstrap over users; split {args.protocol}, seed {args.seed}]")


def _embed(args: argparse.Namespace) -> None:
    from wals_gpu.text.items import read_item_texts, write_embeddings
    from wals_gpu.text.transformer import TextEncoder

    as_array = args.out.suffix == ".npy"
    if not as_array and args.out.suffix not in (".parquet", ".pq"):
        raise ValueError(f"--out must end in .npy or .parquet, got {args.out}")
    if not args.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {args.out.absolute().parent}")
    ids, texts = read_item_texts(args.items, text_columns=args.text.split(","), item_column=args.item_column)
    encoder = TextEncoder(
        args.encoder,
        layers=_layers(args.layers),
        pooling=args.pooling,
        max_length=args.max_length,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        cache_dir=args.cache,
    )
    began = time.perf_counter()
    array = args.out if as_array else args.out.with_name(f".{args.out.name}.npy")
    vectors = encoder.encode(texts, show_progress_bar=not args.quiet, normalize_embeddings=args.normalize, out=array)
    if not as_array:
        write_embeddings(args.out, ids, vectors)
        array.unlink()
    seconds = time.perf_counter() - began
    empty = sum(not text.strip() for text in texts)
    if args.json:
        shape = {"texts": len(texts), "empty": empty, "dimension": vectors.shape[1]}
        _print_json({"out": str(args.out), **shape, "encoder": encoder.to_config(), "seconds": seconds})
    else:
        filled = f"; {empty:,} empty texts have the mean of the others" if empty else ""
        print(f"wrote {len(texts):,} vectors of {vectors.shape[1]} to {args.out} in {seconds:.1f} s{filled}")


def _layers(text: str) -> str | list[int]:
    """A name, or numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text


def _doctor(args: argparse.Namespace) -> int:
    from wals_gpu.cli.doctor import doctor, format_doctor

    info = doctor()
    if args.json:
        _print_json(info)
    else:
        print(format_doctor(info))
    return 0 if info["native"]["available"] else 1


def _demo(args: argparse.Namespace) -> None:
    from wals_gpu.cli.demo import format_demo, run_demo

    options = {"seed": args.seed, "num_threads": args.threads, "show_progress": not (args.quiet or args.json)}
    result = run_demo(**options)
    if not args.json:
        print(format_demo(result), flush=True)
    try:
        from wals_gpu.cli.text_demo import demo_encoder, format_text_demo, run_text_demo

        encode = demo_encoder(options["show_progress"])
    except ImportError as error:
        text, left_out = None, str(error.name or error)
    else:
        text, left_out = run_text_demo(encode, **options), ""
    if args.json:
        _print_json(result.to_dict() | {"text": None if text is None else text.to_dict()})
    elif text is None:
        missing = f"it needs {left_out}: pip install 'wals_gpu[demo]'"
        print(f"\nLeft out: packages that nobody names yet, by their descriptions ({missing}).")
    else:
        print(f"\n{format_text_demo(text)}")
    if not args.json:
        print("\nYour own data: wals-gpu evaluate FILE, then wals-gpu fit FILE --out MODEL.\nMore: wals-gpu --help")


_COMMANDS = {
    "fit": _fit,
    "recommend": _recommend,
    "similar": _similar,
    "embed": _embed,
    "evaluate": _evaluate,
    "doctor": _doctor,
    "demo": _demo,
}

# ------------------------------------------------------------------------------------------------------- data and model


def _read(args: argparse.Namespace, path: str | None = None, **known: Any) -> Interactions:
    """The interactions of the command, or of another file with the same columns."""
    from wals_gpu.data.interactions import read_interactions

    return read_interactions(
        path or args.interactions,
        user_column=args.user_column,
        item_column=args.item_column,
        value_column=args.value_column,
        dtype=args.dtype,
        **known,
    )


def _read_times(args: argparse.Namespace) -> csr_matrix:
    """The time of each entry, as a matrix like that of the interactions."""
    from wals_gpu.data.interactions import read_interactions
    from wals_gpu.errors import DataError, ParameterWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ParameterWarning)
        try:
            return read_interactions(
                args.interactions,
                user_column=args.user_column,
                item_column=args.item_column,
                value_column=args.time_column,
                dtype="float64",  # holds Unix microseconds exactly
            ).matrix
        except ParameterWarning as error:  # the sum of two moments is none
            raise DataError(f"--time-column needs one row for each pair of user and item: {error}") from error


def _new_model(args: argparse.Namespace) -> WALS:
    from wals_gpu.model.wals import WALS
    from wals_gpu.objective.presets import make_objective

    return WALS(
        args.factors or 128,
        make_objective(args.objective or "implicit", **dict(args.set)),
        iterations=args.iterations or 15,
        solver=args.solver,
        over_relaxation=args.over_relaxation,
        dtype=args.dtype,
        device=args.device,
        num_threads=args.threads,
        random_state=args.seed,
    )


def _new_hybrid(args: argparse.Namespace) -> WALS:
    """A model with the texts of --items, in the recommended configuration where nothing else is said."""
    from wals_gpu.errors import DataError
    from wals_gpu.model.wals import WALS
    from wals_gpu.text.items import read_item_texts

    columns = (args.text or "text").split(",")
    ids, texts = read_item_texts(args.items, text_columns=columns, item_column=args.item_column)
    if ids is None:
        raise DataError(
            f"{args.items} must have a column of item ids; --item-column names it, here and in the interactions"
        )
    given = {name: getattr(args, name) for name in ("factors", "iterations", "objective")}
    return WALS.hybrid(
        texts,
        args.encoder,
        ids=ids.to_pylist(),
        prior={} if args.strength is None else {"strength": args.strength},
        **{name: value for name, value in given.items() if value is not None},
        **dict(args.set),
        solver=args.solver,
        over_relaxation=args.over_relaxation,
        dtype=args.dtype,
        device=args.device,
        num_threads=args.threads,
        random_state=args.seed,
    )


def _load(path: Path) -> WALS:
    from wals_gpu.model.wals import WALS

    return WALS.load(path)


def _fit_until_interrupted(model: WALS, data: Interactions, args: argparse.Namespace) -> bool:
    """Fit; whether Ctrl-C ended it early.

    The first Ctrl-C lets the running iteration finish, so that the factors of both sides belong together and can be
    saved; the second stops at once.
    """
    asked = False
    names = ("validation", "metric", "validate_every", "patience", "checkpoint_dir", "checkpoint_every", "resume")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if isinstance(args.validation, str):
        known = {"user_ids": data.user_ids, "item_ids": data.item_ids, "unknown": "drop"}
        options["validation"] = _read(args, args.validation, **known)

    def on_interrupt(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("stopping after this iteration, then saving (Ctrl-C again: stop now and save nothing)")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        model.fit(data, callback=lambda *_: asked, show_progress=not args.quiet, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    return asked and len(model.history_) < model.iterations


def _check_model_target(path: Path) -> None:
    """Refuse, before any work, to put a model where something else is."""
    if path.is_dir():
        if not any(path.iterdir()):
            return
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            if json.loads((path / "model.json").read_bytes())["format"] == "wals_gpu":
                return
        raise ValueError(f"{path} is there and is not a model folder; give a new name, or remove it yourself")
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} is there and is not a folder; give a new name, or remove it yourself")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be made: {parent} is no folder that you may write to")


def _parse_ids(texts: Sequence[str], ids: Ids | None, count: int, side: str) -> Any:
    """Ids as the model has them, from the text of the command line; an unknown one is an error."""
    if ids is not None and ids.kind == "string":
        found = np.array(texts, dtype=object)
    else:
        found = np.array([_whole_number(text, side, ids is not None) for text in texts])
    if ids is not None:
        ids.index_of(found)
    elif (outside := found[(found < 0) | (found >= count)]).size:
        raise ValueError(f"{side} {outside[0]} is not a row number in [0, {count})")
    return found


def _whole_number(text: str, side: str, is_id: bool) -> int:
    try:
        return int(text)
    except ValueError:
        what = f"{side} ids" if is_id else "row numbers, because it was fitted on a matrix"
        raise ValueError(f"{side} {text!r} is not an integer; this model has {'integer ' * is_id}{what}") from None


def _lines(path: str) -> list[str]:
    """The lines of a text file, or of standard input for "-", without empty ones."""
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no user ids")
    return lines


# --------------------------------------------------------------------------------------------------------------- output


def _writer_for(path: Path) -> Any:
    """The class that writes this kind of file."""
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    writers = {".parquet": ParquetWriter, ".pq": ParquetWriter, ".csv": CSVWriter}
    if path.suffix not in writers:
        raise ValueError(f"--out must end in .parquet or .csv, got {path}")
    return writers[path.suffix]


def _write_recommendations(
    path: Path, model: WALS, chunks: Iterator[tuple[Any, Any, Any]], done: Callable[[int], Any]
) -> int:
    """Write user_id, rank, item_id, score and give the file its name at the end: a broken run leaves no half file."""
    import pyarrow as pa

    # Not from the first chunk: no item may be left for any of its users.
    names, types = ["user_id", "rank", "item_id", "score"], [pa.int64(), pa.int32(), pa.int64(), pa.float32()]
    for column, ids in ((0, model.user_ids), (2, model.item_ids)):
        if ids is not None:
            types[column] = pa.string() if ids.kind == "string" else pa.from_numpy_dtype(ids.ids.dtype)
    schema = pa.schema(list(zip(names, types, strict=True)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        with _writer_for(path)(temporary, schema) as writer:
            for users, ids, scores in chunks:
                there = scores > -np.inf
                ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1), ids.shape)[there]
                values = (np.repeat(users, there.sum(axis=1)), ranks, ids[there], scores[there])
                arrays = [pa.array(each, kind) for each, kind in zip(values, types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                rows += len(ranks)
                done(len(users))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _pairs(ids: Any, scores: Any) -> list[tuple[Any, float]]:
    """(item, score) of one list, without the places that no item was left for."""
    return [
        (_plain(item), float(score))
        for item, score in zip(ids, scores, strict=True)
        if item is not None and score > -np.inf
    ]


def _named(pair: tuple[Any, float]) -> dict[str, Any]:
    return {"item": pair[0], "score": pair[1]}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _shape_text(data: Interactions) -> str:
    n_users, n_items = data.matrix.shape
    return f"{n_users:,} users, {n_items:,} items, {data.matrix.nnz:,} entries"


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=_plain)
    print()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"not enough memory. {error}"
    else:
        # str(KeyError) is the repr of its argument
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
