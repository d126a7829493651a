"""Texts as data: how two are compared, in which order they are drawn, and how files of them are read.

Every reading error names the file and the lines.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from talas_lib.errors import TalasError, did_you_mean, listed

T = TypeVar("T")
FORMATS = (".txt", ".csv", ".jsonl")


class Row(NamedTuple):
    """A record of a file and the line it ends on, counted from 1."""

    line: int
    fields: dict[str, Any]


def comparison_key(text: str) -> str:
    """What is left of a text when two are compared: its letters and digits, lower-cased."""
    return "".join(character for character in text.lower() if character.isalnum())


def hash_order(items: Iterable[T], salt: str, text_of: Callable[[T], str] = str) -> list[T]:
    """Items in an order that looks random and depends on the salt and on each text's comparison key alone.

    A row added or removed leaves the order of the others as it was, so a split taken from the front is stable.
    """

    def rank(item: T) -> bytes:
        return hashlib.sha256(f"{salt}\0{comparison_key(text_of(item))}".encode()).digest()

    return sorted(items, key=rank)


def distinct(items: Iterable[T], text_of: Callable[[T], str] = str) -> list[T]:
    """The first item of every comparison key; items without a letter or digit are dropped."""
    seen: dict[str, T] = {}
    for item in items:
        seen.setdefault(comparison_key(text_of(item)), item)
    seen.pop("", None)
    return list(seen.values())


def content_sha256(value: Any) -> str:
    """sha256 of a value's compact JSON: the identity of texts, labels and scores."""
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(compact.encode(errors="surrogatepass")).hexdigest()


# ---- files


def read_rows(file: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Records of a .txt (one text a line, as field `text`), .csv (with header) or .jsonl file, each also as .gz.

    columns: fields every record must have. TalasError for another format, a file that cannot be read, undecodable
    bytes, malformed records, a missing column, or no record at all.
    """
    suffix = Path(file.stem if file.suffix == ".gz" else file.name).suffix
    if suffix not in FORMATS:
        raise TalasError(f"{file}: format {suffix or '(none)'!r} is not one of {listed(FORMATS)}, each also with .gz")
    text = _decode(file, _content(file))
    rows = list({".txt": _txt, ".csv": _csv, ".jsonl": _jsonl}[suffix](file, text))
    if not rows:
        raise TalasError(f"{file} holds no records")
    for column in columns:
        missing = [row for row in rows if column not in row.fields]
        if missing:
            found = missing[0].fields
            raise TalasError(
                f"{file}: no column {column!r} in {lines_of(missing)}; found {listed(map(str, found))}."
                f"{did_you_mean(column, map(str, found))}"
            )
    return rows


def is_table(file: Path | str) -> bool:
    """Whether the file has columns, by its name, rather than one text a line."""
    return not str(file).lower().removesuffix(".gz").endswith(".txt")


def columns_of(file: Path) -> list[str] | None:
    """Columns of a .csv or .jsonl file's first record, read without the rest; None where they cannot be told (`read_rows`
    says why).
    """
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
            if file.name.removesuffix(".gz").endswith(".csv"):
                return next(csv.reader(stream, strict=True), None)
            record = json.loads(stream.readline())
            return list(record) if isinstance(record, dict) else None
    except (OSError, EOFError, ValueError, zlib.error, csv.Error):
        return None


def read_lines(file: Path) -> list[Row]:
    """The lines of a UTF-8 text file, whatever its name ends in, also as .gz, each as field `text`."""
    return list(_txt(file, _decode(file, _content(file))))


def text_fields(file: Path | str, rows: Sequence[Row], column: str) -> list[str]:
    """One column as texts; TalasError names the lines where it is no text, empty, or not valid Unicode."""
    _refuse(file, [r for r in rows if not isinstance(r.fields[column], str)], f"{column!r} is not a text")
    _refuse(
        file,
        [r for r in rows if not r.fields[column].strip()],
        f"{column!r} is empty; remove those lines, for a .txt with `grep -v '^[[:space:]]*$' old > new`",
    )
    _refuse(
        file,
        [r for r in rows if not _encodable(r.fields[column])],
        f"{column!r} holds half of a surrogate pair (\\ud800 to \\udfff alone), which no tokenizer takes; remove it",
    )
    return [row.fields[column] for row in rows]


def number_fields(file: Path | str, rows: Sequence[Row], column: str) -> list[float]:
    """One column as finite numbers; TalasError names the lines of others."""
    values = [_number(row.fields[column]) for row in rows]
    _refuse(
        file, [row for row, value in zip(rows, values, strict=True) if value is None], f"{column!r} is not a number"
    )
    return [value for value in values if value is not None]


def lines_of(rows: Sequence[Row], most: int = 5) -> str:
    """`line 3` or `lines 3, 9, 12 and 4 more`, for a message."""
    shown = ", ".join(str(row.line) for row in rows[:most])
    return f"line{'s' if len(rows) > 1 else ''} {shown}" + (f" and {len(rows) - most} more" if len(rows) > most else "")


def _refuse(file: Path | str, rows: Sequence[Row], reason: str) -> None:
    if rows:
        raise TalasError(f"{file}, {lines_of(rows)}: {reason}")


def _content(file: Path) -> bytes:
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TalasError(f"{file} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise TalasError(f"{file} cannot be read: {error.strerror or error}") from None


def _decode(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TalasError(
            f"{file}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; "
            "convert the file, for example `iconv -f latin1 -t utf-8 old > new`"
        ) from None


def _lines(text: str) -> list[str]:
    # str.splitlines would also split at U+2028 and U+0085, which occur inside sentences
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _txt(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        yield Row(number, {"text": line})


def _jsonl(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TalasError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise TalasError(f'{file}, line {number}: not a JSON object such as {{"text": "..."}}')
        yield Row(number, record)


def _csv(file: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            if None in record or None in record.values():
                raise TalasError(
                    f"{file}, line {reader.line_num}: not {len(reader.fieldnames or [])} fields as in the header"
                )
            yield Row(reader.line_num, dict(record))
    except csv.Error as error:
        raise TalasError(f"{file}, the record from line {reader.line_num + 1} on: {error}") from None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None
