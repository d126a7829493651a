"""Is a teacher cache what the teacher says? Sentences encoded together, one by one, and read back, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import records, sources

if TYPE_CHECKING:
    from talas_lib.corpora import Corpus
    from talas_lib.params import ResolvedParams, TeacherSpec
    from talas_lib.teacher_cache import TeacherCache

# Largest distance of two vectors of one sentence, relative to their length, that rounding explains.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


def checks(
    p: ResolvedParams, sentences: Corpus, cache: TeacherCache, spec: TeacherSpec | None = None, *, count: int = 8
) -> dict[str, Any]:
    """Batched against one by one, and cached against fresh, for a few sentences spread over the corpus.

    spec: the teacher of the cache, by default the first of `p`. It is loaded for this; the result of notebook 02's record is
    returned instead when it is of this very cache. Distances are relative, the largest over the sentences: {rows,
    batched_vs_single, cached_vs_fresh, tolerance}.
    """
    record = _read(records.cache_file(p)) or {}
    for earlier in (record, *record.get("others", ())):
        if earlier.get("key") == cache.folder.name:
            return dict(earlier["checks"])
    teacher = sources.load_teacher(spec or p.teacher_spec, device=sources.pick_device(p.device))
    rows = np.unique(np.linspace(0, len(sentences) - 1, count).astype(int))
    texts = [sentences.texts[row] for row in rows]
    together = teacher.encode(texts, precision=p.precision)
    single = np.concatenate([teacher.encode([text], precision=p.precision) for text in texts])
    return {
        "rows": rows.tolist(),
        "batched_vs_single": _distance(together, single),
        "cached_vs_fresh": _distance(cache.vectors(rows), together),
        "tolerance": TOLERANCE[p.precision],
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
