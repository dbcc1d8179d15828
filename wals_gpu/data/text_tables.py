"""Tables in files of text: how they are written is judged by several lines, and Arrow reads them.

What Arrow's reader does not know (blanks before quotes, ``::`` and runs of blanks between fields) is rewritten on the
way to it. Errors name the line, which is looked for only once something is wrong.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wals_gpu.checks import warn
from wals_gpu.data.names import count_usual
from wals_gpu.data.source import Column, Source, TextOptions
from wals_gpu.errors import DataError

__all__ = ["open_text"]

_HEAD_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 24  # a line of thousands of columns may be long
_RECORDS = 200
_DELIMITERS = (",", "\t", ";", "|", "::")
_QUOTE, _NEWLINE = ord('"'), ord("\n")
_UNIT = "\x1f"  # stands for what is no single character
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d*,\d+\s*")
#: What a number with commas of thousands looks like; with one comma it may be a decimal one, too.
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
# Each block has its own dictionary of ids until they are merged; blocks of 1 MB took twice the memory.
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class _Dialect:
    """How a file is written.

    Attributes
    ----------
    names : list of str
    delimiter : str
        A character; what it stands for is in `rewrite`.
    skip_lines : int
        Before the first row.
    padded : bool
        Fields have blanks beside them that are not part of them.
    rewrite : {"", "::", "blanks", "quotes"}
        What Arrow cannot read as it is.
    rows : list of lists of str
        The first ones.
    """

    names: list[str]
    delimiter: str
    skip_lines: int
    padded: bool
    rewrite: str
    rows: list[list[str]]


def open_text(name: str, stream: Callable[[], Any], options: TextOptions) -> Source:
    """The source of a file of text.

    Parameters
    ----------
    name : str
        Of the file, for messages.
    stream : callable
        Opens it at its first byte, uncompressed.
    options : TextOptions

    Raises
    ------
    DataError
        It is no text in this encoding, or has no columns.
    ValueError
        An option is none.
    """
    return _TextTable(name, stream, options).source()


class _TextTable:
    def __init__(self, name: str, stream: Callable[[], Any], options: TextOptions) -> None:
        self._name, self._stream = name, stream
        self._has_header = options.columns is None
        if options.decimal not in (None, ".", ","):
            raise ValueError(f"decimal must be '.' or ',', got {options.decimal!r}")
        self._decimal = options.decimal
        head, whole = self._head()
        self._encoding = _encoding(head, options.encoding, name)
        self._dialect = _judge(self._decode(head, whole, options.encoding), whole, options.columns, name)
        if not self._has_header:
            self._refuse_header()

    def source(self) -> Source:
        names: list[Hashable] = list(self._dialect.names)
        remark = ""
        if self._has_header and any(re.fullmatch(r"-?\d[\d.:/+ TZ-]*", name) for name in self._dialect.names):
            remark = (
                "its first line looks like data: columns=['user', 'item', 'value', 'time'] ('_' for what to skip) "
                "names those of a file without a line of names"
            )
        return Source(self._name, names, self._read, True, self._place, self._first, remark)

    # --------------------------------------------------------------------------------------------------- judging

    def _head(self) -> tuple[bytes, bool]:
        """The first bytes, with two lines at least; whether that is all."""
        with self._stream() as stream:
            head, size = stream.read(_HEAD_BYTES), _HEAD_BYTES
            while len(head) == size < _MAX_HEAD_BYTES and len(re.findall(rb"[\r\n]+", head)) < 2:
                head, size = head + stream.read(size), size * 2
        return head, len(head) < size

    def _decode(self, head: bytes, whole: bool, given: str | None) -> str:
        wide = ""
        if self._encoding == "utf8" and b"\0" in head[:2] and head[:2] != b"\0\0":
            wide = f"; it looks like UTF-16, which encoding='utf-16-{'be' if head[:1] == bytes(1) else 'le'}' reads"
        try:
            text = codecs.getincrementaldecoder(self._encoding)().decode(head, whole)
        except UnicodeError as error:
            raise DataError(_not_text(self._name, self._encoding, given, error) + wide) from error
        text = text.removeprefix("\ufeff")
        first = re.split(r"[\r\n]", text, maxsplit=1)[0]
        if "\0" in first or not text.strip():
            raise DataError(
                f"{self._name} must be a Parquet or Feather file, or a text file with the column names in its first "
                f"line{wide}"
            )
        return text

    def _refuse_header(self) -> None:
        first = [field.strip() for field in self._dialect.rows[0]] if self._dialect.rows else []
        if count_usual(first) >= 2:
            raise DataError(
                f"columns is for files without a line of names, but the first line of {self._name} has "
                f"{', '.join(map(repr, first[:5]))}: leave columns away"
            )

    # --------------------------------------------------------------------------------------------------- reading

    def _read(self, ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        place = {name: at for at, name in reversed(list(enumerate(self._dialect.names)))}
        coded, text = pa.dictionary(pa.int32(), pa.string()), pa.string()
        kinds = {str(place[name]): text for name in plain}
        kinds |= {str(place[name]): pa.float64() for name in numbers}
        kinds |= {str(place[name]): coded for name in ids}
        table = self._table(kinds, [place[name] for name in numbers])
        columns = [table[str(place[name])] for name in [*ids, *numbers, *plain]]
        if self._dialect.padded:
            columns = [column if pa.types.is_floating(column.type) else _stripped(column) for column in columns]
        if self._has_header and not numbers:  # names are no numbers
            self._refuse_second_header(list(zip(ids, columns, strict=False)))
        return columns

    def _refuse_second_header(self, ids: list[tuple[Any, Column]]) -> None:
        """Files that were put together have a line of names in the midst, which would be a user and an item."""
        if len(ids) < 2:
            return
        wanted = [(column, pa.array([name, f"\ufeff{name}"])) for name, column in ids[:2]]  # a mark goes before a file
        for column, names in wanted:  # looked for among the different ids, which takes no time for each row
            if not any(pc.any(pc.is_in(chunk.dictionary, names)).as_py() for chunk in column.chunks):
                return
        both = pc.and_(*(pc.is_in(column.cast(pa.string()), names) for column, names in wanted))
        if (row := pc.index(both, True).as_py()) >= 0:
            where = self._place(row)
            raise DataError(f"{where} is the line of names again, as in files that were put together; take it out")

    def _table(self, kinds: dict[str, pa.DataType], numbers: list[int]) -> pa.Table:
        if not self._dialect.rows and self._is_over():
            return pa.table({label: pa.array([], kind) for label, kind in kinds.items()})
        points = [self._decimal or self._judge_decimal(numbers)]
        if self._decimal is None and numbers and self._dialect.delimiter != ",":
            points.append("." if points == [","] else ",")
        newlines, failed = False, None
        while points:
            try:
                counted = _Counted(self._stream)
                table = self._arrow(kinds, points[0], newlines, counted)
                if self._decimal is None and points[0] == ",":
                    self._doubt_commas(numbers)
                if table.num_rows + self._dialect.skip_lines < counted.lines:
                    plain = self._plain(counted, kinds, points[0], table.num_rows)
                    return table if plain is None else plain
                return table
            except (pa.ArrowException, OSError, UnicodeError) as error:
                failed = failed or error
                if not isinstance(error, pa.ArrowInvalid):
                    break
                if "conversion error" in str(error):
                    del points[0]
                elif newlines:
                    break
                else:
                    newlines = True  # rows that span lines, where a block ends in one of them
        assert failed is not None
        self._explain(failed, kinds, numbers)

    def _is_over(self) -> bool:
        try:
            return next(self._records(), None) is None
        except csv.Error:  # a field beyond what Python's reader takes
            return False

    def _judge_decimal(self, numbers: list[int]) -> str:
        fields = [row[at] for row in self._dialect.rows for at in numbers if at < len(row)]
        comma = self._dialect.delimiter != "," and any(map(_DECIMAL_COMMA.fullmatch, fields))
        return "," if comma else "."

    def _advice_on_commas(self, field: str) -> str:
        """What to do about a field that is no number as it is, behind a semicolon; "" where no comma is the reason."""
        advice = []
        if _THOUSANDS.fullmatch(field.strip()):
            advice.append("commas of thousands have to go")
        if self._decimal is None and _DECIMAL_COMMA.fullmatch(field):
            advice.append("decimal=',' reads decimal commas")
        return f"; {', and '.join(advice)}" if advice else ""

    def _doubt_commas(self, numbers: list[int]) -> None:
        """Tell of a column whose commas, read as decimal ones, all look like those of thousands."""
        for at in numbers:
            fields = [row[at].strip() for row in self._dialect.rows if at < len(row) and "," in row[at]]
            if fields and all(_THOUSANDS.fullmatch(field) for field in fields):
                value = float(fields[0].replace(",", ".", 1))
                warn(
                    f"column {self._dialect.names[at]!r} of {self._name} has {fields[0]!r}, read as {value:g} with a "
                    "decimal comma: decimal=',' says that it is one; commas of thousands have to go"
                )

    def _plain(self, counted: _Counted, kinds: dict[str, pa.DataType], point: str, n_rows: int) -> pa.Table | None:
        """What the file holds where a quote is a character of a text like any other; None where it is not.

        A name that begins with a quote would begin a field that goes on to the next quote, and the lines between would
        be lost. That it does is known by every line being a row, if quotes mean nothing, and there being more of them
        than the `n_rows` with quotes.
        """
        if self._dialect.rewrite or not counted.quotes:
            return None
        try:
            plain = self._arrow(kinds, point, False, _Counted(self._stream), quotes=False)
        except (pa.ArrowException, OSError, UnicodeError):
            return None  # lines that are no rows: fields that span lines
        if plain.num_rows <= n_rows or (len(self._dialect.names) < 3 and self._is_well_quoted()):
            return None
        what = f"line {self._line_of_quote()} of {self._name} has a quote that ends nowhere, or far below"
        for column in plain.columns:
            texts = [chunk.dictionary for chunk in column.chunks if pa.types.is_dictionary(column.type)]
            if any(pc.any(pc.match_substring_regex(text, '^".*"$')).as_py() for text in texts):
                raise DataError(f"{what}, and other fields are in quotes; write quotes inside of a text twice")
        warn(f"{what}: every line is a row, so quotes are read as characters like all others")
        return plain

    def _line_of_quote(self) -> int:
        """The first line that does not have as many quotes that begin as quotes that end; as well as can be told."""
        with self._text(errors="replace") as text:
            quoted = ((at, line.count('"')) for at, line in enumerate(text, 1) if '"' in line)
            first, n = next(quoted)
            return first if n % 2 else next((at for at, n in quoted if n % 2), first)

    def _is_well_quoted(self) -> bool:
        """Whether quotes begin and end fields, as those of CSV do."""
        try:
            with self._text(errors="replace") as text:
                for _ in csv.reader(text, delimiter=self._dialect.delimiter, strict=True):
                    pass
        except csv.Error:
            return False
        return True

    def _arrow(
        self, kinds: dict[str, pa.DataType], point: str, newlines: bool, counted: _Counted, quotes: bool = True
    ) -> pa.Table:
        import pyarrow.csv

        dialect = self._dialect
        rewritten = dialect.rewrite != ""
        with self._rewritten() if rewritten else pa.PythonFile(counted, mode="r") as stream:
            return pyarrow.csv.read_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(
                    block_size=_BLOCK_BYTES,
                    # Numbers instead of names, which may be there twice.
                    column_names=[str(at) for at in range(len(dialect.names))],
                    skip_rows=0 if rewritten else dialect.skip_lines,
                    encoding="utf8" if rewritten else self._encoding,
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=dialect.delimiter,
                    newlines_in_values=newlines,
                    quote_char='"' if quotes and dialect.rewrite not in ("::", "blanks") else False,
                ),
                # Only an empty field is missing: "NA" and "null" are ids like any other.
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=list(kinds),
                    column_types=kinds,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    decimal_point=point,
                ),
            )

    # ---------------------------------------------------------------------------------------- rewriting and lines

    def _text(self, errors: str = "strict") -> io.TextIOWrapper:
        encoding = "utf-8-sig" if self._encoding in ("utf8", "utf-8") else self._encoding
        return io.TextIOWrapper(self._stream(), encoding, errors=errors, newline="")

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The rows with the number of their first line, as Python's reader finds them; slow."""
        with self._text(errors="replace") as text:
            lines: Iterable[str] = text
            if self._dialect.rewrite in ("::", "blanks"):
                lines = (_with_units(line, self._dialect.rewrite) for line in text)
            yield from _csv_records(lines, self._dialect, skip=self._dialect.skip_lines)

    def _rewritten(self) -> Any:
        def pieces() -> Iterator[bytes]:
            if self._dialect.rewrite == "quotes":
                out = io.StringIO()
                writer = csv.writer(out, delimiter=self._dialect.delimiter)
                with self._text() as text:
                    for _, fields in _csv_records(text, self._dialect, skip=self._dialect.skip_lines):
                        writer.writerow(fields)
                        if out.tell() >= _HEAD_BYTES:
                            yield out.getvalue().encode()
                            out.seek(0)
                            out.truncate()
                yield out.getvalue().encode()
                return
            with self._text() as text:
                for _ in range(self._dialect.skip_lines):
                    text.readline()
                while lines := text.readlines(_HEAD_BYTES):
                    yield _with_units("".join(lines), self._dialect.rewrite).encode()

        return pa.PythonFile(_Pieces(pieces()), mode="r")

    def _place(self, row: int) -> str:
        try:
            for at, (line, _) in enumerate(self._records()):
                if at == row:
                    return f"line {line} of {self._name}"
        except csv.Error:
            pass  # a field beyond what Python's reader takes
        return f"row {row} of {self._name}"

    def _first(self, name: Hashable) -> list[Any]:
        at = self._dialect.names.index(str(name))
        return [row[at].strip() for row in self._dialect.rows if at < len(row)]

    def _explain(self, error: Exception, kinds: dict[str, pa.DataType], numbers: list[int]) -> NoReturn:
        """What is wrong, in words and with its line; Arrow's words where that is not found."""
        if isinstance(error, UnicodeError) or "UTF8" in str(error) or "UTF-8" in str(error):
            try:
                with self._text() as text:
                    for _ in text:
                        pass
            except UnicodeError as bad:
                raise DataError(_not_text(self._name, self._encoding, None, bad)) from error
        n, names = len(self._dialect.names), self._dialect.names
        try:
            for line, fields in self._records():
                if len(fields) != n:
                    whose = "columns names" if not self._has_header else "its first line has"
                    raise DataError(
                        f"line {line} of {self._name} has {len(fields)} field{'s' * (len(fields) != 1)}, {whose} {n}"
                    ) from error
                for at in numbers:
                    if not _is_number(fields[at], self._decimal, self._dialect.delimiter):
                        raise DataError(
                            f"column {names[at]!r} must hold numbers, got {fields[at]!r:.60} in line {line} of "
                            f"{self._name}{self._advice_on_commas(fields[at])}"
                        ) from error
        except csv.Error:
            pass
        for at in numbers if self._decimal is None else []:
            points = {mark: self._first_with(at, mark) for mark in ".,"}
            if all(points.values()):
                raise DataError(
                    f"column {names[at]!r} of {self._name} has numbers with a point and with a comma, "
                    f"{points['.']} and {points[',']}: decimal='.' or decimal=',' says which is of decimals, and the "
                    "other one, of thousands, has to go"
                ) from error
        raise DataError(f"{self._name} cannot be read: {error}") from error

    def _first_with(self, at: int, mark: str) -> str | None:
        """The first number of a column that has a point, or a comma, with its line."""
        try:
            found = next((record for record in self._records() if mark in record[1][at]), None)
        except csv.Error:
            return None
        return None if found is None else f"{found[1][at]!r:.60} in line {found[0]}"


class _Counted(io.RawIOBase):
    """A file whose quotes and lines are counted as it is read.

    Parameters
    ----------
    stream : callable
        Opens it at its first byte.
    """

    def __init__(self, stream: Callable[[], Any]) -> None:
        self._open = stream
        self._stream: Any = None
        self.quotes = self.lines = 0
        self._last = _NEWLINE

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> Any:
        if self._stream is None:
            self._stream = self._open()
        found = self._stream.read_buffer(size if size >= 0 else None)  # bytes would be a copy
        codes = np.frombuffer(found, np.uint8)
        for start in range(0, len(codes), _HEAD_BYTES):  # pieces that stay in a cache
            piece = codes[start : start + _HEAD_BYTES]
            self.quotes += int(np.count_nonzero(piece == _QUOTE))
            self.lines += int(np.count_nonzero(piece == _NEWLINE))
        if len(codes):
            self._last = int(codes[-1])
        elif self._last != _NEWLINE:  # a line without an end
            self.lines, self._last = self.lines + 1, _NEWLINE
        return found

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super().close()


class _Pieces(io.RawIOBase):
    """A file of the bytes that an iterator gives."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, missing = [], size if size >= 0 else 1 << 62
        while missing > 0:
            if not self._left:
                self._left = next(self._pieces, b"")
                if not self._left:
                    break
            part, self._left = self._left[:missing], self._left[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _with_units(text: str, rewrite: str) -> str:
    if rewrite == "::":
        return text.replace("::", _UNIT)
    text = re.sub(r"(?m)^[ \t]+|[ \t]+(?=\r?$)", "", text)
    return re.sub(r"[ \t]+", _UNIT, text)


def _reader(lines: Iterable[str], delimiter: str, *, skip_blanks: bool, quotes: bool) -> Any:
    if quotes:
        return csv.reader(lines, delimiter=delimiter, skipinitialspace=skip_blanks)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _csv_records(lines: Iterable[str], dialect: _Dialect, skip: int) -> Iterator[tuple[int, list[str]]]:
    lines = iter(lines)
    for _ in range(skip):
        next(lines, None)
    quotes = dialect.rewrite not in ("::", "blanks")
    reader = _reader(lines, dialect.delimiter, skip_blanks=dialect.rewrite == "quotes", quotes=quotes)
    before = 0
    for fields in reader:
        if fields:
            yield skip + before + 1, fields
        before = reader.line_num  # rows may span lines


def _is_number(field: str, decimal: str | None, delimiter: str) -> bool:
    text = field.strip()
    if decimal == "," and "." in text:
        return False
    if decimal == "," or (decimal is None and delimiter != ","):
        text = text.replace(",", ".")
    try:
        float(text)
    except ValueError:
        return text == ""  # missing, which is another error
    return "_" not in text


def _stripped(column: Column) -> Column:
    """Text without the blanks beside it; what was only blanks is missing."""

    def strip(texts: pa.Array) -> pa.Array:
        bare = pc.utf8_trim_whitespace(texts)
        return pc.if_else(pc.equal(bare, ""), pa.scalar(None, bare.type), bare)

    if not pa.types.is_dictionary(column.type):
        return pa.chunked_array([strip(chunk) for chunk in column.chunks], column.type)
    chunks = []
    for chunk in column.chunks:
        values = strip(chunk.dictionary)
        indices = chunk.indices
        if values.null_count:  # a null of the rows, not of the dictionary
            missing = pc.take(pc.is_null(values), indices)
            indices = pc.if_else(missing, pa.scalar(None, indices.type), indices)
        chunks.append(pa.DictionaryArray.from_arrays(indices, values))
    return pa.chunked_array(chunks, column.type)


# --------------------------------------------------------------------------------------------------- how it is written


def _encoding(head: bytes, given: str | None, name: str) -> str:
    if given is not None:
        try:
            "a".encode(given)  # there are codecs of bytes, too
        except (LookupError, TypeError, ValueError):
            raise ValueError(
                f"encoding must be the name of a text encoding such as 'utf-8', 'cp1252' or 'latin-1', got {given!r}"
            ) from None
        return {"utf_8": "utf8"}.get(codecs.lookup(given).name.replace("-", "_"), given)
    for mark, encoding in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")):
        if head.startswith(mark):
            return encoding
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf8"


def _not_text(name: str, encoding: str, given: str | None, error: Exception) -> str:
    if given is not None and encoding != "utf8":
        return f"{name} is not text in encoding={given!r}: {error}"
    return (
        f"{name} is neither Parquet nor readable UTF-8 text: {error}; if it is text, give its encoding, such as "
        "encoding='cp1252' (Windows) or encoding='latin-1'"
    )


def _judge(text: str, whole: bool, columns: tuple[str, ...] | None, name: str) -> _Dialect:
    """The way of writing that fits the first lines best."""
    before = 0
    if (said := re.match(r"\"?sep=.\"?\r?\n", text)) is not None:  # a line for spreadsheets
        text, before = text[said.end() :], 1
    found = [(_score(rows), delimiter, rows) for delimiter in _DELIMITERS if (rows := _rows(text, whole, delimiter))]
    found = [one for one in found if one[0][-1] > 1]
    if not found and (rows := _rows(text, whole, "blanks")) and _score(rows)[1] == 1 and len(rows[0][1]) > 1:
        found = [(_score(rows), "blanks", rows)]
    if not found:  # a single column
        found = [((0, 0, 1), ",", _rows(text, whole, ",") or [(1, text.splitlines()[:1])])]
    _, delimiter, rows = max(found, key=lambda one: one[0])
    rewrite = delimiter if delimiter in ("::", "blanks") else ""
    padded = False
    if not rewrite:
        raw = _rows(text, whole, delimiter, skip_blanks=False) or rows
        padded = _is_padded(raw)
        if padded and any(re.match(r' +"', field) for _, row in raw for field in row):
            rewrite = "quotes"
        else:
            rows = raw
    data = [row for _, row in rows]
    skip = before
    if columns is None:
        names, skip, data = [field.strip() for field in data[0]], before + rows[0][0], data[1:]
    else:
        names = list(columns)
        if len(names) != len(data[0]):
            raise DataError(
                f"columns must name each column of {name}, '_' for what to skip: got {len(names)} names, and "
                f"{len(data[0])} fields in its first line"
            )
    return _Dialect(names, _UNIT if rewrite in ("::", "blanks") else delimiter, skip, padded, rewrite, data)


def _rows(text: str, whole: bool, delimiter: str, skip_blanks: bool = True) -> list[tuple[int, list[str]]]:
    """The first rows, each with the number of its last line, if fields are divided like that."""
    rewritten = delimiter in ("::", "blanks")
    if rewritten:
        text, delimiter = _with_units(text, delimiter), _UNIT
    reader = _reader(io.StringIO(text, newline=""), delimiter, skip_blanks=skip_blanks, quotes=not rewritten)
    rows: list[tuple[int, list[str]]] = []
    try:
        for fields in reader:
            if any(fields):
                rows.append((reader.line_num, fields))
            if len(rows) == _RECORDS:
                return rows
    except csv.Error:
        return rows[:1]
    if not whole and len(rows) > 1:
        rows.pop()  # may have been cut
    return rows


def _score(rows: list[tuple[int, list[str]]]) -> tuple[int, float, int]:
    first = rows[0][1]
    agree = sum(len(row) == len(first) for _, row in rows) / len(rows)
    return count_usual([field.strip() for field in first]), agree, len(first)


def _is_padded(rows: list[tuple[int, list[str]]]) -> bool:
    """Whether blanks beside fields are of the way of writing: a column after the first has one in every row."""
    width = len(rows[0][1])
    fields = [row for _, row in rows if len(row) == width]
    if len(fields) < 2:
        return any(field[:1] == " " for field in rows[0][1][1:])
    data = fields[1:]
    return any(all(row[at][:1] == " " for row in data) for at in range(1, width))
