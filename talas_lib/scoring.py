"""The record of one encoder's scores, geometry and cost, and those of the references, which are kept by content.

References (teacher, untrained student) depend on no run: their results lie under `outputs/cache` and are shared.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock

from talas_lib import efficiency, item_results, paths, runs, sources
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.evaluate import SuiteScores, evaluate_suite, unseen_details
from talas_lib.records import EVALUATION_VERSION
from talas_lib.tasks import Pairs, Similarity

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams, TaskSuiteSpec, TeacherSpec
    from talas_lib.tasks import Task

REFERENCES = ("teacher", "untrained_cls", "untrained_mean")
Progress = Callable[[int, int], None]
Load = Callable[[], Encoder]
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated and how: the same for a run and its references."""

    suite: str
    protocol: str
    tasks: tuple[Task, ...]
    precision: str = "fp32"
    device: str = "cpu"

    @classmethod
    def of(cls, suite: TaskSuiteSpec, *, precision: str = "fp32", device: str = "cpu") -> Evaluation:
        """With the data of the suite's tasks."""
        return cls(suite.name, suite.protocol, sources.load_tasks(suite), precision, device)

    @property
    def identity(self) -> dict[str, Any]:
        """All that changes the scores of a given encoder, JSON-ready."""
        return {
            "name": self.suite,
            "protocol": self.protocol,
            "tasks": [[task.name, task.metric, task.in_average, task.in_domain] for task in self.tasks],
            "sha256": [task.sha256 for task in self.tasks],
            "precision": self.precision,
            "version": EVALUATION_VERSION,
        }

    @property
    def texts(self) -> list[str]:
        """The distinct texts, in order of first appearance."""
        return list(dict.fromkeys(text for task in self.tasks for text in task.data.all_texts))


@dataclass(frozen=True)
class Scored:
    """A JSON-ready record (averages and scores 0 to 100, geometry), and what each test item came to."""

    record: dict[str, Any]
    items: item_results.ByTask


def scores_record(scores: SuiteScores, seconds: float) -> dict[str, Any]:
    """A JSON-ready record of a suite's scores, 0 to 100."""
    tasks = {
        s.task: {
            "kind": s.kind,
            "in_average": s.in_average,
            "metric": s.metric,
            "score": s.score,
            "n": s.n,
            "details": dict(s.details),
            "seconds": s.seconds,
        }
        for s in scores.scores
    }
    return {
        **scores.averages(),
        "tasks": tasks,
        "texts": scores.texts,
        "dim": scores.dim,
        "geometry": dict(scores.geometry),
        "encode_seconds": scores.encode_seconds,
        "seconds": seconds,
    }


def encoding(
    encoder: Encoder, precision: str, pooling: str | None = None, progress: Progress | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts to fp32 vectors that are not normalised, as every evaluation sees them."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        return encoder.encode(texts, normalize=False, pooling=pooling, precision=precision, progress=progress)

    return encode


def score_encoder(
    encoder: Encoder,
    what: Evaluation,
    *,
    pooling: str | None = None,
    training_texts: Collection[str] = (),
    progress: Progress | None = None,
) -> Scored:
    """Scores of one encoder, each distinct text of the suite encoded once.

    training_texts: pair and similarity tasks are then also scored without the pairs that share a sentence with them.
    """
    began = time.perf_counter()
    encode = encoding(encoder, what.precision, pooling, progress)
    scores = evaluate_suite(encode, what.tasks, protocol=what.protocol, training_texts=training_texts)
    items = {s.task: dict(s.items) for s in scores.scores if s.items}
    return Scored(scores_record(scores, time.perf_counter() - began), items)


def measured(encoder: Encoder, what: Evaluation, pooling: str | None = None) -> dict[str, Any]:
    """What the encoder costs on this machine (see efficiency.measure)."""
    found = efficiency.measure(encoder, encoding(encoder, what.precision, pooling), what.texts)
    return found | {"precision": what.precision}


def reference_scores(
    p: ResolvedParams,
    what: Evaluation,
    *,
    seen: Collection[str] = (),
    progress: Progress | None = None,
    identities: Mapping[str, Identity] | None = None,
) -> dict[str, dict[str, Any]]:
    """Records of the teacher and of the untrained student with CLS and with mean pooling; computed once and kept.

    seen: comparison keys of the training texts, for `unseen_score`. progress: of the texts, each counted once a reference that
    is not kept. A model is loaded only if something of it is not kept. identities: of `reference_identities`, where the
    caller has them.
    """
    identities = reference_identities(p, what) if identities is None else identities
    size, waiting = len(what.texts), unscored(identities, what)
    found = {}
    for name, identity in identities.items():
        before = waiting.index(name) * size if name in waiting else None
        share = None if before is None else part(progress, before, size * len(waiting))
        pooling = None if name == "teacher" else name.removeprefix("untrained_")
        load = partial(_load_reference, p, name, what.device)
        found[name] = _kept_record(identity, load, pooling, what, seen, share)
    return found


def reference_identities(p: ResolvedParams, what: Evaluation) -> dict[str, Identity]:
    """What determines the vectors of each reference, in the order of REFERENCES. Hashes the models' files."""
    student = student_identity(p)
    teacher = {"teacher": sources.teacher_identity(p.teacher_spec, precision=what.precision)}
    names = [name for name in REFERENCES if name != "teacher"]
    return teacher | {name: student | {"pooling": name.removeprefix("untrained_")} for name in names}


def unscored(identities: Mapping[str, Identity], what: Evaluation) -> list[str]:
    """Those of the references whose scores are not kept, so that their texts are still to be encoded."""
    return [name for name, identity in identities.items() if not _file("scores", _content(identity, what)).is_file()]


def _load_reference(p: ResolvedParams, name: str, device: str) -> Encoder:
    if name == "teacher":
        return sources.load_teacher(p.teacher_spec, device=device)
    return sources.load_student(p.student_spec, device=device)


def encoder_scores(
    spec: TeacherSpec, what: Evaluation, *, seen: Collection[str] = (), progress: Progress | None = None
) -> dict[str, Any]:
    """The record of a ready-made encoder, of the form of a teacher's among the references and kept as the same. See there."""
    load = partial(sources.load_teacher, spec, device=what.device)
    return _kept_record(sources.teacher_identity(spec, precision=what.precision), load, None, what, seen, progress)


def _content(identity: Identity, what: Evaluation) -> dict[str, Any]:
    """All that determines a reference's scores."""
    return {"reference": identity, "evaluation": what.identity}


def _kept_record(
    identity: Identity,
    load: Load,
    pooling: str | None,
    what: Evaluation,
    seen: Collection[str],
    progress: Progress | None,
) -> dict[str, Any]:
    """The record of an encoder that no run has trained. load: called only if something of it is not kept."""
    encoder = cache(load)
    content = _content(identity, what)
    scored = _kept_scores(content, lambda: score_encoder(encoder(), what, pooling=pooling, progress=progress))
    if progress is not None and not encoder.cache_info().currsize:
        progress(scored.record["texts"], scored.record["texts"])
    surroundings = {"threads": torch.get_num_threads(), "device": what.device}
    cost = kept("cost", content | surroundings, lambda: measured(encoder(), what, pooling))
    record = scored.record | {"efficiency": efficiency.with_score(cost, scored.record["avg"])}
    for task in what.tasks:
        if isinstance(task.data, (Pairs, Similarity)):
            record["tasks"][task.name]["details"] |= unseen_details(task.data, scored.items[task.name]["cosine"], seen)
    return record


def student_identity(p: ResolvedParams) -> dict[str, Any]:
    """What the untrained student is: its files, layers and length."""
    from talas_lib.model_folders import folder_fingerprint

    folder = sources.model_folder(p.student_spec)
    layers = None if p.student_spec.layers is None else list(p.student_spec.layers)
    return {**folder_fingerprint(folder), "layers": layers, "max_length": p.student_spec.max_length}


def part(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one piece of work, told as that of the whole: `before` steps lie in front of it, `total` are all."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


# ---- results by content


def kept(kind: str, content: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result under `outputs/cache`, named by what determines it; computed anew where it is missing or damaged."""
    file = _file(kind, content)
    found = _read(file)
    if found is not None:
        return found
    result = compute()
    runs.atomic_write_json(file, result)
    return result


def _kept_scores(content: Mapping[str, Any], compute: Callable[[], Scored]) -> Scored:
    """`kept` for scores, with their items beside them."""
    file = _file("scores", content)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # runs that are evaluated side by side score their references once
        found = _whole_scores(file, content)
        if found is None:
            found = compute()
            item_results.save(file.with_suffix(".npz"), content["evaluation"], found.items)
            runs.atomic_write_json(file, found.record)
    return found


def _whole_scores(file: Path, content: Mapping[str, Any]) -> Scored | None:
    """Kept scores with their items; None where either is missing or damaged."""
    found = _read(file)
    if found is None:
        return None
    try:
        return Scored(found, item_results.load(file.with_suffix(".npz"), content["evaluation"]))
    except TalasError:
        return None


def _file(kind: str, content: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return paths.cache_dir() / f"{kind}-{key}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
