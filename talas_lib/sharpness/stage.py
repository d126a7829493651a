"""What notebook 05 does: the sharpness of a run's final weights, of those kept after earlier epochs, of its untrained student.

All are measured on the same fixed batches of the run's corpus, under the objective that its training ended with. Records are
`sharpness` (the final weights), `sharpness-epoch-<n>` and `landscape-<hash of the other run>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import export, kept_weights, landscape, methods, runs, scoring, sources, stages
from talas_lib.errors import TalasError, listed
from talas_lib.fixed_objective import fixed_objective, fixed_rows, parameter_subsets
from talas_lib.methods.base import Objective
from talas_lib.sharpness.measurement import Measurement, measure

if TYPE_CHECKING:
    from talas_lib.encoders import Encoder
    from talas_lib.methods.base import Method
    from talas_lib.params import ResolvedParams

Progress = Callable[[int, int], None]


def sharpness_run(run: runs.Run, settings: ResolvedParams, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measure a finished run; returns the record of its final weights. What is on record with the same settings is not repeated.

    settings: the parameters of notebook 05. Beside the final weights those of `sharpness_epochs` are measured, on
    `sharpness_batches` batches (the final ones on `final_batches` where that is given), and the untrained student with each,
    once for all runs that share it. progress: told (measured, all), of the weights of the run and of the untrained student.
    """
    if methods.builds_student(run.params.method):
        raise TalasError(
            f"run {run.id} has no loss and so no Hessian: method {run.params.method} computes its student without training."
            " Measure the run of another method"
        )
    how = Measurement.of(settings)
    final = Measurement.of(settings, sharpness_batches=settings.final_batches or how.sharpness_batches)
    wanted: list[tuple[str, int | None, Measurement]] = []
    for kept in dict.fromkeys(settings.sharpness_epochs):
        _check_epoch(run, kept)
        wanted.append((epoch_stage(kept), kept, how.small))
    wanted.append(("sharpness", None, final))
    tell = progress or (lambda done, total: None)
    for number, (stage, epoch, asked) in enumerate(wanted):
        _record(run, stage, epoch, asked, settings.device, partial(tell, 2 * number + 1, 2 * len(wanted)))
        tell(2 * number + 2, 2 * len(wanted))
    return run.read_record("sharpness") or {}


def epoch_stage(epoch: int) -> str:
    """The name of the record of an epoch's weights."""
    return f"sharpness-epoch-{epoch}"


def epoch_records(run: runs.Run) -> dict[int, dict[str, Any]]:
    """The records of single epochs, in order."""
    prefix = epoch_stage(0)[:-1]
    found = {
        int(stage.removeprefix(prefix)): run.read_record(stage) for stage in run.stages if stage.startswith(prefix)
    }
    return {epoch: record for epoch, record in sorted(found.items()) if record is not None}


def last_epoch(run: runs.Run) -> int:
    """Epochs that a finished run has trained, all stages of its method together."""
    record = run.read_record("train") or {}
    return int(record["steps"]) // math.ceil(record["sentences"] / run.params.batch_size)


def _check_epoch(run: runs.Run, epoch: int) -> None:
    if epoch != last_epoch(run) and epoch not in kept_weights.kept_epochs(run.folder):
        kept = [str(n) for n in (*kept_weights.kept_epochs(run.folder), last_epoch(run))]
        raise TalasError(
            f"run {run.id} has no weights of epoch {epoch}. There are: {listed(kept)}. Others are kept by 03_train while it"
            f" trains: -y 'keep_epochs: [{epoch}]'"
        )


def _record(
    run: runs.Run, stage: str, epoch: int | None, how: Measurement, device: str, half_way: Callable[[], None]
) -> None:
    """Measure the weights of an epoch (None: the final ones) unless that is on record. half_way: called before the untrained
    student's turn.
    """
    record = run.read_record(stage)
    if record is not None and record["settings"] == how.settings():
        return
    student, method = trained_weights(run, epoch, device=sources.pick_device(device))
    record = {"settings": how.settings(), "epoch": last_epoch(run) if epoch is None else epoch}
    record |= measure(student, method, run.params, how)
    half_way()
    record["untrained"] = _untrained(run, how.small, device)
    run.write_record(stage, record)


def trained_weights(run: runs.Run, epoch: int | None = None, *, device: str = "cpu") -> tuple[Encoder, Method]:
    """Student and method, with its heads, after an epoch; None for the finished run. TalasError where they were not kept."""
    from safetensors.torch import load_file

    student = stages.load_run_student(run)
    method = stages.build_method(run.params, student=student, teacher_dims=_teacher_dims(run))
    file = run.folder / "model" / export.HEADS_FILE
    method.heads.load_state_dict(load_file(file) if file.is_file() else {})
    if epoch is not None and epoch != last_epoch(run):
        kept_weights.load(run.folder, epoch, {"student": student.model, "heads": method.heads})
    return student.to(device), method


def _teacher_dims(run: runs.Run) -> tuple[int, ...]:
    return tuple((run.read_record("train") or {})["teacher_dims"])


def _untrained(run: runs.Run, how: Measurement, device: str) -> dict[str, Any]:
    """The untrained student under the run's objective with freshly drawn heads, kept for all runs that share it."""
    p = run.params
    trained = run.read_record("train") or {}
    content = {
        "sharpness": how.settings(),
        "student": scoring.student_identity(p),
        "pooling": trained["pooling"],
        "method": [p.method, p.method_config.model_dump(), p.seed],
        "data": [trained[key] for key in ("corpus_sha256", "cache_key")],
        "recipe_version": p.run_config()["recipe_version"],
    }

    def compute() -> dict[str, Any]:
        student = sources.load_student(p.student_spec, device=sources.pick_device(device))
        fresh = stages.build_method(p, student=student, teacher_dims=_teacher_dims(run))
        corpus = stages.load_corpus(p)
        stages.prepare(p, fresh, student, corpus, stages.open_caches(p, corpus))
        return measure(student, fresh, p, how)

    return scoring.kept("sharpness", content, compute)


# ---- between two runs

_SAME = ("teacher", "teachers", "student", "corpus", "method")


def line_between(run: runs.Run, other: runs.Run, settings: ResolvedParams) -> dict[str, Any]:
    """The loss on the straight line from one run's weights, encoder and heads, to another's; recorded with the first.

    Positions run from -0.5 to 1.5, the first run at 0, the other at 1, on the fixed batches that `sharpness_batches` names.
    TalasError when the two differ in more than their training: another objective is another function.
    """
    how = Measurement.of(settings, landscape=settings.landscape or 21).small
    stage, points = f"landscape-{other.id.rsplit('--', 1)[1]}", settings.landscape or 21
    asked = how.settings() | {"points": points}
    record = run.read_record(stage)
    if record is not None and record["settings"] == asked:
        return record
    ours, theirs = (r.params.run_config() for r in (run, other))
    apart = [name for name in _SAME if ours.get(name) != theirs.get(name)]
    if apart:
        raise TalasError(
            f"runs {run.id} and {other.id} differ in {listed(apart)}: there is no one loss to follow from one to the"
            " other. Accepted: runs that differ in optimizer, seed or schedule"
        )
    (student, method), (their_student, their_method) = (trained_weights(r) for r in (run, other))
    p = run.params
    corpus = stages.load_corpus(p)
    data = stages.training_data(p, student, corpus, stages.open_caches(p, corpus))
    rows = fixed_rows(len(corpus), how.sharpness_batches, how.sharpness_batch_size, how.seed)
    objective = Objective(student, method, needs=p.needs, precision="fp32")
    at = np.arange(-(points - 1) // 2, 3 * (points - 1) // 2 + 1) / (points - 1)
    with fixed_objective(objective, data, rows, dropout_seed=how.dropout_seed) as fixed:
        whole = "encoder+heads" if "encoder+heads" in fixed.subsets else "encoder"
        their_student.compact_vocabulary(fixed.used)
        there = parameter_subsets(their_student, their_method.heads)[whole]
        line = landscape.between(fixed.losses, fixed.parameters(whole), there, at)
    record = {"settings": asked, "other": other.id, "positions": line.positions, "losses": line.losses}
    run.write_record(stage, record)
    return run.read_record(stage) or record
