"""Records of one split of a data set: `<data_dir>/<folder>/<split>.jsonl.gz`, or the same data set from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talas_lib.errors import TalasError
from talas_lib.texts import Row, read_rows

Hub = Mapping[str, Any]  # id, revision, config, columns (ours -> theirs), positive (the label that means 1)
ENDINGS = (".jsonl.gz", ".jsonl")


def split_rows(
    data_dir: Path | None,
    folder: str,
    split: str,
    fields: Sequence[str],
    hub: Hub | None,
    *,
    keep_empty: bool = False,
) -> tuple[Path | str, list[Row]]:
    """Where a split was found and its records: the local file if there is one, else the hub's data set.

    Some hub copies hold records without a text, which nothing can be said about: those are left out, unless keep_empty.
    TalasError where neither is to be had, or fields are missing.
    """
    file = local_file(data_dir, folder, split)
    if file is not None:
        return file, read_rows(file, fields)
    absent = missing(data_dir, folder, f"{split}.jsonl.gz", fields)
    if hub is None:
        raise absent
    rows = _hub_rows(hub, split, fields, absent)
    texts = [field for field in fields if field.startswith("text")]
    return f"{hub['id']} ({split})", rows if keep_empty else with_text(rows, texts)


def with_text(rows: Sequence[Row], fields: Sequence[str]) -> list[Row]:
    """The records in which none of these fields is missing or blank."""
    return [row for row in rows if all(_filled(row.fields[field]) for field in fields)]


def local_file(data_dir: Path | None, folder: str, stem: str, endings: Sequence[str] = ENDINGS) -> Path | None:
    """The first of the files with one of these endings that is there, else None."""
    if data_dir is None:
        return None
    files = [data_dir / folder / f"{stem}{ending}" for ending in endings]
    return next((file for file in files if file.is_file()), None)


def missing(data_dir: Path | None, folder: str, name: str, fields: Sequence[str] = ()) -> TalasError:
    """What to say, and what to put where, when a local file is not there."""
    content = f" with the fields {', '.join(fields)} in JSON Lines" if fields else ""
    if data_dir is None:
        return TalasError(f"there is no local data folder: set TALAS_DATA to one that holds {folder}/{name}{content}")
    return TalasError(f"there is no file {data_dir / folder / name}: put it there{content}")


def _filled(value: Any) -> bool:
    return value is not None and bool(str(value).strip())


def _hub_rows(hub: Hub, split: str, fields: Sequence[str], absent: TalasError) -> list[Row]:
    from datasets import load_dataset

    try:
        table = load_dataset(hub["id"], hub.get("config"), split=split, revision=hub.get("revision"))
    except (OSError, ValueError) as error:
        raise TalasError(f"{absent}; and the hub's {hub['id']} cannot be loaded: {error}") from error
    theirs = {field: hub.get("columns", {}).get(field, field) for field in fields}
    unknown = sorted(set(theirs.values()) - set(table.column_names))
    if unknown:
        raise TalasError(
            f"{hub['id']} ({split}) has no column {', '.join(unknown)}; found {', '.join(table.column_names)}"
        )
    rows = [Row(i, {ours: record[column] for ours, column in theirs.items()}) for i, record in enumerate(table, 1)]
    if "positive" in hub:
        rows = [Row(i, fields | {"label": int(fields["label"] == hub["positive"])}) for i, fields in rows]
    return rows
