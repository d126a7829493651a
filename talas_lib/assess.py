"""What notebook 04 does: score a run on its tasks, next to reference models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib import collapse, efficiency, item_results, runs, scoring, stages
from talas_lib.errors import TalasError
from talas_lib.release import model_card
from talas_lib.texts import comparison_key

if TYPE_CHECKING:
    from talas_lib.params import TaskSuiteSpec

Progress = Callable[[int, int], None]


def items_file(run: runs.Run, suite: str) -> Path:
    """Where a run's results by test item lie (see item_results)."""
    return run.items_file(suite)


def evaluate_run(
    run: runs.Run,
    suite: TaskSuiteSpec,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a finished run on a suite, with the references; recorded by suite (runs.evaluation_stage), and not repeated.

    precision: fp32 or bf16 of encoding, for the run and the references. progress: told the texts encoded so far and in all,
    over the run's model and the references whose scores are not kept. The record holds scores, geometry with `collapse` (a
    message or None), efficiency, and the same of each reference; what each test item came to goes to `items_file`.
    """
    what = scoring.Evaluation.of(suite, precision=precision, device=device)
    stage = runs.evaluation_stage(suite.name)
    record = run.read_record(stage)
    if record is not None and record.get("suite") == what.identity and _has_items(run, what):
        model_card.write(run)  # a process that ended right after the record has left it as it was
        return record
    student = stages.load_run_student(run).to(device)
    training = stages.load_corpus(run.params).texts
    size = len(what.texts)
    identities = scoring.reference_identities(run.params, what)
    total = size * (1 + len(scoring.unscored(identities, what)))
    own = scoring.score_encoder(student, what, training_texts=training, progress=scoring.part(progress, 0, total))
    cost = scoring.measured(student, what)
    seen = {comparison_key(text) for text in training}
    rest = scoring.part(progress, size, total)
    references = scoring.reference_scores(run.params, what, seen=seen, progress=rest, identities=identities)
    item_results.save(items_file(run, what.suite), what.identity, own.items)
    record = {
        "suite": what.identity,
        **own.record,
        "collapse": _collapse(run, own.record["geometry"], references),
        "efficiency": efficiency.with_score(cost, own.record["avg"]),
        "references": references,
    }
    run.write_record(stage, record)
    model_card.write(run)
    return record


def _has_items(run: runs.Run, what: scoring.Evaluation) -> bool:
    try:
        item_results.load(items_file(run, what.suite), what.identity)
    except TalasError:
        return False
    return True


def _collapse(run: runs.Run, geometry: Mapping[str, float], references: Mapping[str, Any]) -> str | None:
    """What is wrong with the geometry of the finished student, beside the untrained one with the same pooling."""
    untrained = references.get(f"untrained_{(run.read_record('train') or {})['pooling']}")
    rows = run.read_metrics()
    terms = [name.removeprefix("loss_") for name in (rows[0] if rows else {}) if name.startswith("loss_")]
    return collapse.check(
        geometry,
        start=None if untrained is None else untrained["geometry"],
        done=1.0,
        circumstances=collapse.Circumstances.of(run.params, terms),
    )
