"""What the caches on disk share: keys from content, each distinct text once, arrays with their hash, ragged reading.

Every cache is a folder whose name holds its key. Its arrays are written atomically, each with its sha256, and the record that
makes it whole comes last.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_bytes, atomic_write_json, plain

_SEAL = "record_sha256"


def texts_sha256(texts: Sequence[str]) -> str:
    """Hash of a list of texts and their order."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def content_key(content: Mapping[str, Any]) -> str:
    """16 hex digits from all that changes what a cache holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Every text once, shortest first, and each text's place among them, int64 `[texts]`."""
    lengths = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    place, distinct = np.empty(len(texts), dtype=np.int64), list[str]()
    for rows in np.split(
        order, np.flatnonzero(np.diff(lengths[order])) + 1
    ):  # by length: a table of all texts is large
        here = sorted({texts[row] for row in rows})
        where = {text: number for number, text in enumerate(here, len(distinct))}
        place[rows] = [where[texts[row]] for row in rows]
        distinct += here
    return distinct, place


def save_array(file: Path, array: np.ndarray) -> str:
    """Write an array as .npy, whole or not at all; its sha256."""
    stream = io.BytesIO()
    np.save(stream, array)
    content = stream.getvalue()
    atomic_write_bytes(file, content)
    return hashlib.sha256(content).hexdigest()


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """A JSON object with its own hash, whole or not at all."""
    content = plain(record)
    atomic_write_json(file, {**content, _SEAL: _seal(content)})


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_record(file: Path, what: str) -> dict[str, Any]:
    """What `write_record` wrote, or a JSON object without a hash. TalasError names a damaged file and the way out."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or record.pop(_SEAL, None) not in (None, _seal(record)):
        raise TalasError(f"{what} {file} is damaged or missing; delete {file.parent} and cache again")
    return record


def check_file(file: Path, sha256: str, what: str) -> None:
    """TalasError, with the way out, unless the file is there and has this hash."""
    if not file.is_file() or file_sha256(file) != sha256:
        raise TalasError(f"{what} {file} is damaged or missing; delete {file.parent} and cache again")


def load_array(file: Path, sha256: str, what: str) -> np.ndarray:
    """A memory-mapped array whose file has this hash. TalasError names the damaged or missing file and the way out."""
    check_file(file, sha256, what)
    return np.load(file, mmap_mode="r")


@contextmanager
def taking_turns(lock: Path) -> Iterator[None]:
    """One builder of a cache at a time; the processes of one launch count as one and go in and out together."""
    from talas_lib import distribution

    with FileLock(lock) if distribution.is_first() else nullcontext():
        distribution.wait()
        yield
        distribution.wait()


def ragged_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), then from starts[1] on, and so on; int64 `[sum of counts]`."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
