"""Teacher embeddings on disk: computed once, named by everything that changes them, read through memory maps.

A cache is a folder `<root>/teacher-<key>`. Its shards are written one by one, each atomically and with its sha256, and
`meta.json` comes last: a folder without it is unfinished, and building again goes on at the first missing shard. Beside the
texts themselves, building and reading take a shard's worth of memory and some 40 bytes a text
(measured: `python -m benchmarks.encode --flat`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from talas_lib import distribution
from talas_lib.cache_files import (
    check_file,
    content_key,
    distinct_texts,
    file_sha256,
    load_array,
    read_record,
    save_array,
    taking_turns,
    texts_sha256,
    write_record,
)
from talas_lib.errors import TalasError

FORMAT = 1
OPEN_SHARDS = 128  # mapped at a time: each holds a file open, and a system allows about a thousand
Embed = Callable[[Sequence[str]], np.ndarray]


def cache_key(identity: Mapping[str, Any], texts: Sequence[str]) -> str:
    """16 hex digits from the teacher's identity (weights, tokenizer, pooling, prompt, ...) and the texts."""
    return content_key({"format": FORMAT, "teacher": dict(identity), "texts": texts_sha256(texts)})


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache. vectors(rows) gives float32 `[rows, dim]` in corpus order."""

    folder: Path
    meta: Mapping[str, Any]
    _place: np.ndarray  # corpus row -> row among the distinct texts
    _maps: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)  # shards read last

    @classmethod
    def open(cls, folder: Path) -> TeacherCache:
        """Open and verify: every shard is hashed against its record. TalasError names a damaged file and the way out."""
        meta_file = folder / "meta.json"
        if not meta_file.is_file():
            raise TalasError(f"{folder} holds no finished teacher cache; notebooks/02_cache_teacher.ipynb builds it")
        meta = read_record(meta_file, "teacher cache record")
        for shard in meta["shards"]:
            check_file(folder / shard["file"], shard["sha256"], "teacher cache shard")
        return cls(folder, meta, load_array(folder / "place.npy", meta["place_sha256"], "teacher cache index"))

    def __len__(self) -> int:
        return len(self._place)

    @property
    def dim(self) -> int:
        return int(self.meta["dim"])

    @property
    def seconds(self) -> float:
        """Time the encoding took when the cache was built, over all attempts."""
        return float(self.meta["seconds"])

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Teacher vectors of corpus rows, float32 `[rows, dim]`."""
        place = self._place[np.asarray(rows)]
        size = int(self.meta["shard_size"])
        out = np.empty((len(place), self.dim), dtype=np.float32)
        for number in np.unique(place // size):
            here = np.flatnonzero(place // size == number)
            out[here] = self._shard(int(number))[place[here] - number * size]
        return out

    def _shard(self, number: int) -> np.ndarray:
        """A shard's vectors, mapped; at most OPEN_SHARDS stay so."""
        if number not in self._maps:
            if len(self._maps) >= OPEN_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            self._maps[number] = np.load(self.folder / self.meta["shards"][number]["file"], mmap_mode="r")
        return self._maps[number]


def build(
    root: Path,
    identity: Mapping[str, Any],
    texts: Sequence[str],
    embed: Embed,
    *,
    shard_size: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """The cache of these texts under this teacher: opened when it exists, otherwise built or continued.

    embed: texts to float vectors `[n, dim]`. Each distinct text is embedded once, neighbours in length together. Two
    processes that build the same cache take turns; those of one launch share the shards (see distribution).
    `progress(done, all)` counts distinct texts. TalasError for vectors that are not finite or all zero, by text.
    """
    folder = root / f"teacher-{cache_key(identity, texts)}"
    root.mkdir(parents=True, exist_ok=True)
    with taking_turns(root / f"{folder.name}.lock"):
        cache = _open_or_forget(folder) if distribution.is_first() else None
        if distribution.first_says(cache is not None):
            return cache or TeacherCache.open(folder)
        folder.mkdir(exist_ok=True)
        distinct, place = distinct_texts(texts)
        records = _shards(folder, distinct, embed, shard_size, progress)
        meta = {
            "format": FORMAT,
            "teacher": dict(identity),
            "texts_sha256": texts_sha256(texts),
            "sentences": len(texts),
            "distinct": len(distinct),
            "dim": records[0]["dim"] if records else 0,
            "shard_size": shard_size,
            "shards": records,
            "seconds": sum(r["seconds"] for r in records),
        }
        if distribution.is_first():
            meta["place_sha256"] = save_array(folder / "place.npy", place)
            write_record(folder / "meta.json", meta)
        distribution.wait()
        return TeacherCache.open(folder)


def _open_or_forget(folder: Path) -> TeacherCache | None:
    """The cache when it is whole; a damaged one is unfinished again: its good shards stay, the others are to be made."""
    try:
        return TeacherCache.open(folder)
    except TalasError:
        (folder / "meta.json").unlink(missing_ok=True)
        return None


def _shards(
    folder: Path,
    distinct: Sequence[str],
    embed: Embed,
    shard_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """The records of all shards, in order; of several processes each makes every so many-th."""
    ranks = distribution.current()
    step = 1 if ranks is None else ranks.count
    records = {}
    for number in range(0 if ranks is None else ranks.number, -(-len(distinct) // shard_size), step):
        shard = distinct[number * shard_size : (number + 1) * shard_size]
        records[number] = _shard(folder, number, shard, embed)
        if progress is not None and distribution.is_first():
            progress(min((number + step) * shard_size, len(distinct)), len(distinct))
    parts = [records] if ranks is None else ranks.exchange(records)
    return [record for _, record in sorted(pair for part in parts for pair in part.items())]


def _shard(folder: Path, number: int, texts: Sequence[str], embed: Embed) -> dict[str, Any]:
    """One shard: kept when its record and its bytes agree, otherwise computed."""
    file, record_file = folder / f"shard-{number:05d}.npy", folder / f"shard-{number:05d}.json"
    if file.is_file() and record_file.is_file():
        with contextlib.suppress(TalasError):
            found = read_record(record_file, "teacher cache record")
            if found["sha256"] == file_sha256(file):
                return found
    began = time.perf_counter()
    vectors = np.asarray(embed(texts), dtype=np.float32)
    bad = ~np.isfinite(vectors).all(1) | (np.abs(vectors).max(1) == 0)
    if bad.any():
        raise TalasError(
            f"the teacher gives no usable vector (NaN, infinite or zero) for {texts[int(np.argmax(bad))]!r}; remove it"
        )
    sha256 = save_array(file, vectors)
    record = {"file": file.name, "sha256": sha256, "rows": len(texts), "dim": vectors.shape[1]}
    record["seconds"] = time.perf_counter() - began
    write_record(record_file, record)
    return record
