"""Files of tables: what a path means, what kind of file is there, and several files as one table."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from wals_gpu.data.ids import is_string
from wals_gpu.data.json_lines import open_json
from wals_gpu.data.source import Column, Reader, Source, TextOptions, listing
from wals_gpu.data.text_tables import open_text
from wals_gpu.errors import DataError, EmptyTableError

__all__ = ["open_paths", "part_of"]

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_SUFFIXES = {
    ".parquet", ".pq", ".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".json", ".jsonl", ".ndjson", ".feather",
    ".arrow", ".ipc", ".arrows",
}  # fmt: skip
_PACKED = {".gz", ".bz2", ".zst", ".lz4", ".xz"}
_NO_TABLES = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; unpack it, or save it as CSV",
    b"\x93NUMPY": "an array; load it with numpy.load",
    b"\x89HDF": "an HDF5 file; load it with what wrote it",
    b"SQLite f": "a database; export the table",
    b"%PDF": "a PDF",
    b"\x80\x04\x95": "a pickle; load it with what wrote it",
    b"\x80\x05\x95": "a pickle; load it with what wrote it",
}


@dataclass(frozen=True)
class _File:
    """One file; `path` where it is a local one that Arrow can open by itself."""

    name: str
    open: Callable[[], Any]
    path: str | None = None

    @property
    def suffix(self) -> str:
        stem, suffix = os.path.splitext(self.name.lower())
        return os.path.splitext(stem)[1] if suffix in _PACKED else suffix

    def stream(self) -> Any:
        """Its bytes from the first one, uncompressed."""
        with self.open() as raw:
            magic = raw.read(6)
        codec = next((codec for begin, codec in _COMPRESSED.items() if magic.startswith(begin)), None)
        if codec is not None:
            return pa.CompressedInputStream(self.open(), codec)
        if magic == b"\xfd7zXZ\x00":
            import lzma

            return pa.PythonFile(lzma.open(self.open()), mode="r")
        return self.open()


def open_paths(paths: Sequence[str | os.PathLike[str]], options: TextOptions | None = None) -> Source:
    """The source of all files that the paths mean, one below the other.

    Raises
    ------
    DataError
        A file cannot be read, or files do not have the same columns.
    FileNotFoundError, PermissionError
        There is no file.
    """
    options = options or TextOptions()
    if len(paths) == 1 and (dataset := _parquet_folder(os.path.expanduser(paths[0]))) is not None:
        return dataset
    try:
        files = [file for path in paths for file in _files(os.fspath(path))]
    except FileNotFoundError as error:
        name = os.fspath(error.filename or "")
        if len(paths) > 1 and name and os.path.basename(name) == name and not os.path.splitext(name)[1]:
            text = "no such file (a list of texts is one of paths)"
            raise FileNotFoundError(error.errno, text, error.filename) from None
        raise
    if len(files) == 1:
        return _open(files[0], options)
    # A writer of many parts leaves some of them without a byte.
    written = [file for file in files if file.path is None or os.path.getsize(file.path)] or files[:1]
    return _together([_open(file, options) for file in written], ", ".join(str(path) for path in paths))


def part_of(source: Source, part: int, n_parts: int) -> Source | None:
    """Consecutive rows of a table, as many as other parts have as far as its pieces allow; None where there are none.

    Parameters
    ----------
    source : Source
        What has no pieces is part 0 as a whole.
    part : int
        From 0.
    n_parts : int
    """
    if n_parts == 1:
        return source
    pieces = [(1, source)] if source.pieces is None else source.pieces()
    total = sum(size for size, _ in pieces)
    mine, before = [], 0
    for size, piece in pieces:
        if size and before * n_parts // total == part:
            mine.append(piece)
        before += size
    if not mine:
        return None
    return replace(_together(mine, source.what), names=source.names, first=source.first, remark=source.remark)


def _files(text: str) -> Iterator[_File]:
    if text == "-":
        yield _in_memory("standard input", b"" if sys.stdin is None else sys.stdin.buffer.read())
        return
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.\-]+://", text):
        yield from _remote(text)
        return
    text = os.path.expanduser(text)
    if any(c in text for c in "*?[") and not os.path.lexists(text):
        found = sorted(path for path in glob.glob(text, recursive=True) if os.path.isfile(path))
        if not found:
            raise FileNotFoundError(f"no file matches {text}")
        yield from map(_local, found)
    elif os.path.isdir(text):
        found = _of_tables(_walk(Path(text)))
        if not found:
            raise DataError(f"{text} holds no file of a table")
        yield from map(_local, found)
    else:
        yield _local(text)


def _walk(folder: Path) -> list[str]:
    """Files in a folder and in those below, without what names as _SUCCESS and .part.crc are for."""
    found = []
    for base, folders, names in os.walk(folder):
        folders.sort()  # walk goes on in this order
        found += [os.path.join(base, name) for name in sorted(names) if name[0] not in "_."]
    return found


def _of_tables(names: list[str]) -> list[str]:
    """Those that are called like tables; all, where none is."""
    usual = [name for name in names if _File(name, lambda: None).suffix in _SUFFIXES]
    return usual or names


def _local(path: str) -> _File:
    mode = os.stat(path).st_mode  # FileNotFoundError and PermissionError say enough as they are
    if not stat.S_ISREG(mode):  # a pipe can be read only once
        if stat.S_ISDIR(mode):
            raise DataError(f"{path} is a folder; give it alone, or the files in it")
        with open(path, "rb") as pipe:
            return _in_memory(path, pipe.read())
    with open(path, "rb"):
        pass
    return _File(path, lambda: pa.OSFile(path, "rb"), path)


def _in_memory(name: str, content: bytes) -> _File:
    return _File(name, lambda: pa.BufferReader(content))


def _remote(uri: str) -> Iterator[_File]:
    from pyarrow import fs

    base, wild = uri, ""
    if any(c in uri for c in "*?["):
        base = re.split(r"[*?\[]", uri, maxsplit=1)[0].rpartition("/")[0] + "/"
        wild = uri[len(base) :]
    try:
        system, path = fs.FileSystem.from_uri(base)
        info = system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            within = [part for part in system.get_file_info(fs.FileSelector(path, recursive=True)) if part.size]
            names = sorted(part.path for part in within if part.is_file and part.base_name[0] not in "_.")
            start = path.rstrip("/") + "/"
            names = [n for n in names if fnmatch.fnmatch(n[len(start) :], wild)] if wild else _of_tables(names)
            if not names:
                raise FileNotFoundError(f"no file of a table at {uri}")
        elif wild or info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is nothing at {uri}")
        else:
            names = [path]
    except (pa.ArrowException, ValueError, NotImplementedError) as error:
        advice = "; download the file first" if uri.startswith(("http:", "https:", "ftp:")) else ""
        raise DataError(f"{uri} cannot be opened: {error}{advice}") from error
    scheme = uri.partition("://")[0]
    for name in names:
        yield _File(f"{scheme}://{name}", lambda name=name: system.open_input_file(name))  # type: ignore[misc]


def _open(file: _File, options: TextOptions) -> Source:
    source = _opened(file, options)
    if source.pieces is None:
        size = os.path.getsize(file.path) if file.path else 1
        return replace(source, pieces=lambda: [(size, source)])
    return source


def _opened(file: _File, options: TextOptions) -> Source:
    try:
        with file.open() as raw:
            magic = raw.read(8)
        if not magic:
            raise EmptyTableError(f"{file.name} is empty")
        kind = next((kind for begin, kind in _NO_TABLES.items() if magic.startswith(begin)), None)
        if kind is not None:
            raise DataError(f"{file.name} is {kind}")
        if magic[:4] == b"PAR1":
            return _not_text(_parquet(file), options)
        if magic[:6] == b"ARROW1" or magic[:4] == b"FEA1":
            return _not_text(_feather(file), options)
        if magic[:4] == b"\xff\xff\xff\xff":
            return _not_text(_stream(file), options)
        for suffixes, what in (
            ((".parquet", ".pq"), "Parquet"),
            ((".feather", ".arrow", ".ipc", ".arrows"), "Arrow (Feather)"),
        ):
            if file.suffix in suffixes:
                raise DataError(f"{file.name} is not a {what} file: it begins with {magic[:4]!r}")
        with file.stream() as stream:
            begin = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        is_json = file.suffix in (".jsonl", ".ndjson", ".json") or begin[:1] == b"{"
        source = (open_json if is_json else open_text)(file.name, file.stream, options)
    except (FileNotFoundError, PermissionError):
        raise
    except _unreadable() as error:
        raise DataError(f"{file.name} cannot be read: {error}") from error

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        try:
            return source.read(ids, numbers, plain)
        except _unreadable() as error:  # packed, and damaged or without its end
            raise DataError(f"{file.name} cannot be read: {error}") from error

    return replace(source, read=read)


def _unreadable() -> tuple[type[Exception], ...]:
    """What comes up where a file cannot be read, whichever library unpacks it; names that are no text, for one."""
    lzma = sys.modules.get("lzma")
    return pa.ArrowException, OSError, EOFError, UnicodeError, *([] if lzma is None else [lzma.LZMAError])


def _not_text(source: Source, options: TextOptions) -> Source:
    if given := options.given():
        raise DataError(f"{', '.join(given)} can be given with files of text only; {source.what} is none")
    return source


# ------------------------------------------------------------------------------------------------- typed files


def _parquet_folder(text: str) -> Source | None:
    """A local folder of nothing but Parquet, with the columns that are in the names of its folders; else None."""
    if not os.path.isdir(text):
        return None
    files = _of_tables(_walk(Path(text)))
    if not files or any(_File(name, lambda: None).suffix not in (".parquet", ".pq", "") for name in files):
        return None
    with open(next((name for name in files if os.path.getsize(name)), files[0]), "rb") as file:
        if file.read(4) != b"PAR1":
            return None
    has_columns = any("=" in os.path.dirname(os.path.relpath(name, text)) for name in files)
    return _parquet(_File(text, lambda: None, text), () if has_columns else [f for f in files if os.path.getsize(f)])


def _parquet(file: _File, parts: Sequence[str] = ()) -> Source:
    """A file, or a folder with files that have their columns in them and none in the names of folders: its `parts`."""
    import pyarrow.parquet as pq

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = list(dict.fromkeys([*ids, *numbers, *plain]))
        try:
            # Strings stay dictionary-encoded as in the file: codes, not one string for each row.
            table = pq.read_table(file.path or file.open(), columns=wanted, read_dictionary=list(ids))
        except (pa.ArrowException, OSError) as error:
            if parts:  # of other types than the first, perhaps
                alone = [_parquet(_local(path)) for path in parts]
                return _together(alone, file.name).read(ids, numbers, plain)
            raise DataError(f"{file.name} cannot be read: {error}") from error
        return [table[name] for name in [*ids, *numbers, *plain]]

    def pieces() -> list[tuple[int, Source]]:
        assert file.path is not None
        found: list[tuple[int, Source]] = []
        row = 0
        try:
            for path, keys in _fragments(file.path):
                metadata = pq.read_metadata(path)
                for group in range(metadata.num_row_groups):
                    n, size = metadata.row_group(group).num_rows, metadata.row_group(group).total_byte_size
                    piece = Source(file.name, names, _row_group(path, metadata, group, keys), place=_after(row))
                    found += [(size, piece)] if n else []
                    row += n
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.name} cannot be read: {error}") from error
        return found

    try:
        names = pq.ParquetDataset(file.path).schema.names if file.path else pq.read_schema(file.open()).names
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{file.name} is not a readable Parquet file: {error}") from error
    if not names:
        raise DataError(f"{file.name} holds no Parquet file")
    return Source(file.name, names, read, pieces=pieces if file.path else None)


def _fragments(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files of a Parquet file or folder in the order of their rows, each with what the names of its folders say."""
    import pyarrow.dataset as ds

    if not os.path.isdir(path):
        yield path, {}
        return
    for fragment in ds.dataset(path, format="parquet", partitioning="hive").get_fragments():
        if os.path.getsize(fragment.path):
            yield fragment.path, ds.get_partition_keys(fragment.partition_expression)


def _row_group(path: str, metadata: Any, group: int, keys: dict[str, Any]) -> Reader:
    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        import pyarrow.parquet as pq

        wanted = [*ids, *numbers, *plain]
        there, n = [name for name in wanted if name not in keys], metadata.row_group(group).num_rows
        try:
            if missing := set(there) - set(metadata.schema.to_arrow_schema().names):
                raise DataError(f"{path} has no column {min(missing)!r}, as other files have that are read with it")
            coded = [name for name in ids if name in there]
            with pq.ParquetFile(path, metadata=metadata, read_dictionary=coded) as file:
                table = file.read_row_group(group, columns=there)
            return [pa.chunked_array([pa.repeat(keys[name], n)]) if name in keys else table[name] for name in wanted]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error

    return read


def _after(first: int) -> Callable[[int], str]:
    return lambda row: f"row {first + row}"


def _feather(file: _File) -> Source:
    import pyarrow.feather

    def table_of(columns: list[str] | None = None) -> pa.Table:
        try:
            table = pyarrow.feather.read_table(file.path or file.open(), columns=columns)
            table.validate(full=True)  # the file says where each text begins; Arrow follows it anywhere
            return table
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file.name} cannot be read: {error}") from error

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = [*ids, *numbers, *plain]
        table = table_of(list(dict.fromkeys(wanted)))
        return [table[name] for name in wanted]

    try:
        names = pa.ipc.open_file(file.open()).schema.names
    except pa.ArrowInvalid:  # the first version of Feather
        names = table_of().column_names
    return Source(file.name, names, read)


def _stream(file: _File) -> Source:
    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        try:
            with file.open() as raw:
                table = pa.ipc.open_stream(raw).read_all().select(list(dict.fromkeys([*ids, *numbers, *plain])))
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file.name} cannot be read: {error}") from error
        return [table[name] for name in [*ids, *numbers, *plain]]

    with file.open() as raw:
        names = pa.ipc.open_stream(raw).schema.names
    return Source(file.name, names, read)


# ----------------------------------------------------------------------------------------------- several files


def _together(sources: list[Source], what: str) -> Source:
    """Several tables with the same columns as one."""
    first = sources[0]
    for other in sources[1:]:
        if sorted(map(str, other.names)) != sorted(map(str, first.names)):
            raise DataError(
                f"files that are read together must have the same columns: {first.what} has {listing(first.names)}; "
                f"{other.what} has {listing(other.names)}"
            )
    lengths: list[int] = []

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = [*ids, *numbers, *plain]
        parts: list[list[Column]] = [source.read(ids, numbers, plain) for source in sources]
        lengths[:] = [len(part[0]) for part in parts]
        return [
            _joined(name, [part[k] for part in parts], [source.what for source in sources])
            for k, name in enumerate(wanted)
        ]

    def place(row: int) -> str:
        for source, length in zip(sources, lengths, strict=True):
            if row < length:
                found = source.place(row)
                return found if source.what in found else f"{found} of {source.what}"
            row -= length
        return f"row {row}"

    def pieces() -> list[tuple[int, Source]]:
        return [piece for source in sources for piece in ([(1, source)] if source.pieces is None else source.pieces())]

    kinds = {source.text_ids for source in sources}
    if len(kinds) > 1:
        raise DataError(f"files with types and files of text cannot be read together: {what}")
    return Source(what, first.names, read, first.text_ids, place, first.first, first.remark, pieces)


def _joined(name: Any, columns: list[Column], files: list[str]) -> Column:
    """One column of several files, in the narrowest type that holds all of them."""
    kinds = [column.type for column in columns]
    if len(set(map(str, kinds))) > 1:
        values = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
        # A part without rows, or with nulls alone, has no type to speak of.
        values = [kind if len(column) else None for kind, column in zip(values, columns, strict=True)]
        known = [kind for kind in values if kind is not None and not pa.types.is_null(kind)]
        if all(map(is_string, known)):
            common = pa.large_string()
        elif all(map(pa.types.is_integer, known)):
            common = pa.uint64() if any(map(pa.types.is_uint64, known)) else pa.int64()
        elif all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in known):
            common = pa.float64()
        elif all(pa.types.is_timestamp(kind) or pa.types.is_date(kind) for kind in known):
            zoned = any(pa.types.is_timestamp(kind) and kind.tz is not None for kind in known)
            common = pa.timestamp("us", "UTC" if zoned else None)
        else:
            other = next(k for k, kind in enumerate(values) if kind is not None and kind != known[0])
            one = next(k for k, kind in enumerate(values) if kind is not None)
            raise DataError(
                f"files that are read together must agree: column {name!r} is {values[one]} in {files[one]} and "
                f"{values[other]} in {files[other]}"
            )
        try:
            columns = [column.cast(common, safe=not pa.types.is_timestamp(common)) for column in columns]
        except pa.ArrowException as error:
            raise DataError(f"column {name!r} of {', '.join(files)} cannot be brought to one type: {error}") from error
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.chunked_array(chunks, columns[0].type)
