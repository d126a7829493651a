"""What stands in a file of sentences, whether or not it can be trained on: columns, empty lines, repeats, lengths, sources.

python -m talas_lib.corpora my_sentences.csv --text-column body
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talas_lib.corpora.split_files import with_text
from talas_lib.errors import TalasError, did_you_mean, exit_code, listed
from talas_lib.texts import Row, columns_of, comparison_key, is_table, lines_of, read_rows

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_SHOWN_TEXT, _EXAMPLES = 60, 3


@dataclass(frozen=True)
class Repeat:
    """A text and the lines of all its copies, at least two. For copies that differ in writing, the first one's text."""

    text: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class FileReport:
    """The records of a file. empty: those without a text in the column. repeats: texts that occur again character by
    character. alike: texts written in several ways that are one by letters and digits. words: as in `word_quantiles`.
    """

    file: Path
    columns: tuple[str, ...]
    records: int
    empty: tuple[Row, ...]
    repeats: tuple[Repeat, ...]
    alike: tuple[Repeat, ...]
    words: Mapping[float, float]
    sources: Mapping[str, int]

    def __str__(self) -> str:
        lines = [f"{self.file.name}: {self.records:,} records, columns {listed(self.columns)}"]
        where = f" ({lines_of(self.empty)}): remove them, training refuses such a file" if self.empty else ""
        lines.append(f"without a text: {len(self.empty):,}{where}")
        lines += _shown("exact copies", self.repeats)
        lines += _shown("copies but for case, spaces and punctuation", self.alike)
        low, _, middle, high, most = (f"{round(self.words[q], 1):g}" for q in QUANTILES)
        lines.append(f"words: {low} to {most}, half of the sentences up to {middle}, 95 % up to {high}")
        counts = ", ".join(f"{source} {count:,}" for source, count in Counter(self.sources).most_common(10))
        lines.append(f"sources: {len(self.sources):,} ({counts}{', ...' * (len(self.sources) > 10)})")
        return "\n".join(lines)


def inspect_file(file: Path, text_column: str = "text", source_column: str = "source") -> FileReport:
    """A report on a .txt, .csv or .jsonl file, also as .gz; a .txt has the one column `text`.

    TalasError for a file that cannot be read, that has no such column, or no text in it at all.
    """
    column = text_column if is_table(file) else "text"
    rows = read_rows(file, [column])
    filled = [row for row in with_text(rows, [column]) if isinstance(row.fields[column], str)]
    if not filled:
        raise TalasError(f"{file}: {column!r} holds no text in any of {len(rows):,} records")
    kept = {row.line for row in filled}
    exact, same = dict[str, list[Row]](), dict[str, list[Row]]()
    for row in filled:
        exact.setdefault(row.fields[column], []).append(row)
        same.setdefault(comparison_key(row.fields[column]), []).append(row)
    same.pop("", None)  # no letter or digit, nothing to compare
    variants = (rows for rows in same.values() if len({row.fields[column] for row in rows}) > 1)
    return FileReport(
        file=file,
        columns=tuple(dict.fromkeys(str(name) for row in rows for name in row.fields)),
        records=len(rows),
        empty=tuple(row for row in rows if row.line not in kept),
        repeats=_repeats(exact.values(), column),
        alike=_repeats(variants, column),
        words=word_quantiles([row.fields[column] for row in filled]),
        sources=dict(Counter(source_of(row, source_column, file) for row in filled)),
    )


def source_of(row: Row, column: str, file: Path) -> str:
    """The source a record names, else the name of its file."""
    return str(row.fields.get(column) or file.name.split(".")[0])


def word_quantiles(texts: Sequence[str]) -> dict[float, float]:
    """Lengths in words of at least one text, at QUANTILES."""
    lengths = [len(text.split()) for text in texts]
    return {q: float(np.quantile(lengths, q)) for q in QUANTILES}


def _repeats(groups: Iterable[Sequence[Row]], column: str) -> tuple[Repeat, ...]:
    """Groups of at least two, the largest first."""
    several = sorted((rows for rows in groups if len(rows) > 1), key=len, reverse=True)
    return tuple(Repeat(rows[0].fields[column], tuple(rows)) for rows in several)


def _shown(title: str, repeats: Sequence[Repeat]) -> list[str]:
    """A count, and the most frequent examples with their lines."""
    beyond = sum(len(repeat.rows) - 1 for repeat in repeats)
    lines = [f"{title}: {beyond:,}" + f", of {len(repeats):,} different texts" * bool(repeats)]
    for repeat in repeats[:_EXAMPLES]:
        text = repeat.text if len(repeat.text) <= _SHOWN_TEXT else repeat.text[: _SHOWN_TEXT - 3] + "..."
        lines.append(f"    {text!r} in {lines_of(repeat.rows)}")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """The report on a file, for a terminal; the exit code is 2 for bad input."""
    about = (
        "What stands in a file of sentences: columns, lines without a text, copies with their lines, lengths, sources."
    )
    parser = argparse.ArgumentParser(prog="python -m talas_lib.corpora", description=about)
    parser.add_argument("file", type=Path, help="a .txt (one sentence a line), .csv or .jsonl file, also as .gz")
    parser.add_argument("--text-column", default="text", help="column with the sentences (default: text)")
    parser.add_argument(
        "--source-column", default="source", help="column that says where a sentence is from (default: source, if any)"
    )
    given = parser.parse_args(words)
    file = given.file.expanduser()

    def report() -> None:
        found = columns_of(file) if is_table(file) else None
        if found is not None and given.text_column not in found:
            guess = did_you_mean(given.text_column, found)
            raise TalasError(
                f"{file}: no column {given.text_column!r}.{guess} It has {listed(found)}. Choose one with `--text-column ...`"
            )
        sys.stdout.write(f"{inspect_file(file, given.text_column, given.source_column)}\n")

    return exit_code(report)
