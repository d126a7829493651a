"""What a preset would do, before any of it is done: jobs, caches, runs and estimated hours, as text. Needs no model."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from talas_lib import params, records
from talas_lib.errors import TalasError
from talas_lib.graph import estimates, plan
from talas_lib.graph.estimates import Machine, Rates
from talas_lib.params import ResolvedParams
from talas_lib.study import ready_made

# rows of corpora that are files, for where they are not there; their files under params/corpora say the same
_ROWS = {"talas15k": 14_760}
_UNKNOWN_ROWS = 15_000
_MACHINES: dict[Machine, str] = {
    "cpu": "two threads of the CPU that results/bench was measured on (methods, steps, encode, evaluation)",
    "gpu": "one NVIDIA T4, from the paper's Table 3 (results/paper/table3.csv)",
}


@dataclass(frozen=True)
class _Done:
    """What is there already. known: False where the corpus is not on this machine, so that no run has an id."""

    known: bool
    trained: frozenset[str] = frozenset()
    left: dict[str, tuple[str, ...]] | None = None
    caches: frozenset[int] = frozenset()
    encoders: frozenset[str] = frozenset()

    def suites(self, run: plan.PlannedRun) -> tuple[str, ...]:
        """What the run has still to be scored on."""
        return run.suites if self.left is None else self.left.get(run.run_id, ())

    def is_done(self, run: plan.PlannedRun) -> bool:
        return self.left is not None and not self.suites(run)

    def is_trained(self, run: plan.PlannedRun) -> bool:
        return self.known and (run.run_id in self.trained or self.is_done(run))


def text(of: plan.Plan) -> str:
    """The dry run of a plan."""
    rates = Rates.read()
    machines: tuple[Machine, ...] = ("cpu",) if of.values.get("device") == "cpu" else ("cpu", "gpu")
    done = _done(of)
    jobs, hours = _jobs(of, done, rates, machines), _runs(of, done, rates, machines)
    parts = [_headline(of, done), _shown(jobs)]
    if of.caches:
        parts += ["Caches of the teachers", _shown(_caches(of, done, rates, machines))]
    parts += ["Runs to train", _shown(hours) if len(hours) else "none: all are trained already"]
    if of.is_study:
        parts += ["Tables, in the order in which their runs are made", _shown(_tables(of))]
    return "\n\n".join([*parts, _sources(jobs, machines, of)]) + "\n"


# ---- what is there


def _done(of: plan.Plan) -> _Done:
    try:
        left = of.left()
        trained = {run.run_id for run in of.runs if records.run_file(run.run_id, "train").is_file()}
        caches = {number for number, cache in enumerate(of.caches) if cache.record.is_file()}
    except TalasError:  # a corpus that is not on this machine
        return _Done(known=False, encoders=_kept_encoders(of))
    if not of.is_study:
        left = {r: tuple(s for s in suites if not plan.scored_file(r, s).is_file()) for r, suites in left.items()}
    return _Done(True, frozenset(trained), left, frozenset(caches), _kept_encoders(of))


def _kept_encoders(of: plan.Plan) -> frozenset[str]:
    return frozenset(encoder.name for encoder in of.encoders if ready_made.is_kept(of, encoder))


def sentences(p: ResolvedParams) -> int:
    """How many sentences a run trains on; where a file is not there, what its params file says of it, or a guess of 15,000."""
    spec = p.corpus_spec
    total = spec.sentences
    if spec.kind in ("local", "file"):
        try:
            total = _count(params.corpus_path(spec))
        except TalasError:
            total = None
        total = min(total or _ROWS.get(spec.name, _UNKNOWN_ROWS), spec.sentences or 10**9)
    total = total or _UNKNOWN_ROWS
    used = min(total, p.max_sentences or total)
    return used - round(used * (p.hold_out or 0.0))


@cache
def _count(file: Path) -> int:
    opening = gzip.open if file.suffix == ".gz" else open
    with opening(file, "rb") as stream:
        return sum(1 for line in stream if line.strip()) - (".csv" in file.suffixes)


# ---- tables of the text


def _headline(of: plan.Plan, done: _Done) -> str:
    shared = sum(len(run.tables) > 1 for run in of.runs)
    tables = f"{len(of.tables)} table{'s' * (len(of.tables) != 1)}, " if of.is_study else ""
    several = f" ({shared} in several tables, made once)" if shared else ""
    if not done.known:
        state = "\nThe corpus is not on this machine, so what is finished cannot be told (see TALAS_DATA)."
    else:
        finished = sum(done.is_done(run) for run in of.runs)
        where = "on record" if of.is_study else "trained and scored"
        state = f"\n{finished} of them {'is' if finished == 1 else 'are'} {where} already." if finished else ""
    return f"{of.preset}: {tables}{len(of.runs)} runs{several}.{state}"


def _jobs(of: plan.Plan, done: _Done, rates: Rates, machines: Sequence[Machine]) -> pd.DataFrame:
    """Jobs by kind: all, to do, hours of what is to do."""
    waiting = [run for run in of.runs if not done.is_trained(run)]
    scorings = [(run, suite) for run in of.runs for suite in done.suites(run)]
    caches = _caches_to_build(of, done, waiting)
    encoders = [encoder for encoder in of.encoders if encoder.name not in done.encoders]
    every_scoring = [(run, suite) for run in of.runs for suite in run.suites]
    kinds: list[tuple[str, int, Sequence[Any], Callable[[Any, Machine], float]]] = [
        ("cache a teacher", len(of.caches), caches, partial(_cache_s, rates)),
        ("train", len(of.runs), waiting, partial(_train_s, rates)),
        ("score a run on a suite", len(every_scoring), scorings, partial(_score_s, rates)),
        ("score references", len(_references(every_scoring)), _references(scorings), partial(_model_s, rates)),
    ]
    if of.encoders:
        kinds.append(("score a ready-made encoder", len(of.encoders), encoders, partial(_encoder_s, rates)))
    notebooks = [*caches, *waiting, *scorings, "data", "comparison"]
    kinds.append(("start the notebooks", len(notebooks), notebooks, _start_s))
    rows: list[list[Any]] = [
        [kind, number, len(left), *(sum(cost(job, machine) for job in left) / 3600 for machine in machines)]
        for kind, number, left, cost in kinds
    ]
    rows.append(["all", "", "", *(sum(hours) for hours in list(zip(*rows, strict=True))[3:])])
    sharp = [run for run in of.runs if run.sharpness and run.trains]
    if sharp:
        rows.append(["largest eigenvalue", len(sharp), _unmeasured(sharp, done), *("not estimated" for _ in machines)])
    return pd.DataFrame(rows, columns=["job", "number", "to do", *(_hours(m) for m in machines)]).set_index("job")


def _caches_to_build(of: plan.Plan, done: _Done, waiting: Iterable[plan.PlannedRun]) -> list[plan.PlannedCache]:
    readers = {run.key for run in waiting}
    return [built for n, built in enumerate(of.caches) if n not in done.caches and readers & set(built.readers)]


def _unmeasured(sharp: Iterable[plan.PlannedRun], done: _Done) -> int:
    return sum(not (done.known and records.run_file(run.run_id, "sharpness").is_file()) for run in sharp)


def _references(scorings: Iterable[tuple[plan.PlannedRun, str]]) -> list[tuple[str, str, str]]:
    """(model, suite, precision): each teacher once, each untrained student with two poolings."""
    found: dict[tuple[str, str, str], int] = {}
    for run, suite in scorings:
        precision = plan.precision_of(run.cell)
        found[run.p.teacher_spec.name, suite, precision] = 1
        found[f"{run.p.student_spec.name} untrained", suite, precision] = 2
    return [(name.removesuffix(" untrained"), s, p) for (name, s, p), times in found.items() for _ in range(times)]


def _caches(of: plan.Plan, done: _Done, rates: Rates, machines: Sequence[Machine]) -> pd.DataFrame:
    rows = []
    for number, built in enumerate(of.caches):
        count, needs, teachers = sentences(built.p), built.p.needs, built.p.teacher_specs
        dims = [spec.dim or estimates.size_of(spec.name)[1] for spec in teachers]
        read = {"vectors": True, "token states": needs.teacher_tokens, "attention": needs.teacher_attention}
        size = estimates.vectors_gb(count, dims) + estimates.tokens_gb(count, dims[0], needs)
        hours = [_cache_s(rates, built, machine) / 3600 for machine in machines]
        state = "yes" if number in done.caches else "no" if done.known else "?"
        row = [built.p.teacher_names, built.p.corpus_spec.name, count, ", ".join(name for name in read if read[name])]
        rows.append([*row, len(built.readers), state, size, *hours])
    names = ["teacher", "corpus", "sentences", "signals", "runs", "there", "GB", *(_hours(m) for m in machines)]
    return pd.DataFrame(rows, columns=names).set_index("teacher")


def _runs(of: plan.Plan, done: _Done, rates: Rates, machines: Sequence[Machine]) -> pd.DataFrame:
    """Runs to train by student, method and optimizer: how many, their steps, hours."""
    rows = []
    for run in of.runs:
        if not done.is_trained(run):
            steps = estimates.run_steps(run.p, sentences(run.p))
            hours = [_train_s(rates, run, machine) / 3600 for machine in machines]
            rows.append([run.p.student, run.p.teacher_names, run.p.method, run.p.optimizer_spec.name, 1, steps, *hours])
    keys = ["student", "teacher", "method", "optimizer"]
    table = pd.DataFrame(rows, columns=[*keys, "runs", "steps", *(_hours(m) for m in machines)])
    return table.groupby(keys, sort=False).sum()


def _tables(of: plan.Plan) -> pd.DataFrame:
    rows, made = [], set[str]()
    for table in of.tables:
        runs = {run.key for run in of.runs if table.name in run.tables}
        suites = dict.fromkeys(suite for cell in table.cells for suite in params.cell_suites(cell))
        rows.append([table.name, len(runs), len(runs - made), len(table.encoders), ", ".join(suites), table.title])
        made |= runs
    names = ["table", "runs", "of them not in a table above", "encoders", "suites", "title"]
    return pd.DataFrame(rows, columns=names).set_index("table")


def _sources(jobs: pd.DataFrame, machines: Sequence[Machine], of: plan.Plan) -> str:
    said = [f"- {machine} h: {_MACHINES[machine]}" for machine in machines]
    said.append("- scaled to other models by the parameters of their blocks; read them to one digit")
    if "gpu" in machines:
        said.append("- the T4's times of emo, dskd and cdm hold the teacher; from the cache they are shorter")
    unmeasured = sorted({s for run in of.runs for s in run.suites} - {"paper", "tweet-eval"})
    if unmeasured:
        said.append(f"- tasks of {', '.join(unmeasured)} were not measured: each counts as the paper's median task")
    found = ", ".join(f"{_in_all(float(str(jobs.loc['all', _hours(m)])))} ({m})" for m in machines)
    return "\n".join([f"Estimated in all: {found}. Estimates, from", *said])


def _in_all(hours: float) -> str:
    """Hours, or from two days on days."""
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


# ---- seconds of one job


def _cache_s(rates: Rates, built: plan.PlannedCache, machine: Machine) -> float:
    count = sentences(built.p)
    return sum(rates.encode_s(count, spec.name, built.p.precision, machine) for spec in built.p.teacher_specs)


def _train_s(rates: Rates, run: plan.PlannedRun, machine: Machine) -> float:
    return rates.train_s(run.p, sentences(run.p), machine)


def _score_s(rates: Rates, scoring: tuple[plan.PlannedRun, str], machine: Machine) -> float:
    run, suite = scoring
    return _model_s(rates, (run.p.student_spec.name, suite, plan.precision_of(run.cell)), machine)


def _encoder_s(rates: Rates, encoder: plan.PlannedEncoder, machine: Machine) -> float:
    return _model_s(rates, (encoder.name, encoder.suite, encoder.precision), machine)


def _model_s(rates: Rates, scored: tuple[str, str, str], machine: Machine) -> float:
    model, suite, precision = scored
    return rates.suite_s(params.load_tasks(suite), model, precision, machine)


def _start_s(_job: Any, machine: Machine) -> float:
    return estimates.START_S / (2 if machine == "cpu" else 1)  # two runs side by side on two cores, one on a GPU


def _hours(machine: Machine) -> str:
    return f"{machine} h"


def _shown(table: pd.DataFrame) -> str:
    def number(value: float) -> str:
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"

    return table.reset_index().to_string(index=False, float_format=number)
