"""Tables that commands write to files, a part at a time."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wals_gpu.cli.output import one_line
from wals_gpu.data.ids import plain

__all__ = ["SUFFIXES", "check_file", "check_kind", "check_table", "check_writable", "open_table"]

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".feather", ".arrow")


def check_table(path: Path, option: str = "--out") -> None:
    """Refuse, before any work, a table that could not be written at its end; `option` names it.

    Raises
    ------
    ValueError
        The name says no kind of file, there is no such folder, or it may not be written to.
    """
    check_kind(path, option)
    check_file(path, option)


def check_kind(path: Path, option: str = "--out") -> None:
    """ValueError where the end of a name says no kind of table."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{option} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {path}")


def check_file(path: Path, option: str = "--out") -> None:
    """The same for a file of any name."""
    if path.is_dir():
        raise ValueError(f"{option} must be a file; {path} is a folder")
    folder = Path(os.path.realpath(path)).parent  # where a link leads to
    if not folder.is_dir():
        raise ValueError(
            f"{option} {path}: there is no folder {folder if path.is_symlink() else path.parent}; make it first"
        )
    check_writable(path, folder, option)


def check_writable(path: Path, folder: Path, option: str = "--out") -> None:
    """Refuse a folder that nothing can be made in. Permissions tell less: root has them all, also where nothing can.

    Raises
    ------
    ValueError
        `path`, what the option names, cannot be made in `folder`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".wals_gpu", dir=folder):
            pass
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else one_line(error)
        raise ValueError(f"{option} {path} cannot be made in {folder}: {why}") from error


@contextlib.contextmanager
def open_table(path: Path, schema: Any, option: str = "--out") -> Iterator[Callable[[Sequence[Any]], None]]:
    """A function that takes the columns of the next rows; the file gets its name at the end, when it is whole.

    Parameters
    ----------
    path : Path
        As :func:`check_table` allows; its end says the kind.
    schema : pyarrow.Schema
    option : str, default "--out"
        What names the file on the command line.

    Yields
    ------
    callable
        Of a sequence of arrays, one for each field of the schema.

    Raises
    ------
    OSError
        The file cannot be written, for instance because the disk is full. An earlier one is as it was.
    """
    import pyarrow as pa

    place = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    failed: list[OSError] = []

    @contextlib.contextmanager
    def writing() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = os.strerror(error.errno) if error.errno else one_line(error)
            failed.append(OSError(f"{option} {path}: {text}"))
            raise failed[0] from error

    try:
        with writing():
            writer = _writer(path, temporary, schema)

        def write(columns: Sequence[Any]) -> None:
            table = pa.Table.from_arrays(
                [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
            )
            with writing():
                writer.write_table(table)

        try:
            yield write
        except BaseException:
            with contextlib.suppress(OSError, ValueError):  # not instead of what went wrong
                writer.close()
            raise
        with writing():
            writer.close()
            os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _writer(path: Path, temporary: Path, schema: Any) -> Any:
    """What writes this kind of file."""
    kind = path.suffix.lower()
    if kind in (".parquet", ".pq"):
        from pyarrow.parquet import ParquetWriter

        return ParquetWriter(temporary, schema)
    if kind in (".csv", ".tsv"):
        from pyarrow.csv import CSVWriter, WriteOptions

        return CSVWriter(temporary, schema, write_options=WriteOptions(delimiter="\t" if kind == ".tsv" else ","))
    if kind == ".jsonl":
        return _JsonLines(temporary)
    from pyarrow.ipc import new_file

    return new_file(str(temporary), schema)


class _JsonLines:
    """An object per row."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", encoding="utf-8")

    def write_table(self, table: Any) -> None:
        """Append rows."""
        for row in table.to_pylist():
            self._file.write(json.dumps(row, ensure_ascii=False, default=plain) + "\n")

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
