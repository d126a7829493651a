"""Teacher embeddings on disk: computed once, named by everything that changes them, read through memory maps.

A cache is a folder `<root>/teacher-<key>`. Its shards are written one by one, each atomically and with its sha256, and
`meta.json` comes last: a folder without it is unfinished, and building again goes on at the first missing shard. Beside the
texts themselves, building and reading take a shard's worth of memory and some 40 bytes a text
(measured: `python -m benchmarks.encode --flat`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from talas_lib.cache_files import (
    check_file,
    content_key,
    distinct_texts,
    file_sha256,
    load_array,
    save_array,
    texts_sha256,
)
from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_json

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
        meta = json.loads(meta_file.read_text())
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
    processes that build the same cache take turns. `progress(done, all)` counts distinct texts. TalasError for vectors
    that are not finite or all zero, by text.
    """
    folder = root / f"teacher-{cache_key(identity, texts)}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if (folder / "meta.json").is_file():
            try:
                return TeacherCache.open(folder)
            except TalasError:
                (folder / "meta.json").unlink()  # damaged: the good shards stay, the others are made again
        folder.mkdir(exist_ok=True)
        distinct, place = distinct_texts(texts)
        records = []
        for number, start in enumerate(range(0, len(distinct), shard_size)):
            shard = distinct[start : start + shard_size]
            records.append(_shard(folder, number, shard, embed))
            if progress is not None:
                progress(start + len(shard), len(distinct))
        meta = {
            "format": FORMAT,
            "teacher": dict(identity),
            "texts_sha256": texts_sha256(texts),
            "sentences": len(texts),
            "distinct": len(distinct),
            "dim": records[0]["dim"] if records else 0,
            "shard_size": shard_size,
            "shards": records,
            "place_sha256": save_array(folder / "place.npy", place),
            "seconds": sum(r["seconds"] for r in records),
        }
        atomic_write_json(folder / "meta.json", meta)
        return TeacherCache.open(folder)


def _shard(folder: Path, number: int, texts: Sequence[str], embed: Embed) -> dict[str, Any]:
    """One shard: kept when its record and its bytes agree, otherwise computed."""
    file, record_file = folder / f"shard-{number:05d}.npy", folder / f"shard-{number:05d}.json"
    if file.is_file() and record_file.is_file():
        record: dict[str, Any] = json.loads(record_file.read_text())
        if record["sha256"] == file_sha256(file):
            return record
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
    atomic_write_json(record_file, record)
    return record
