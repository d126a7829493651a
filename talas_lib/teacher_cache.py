"""Teacher embeddings on disk: computed once, named by everything that changes them, read through memory maps.

A cache is a folder `<root>/teacher-<key>`. Its shards are written one by one, each atomically and with its sha256, and
`meta.json` comes last: a folder without it is unfinished, and building again goes on at the first missing shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_bytes, atomic_write_json

FORMAT = 1
Embed = Callable[[Sequence[str]], np.ndarray]


def texts_sha256(texts: Sequence[str]) -> str:
    """Hash of a list of texts and their order."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def cache_key(identity: Mapping[str, Any], texts: Sequence[str]) -> str:
    """16 hex digits from the teacher's identity (weights, tokenizer, pooling, prompt, ...) and the texts."""
    content = {"format": FORMAT, "teacher": dict(identity), "texts": texts_sha256(texts)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache. vectors(rows) gives float32 `[rows, dim]` in corpus order."""

    folder: Path
    meta: Mapping[str, Any]
    _shards: tuple[np.ndarray, ...]
    _place: np.ndarray  # corpus row -> row among the distinct texts

    @classmethod
    def open(cls, folder: Path) -> TeacherCache:
        """Open and verify: every shard is hashed against its record. TalasError names a damaged file and the way out."""
        meta_file = folder / "meta.json"
        if not meta_file.is_file():
            raise TalasError(f"{folder} holds no finished teacher cache; notebooks/02_cache_teacher.ipynb builds it")
        meta = json.loads(meta_file.read_text())
        shards = []
        for shard in meta["shards"]:
            file = folder / shard["file"]
            if not file.is_file() or _sha256(file) != shard["sha256"]:
                raise TalasError(f"teacher cache shard {file} is damaged or missing; delete {folder} and cache again")
            shards.append(np.load(file, mmap_mode="r"))
        place = folder / "place.npy"
        if _sha256(place) != meta["place_sha256"]:
            raise TalasError(f"teacher cache index {place} is damaged; delete {folder} and cache again")
        return cls(folder, meta, tuple(shards), np.load(place, mmap_mode="r"))

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
            out[here] = self._shards[number][place[here] - number * size]
        return out


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
        distinct = sorted(dict.fromkeys(texts), key=lambda t: (len(t), t))
        shards = [distinct[i : i + shard_size] for i in range(0, len(distinct), shard_size)]
        records = []
        for number, shard in enumerate(shards):
            records.append(_shard(folder, number, shard, embed))
            if progress is not None:
                progress(min((number + 1) * shard_size, len(distinct)), len(distinct))
        where = {t: i for i, t in enumerate(distinct)}
        _save(folder / "place.npy", np.array([where[t] for t in texts], dtype=np.int64))
        meta = {
            "format": FORMAT,
            "teacher": dict(identity),
            "texts_sha256": texts_sha256(texts),
            "sentences": len(texts),
            "distinct": len(distinct),
            "dim": records[0]["dim"] if records else 0,
            "shard_size": shard_size,
            "shards": records,
            "place_sha256": _sha256(folder / "place.npy"),
            "seconds": sum(r["seconds"] for r in records),
        }
        atomic_write_json(folder / "meta.json", meta)
        return TeacherCache.open(folder)


def _shard(folder: Path, number: int, texts: Sequence[str], embed: Embed) -> dict[str, Any]:
    """One shard: kept when its record and its bytes agree, otherwise computed."""
    file, record_file = folder / f"shard-{number:05d}.npy", folder / f"shard-{number:05d}.json"
    if file.is_file() and record_file.is_file():
        record: dict[str, Any] = json.loads(record_file.read_text())
        if record["sha256"] == _sha256(file):
            return record
    began = time.perf_counter()
    vectors = np.asarray(embed(texts), dtype=np.float32)
    bad = ~np.isfinite(vectors).all(1) | (np.abs(vectors).max(1) == 0)
    if bad.any():
        raise TalasError(
            f"the teacher gives no usable vector (NaN, infinite or zero) for {texts[int(np.argmax(bad))]!r}; remove it"
        )
    _save(file, vectors)
    record = {"file": file.name, "sha256": _sha256(file), "rows": len(texts), "dim": vectors.shape[1]}
    record["seconds"] = time.perf_counter() - began
    atomic_write_json(record_file, record)
    return record


def _save(file: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    atomic_write_bytes(file, content.getvalue())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
