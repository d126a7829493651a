# The experiment graph: every arrow is one notebook run by papermill. One preset, or several, per call:
#   snakemake --cores 2 --config preset=quickstart
# A rule declares one small record as its output, which its notebook writes last; models, caches and checkpoints are not
# declared, so nothing here ever deletes them. A finished stage is read, an interrupted one goes on (see docs/architecture.md).
import json
from pathlib import Path

from talas_lib import methods, params, paths, records, runs

PRESET = config.get("preset", "quickstart")
VALUES = params.load_preset(PRESET)
CELLS = [(params.resolve("03_train", v), v) for v in params.expand_grid(VALUES)]
GRID = {p.run_id: v for p, v in CELLS}
LOSSES = [p.run_id for p, _ in CELLS if not methods.builds_student(p.method)]  # runs with a loss, so with a Hessian
MEASURED = [r for r in LOSSES if GRID[r].get("sharpness_batches") != 0]  # a preset may leave the Hessian out
# what a run waits for: its teachers' vectors and, where its method reads them, token states; runs with equal wants share it
READERS = [p.run_id for p, _ in CELLS if p.needs_teacher and p.run_id in LOSSES]
WANTS = {run_id: str(records.cache_file(params.resolve("02_cache_teacher", GRID[run_id]))) for run_id in READERS}
CACHES = {WANTS[run_id]: GRID[run_id] for run_id in READERS}
SCORED = runs.evaluation_stage(VALUES.get("tasks", "mini"))
DATA = str(records.data_file(params.resolve("01_data", VALUES)))
REPORT = paths.outputs() / VALUES.get("report", PRESET) / "summary.json"
OUT = paths.outputs()
THREADS = max(1, workflow.cores // len(GRID))  # runs side by side use the cores better than one run on all of them


def papermill(notebook, label):
    """The command of one notebook; {params.values} holds its parameters as YAML."""
    executed = OUT / "nb" / label / f"{notebook}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    quiet = "2> >(grep --line-buffered -v 'without encryption' >&2)"  # the kernel says so at every start
    return f"papermill --no-progress-bar --log-level WARNING notebooks/{notebook}.ipynb {executed} -y '{{params.values}}' {quiet}"


def given(notebook, values, **extra):
    """The part of a preset that a notebook takes, as YAML."""
    names = params.notebook_schema(notebook).names
    return json.dumps({k: v for k, v in values.items() if k in names} | extra)


rule all:
    input:
        str(REPORT),


rule data:
    output:
        DATA,
    params:
        values=given("01_data", VALUES),
    shell:
        papermill("01_data", PRESET)


for number, (record, values) in enumerate(CACHES.items()):

    rule:
        name:
            f"cache_{number}"
        input:
            ancient(DATA),
        output:
            record,
        params:
            values=given("02_cache_teacher", values),
        threads: workflow.cores
        shell:
            papermill("02_cache_teacher", f"{PRESET}-{Path(record).stem}")


for run_id, values in GRID.items():

    rule:
        name:
            f"train_{run_id}"
        input:
            ancient(WANTS.get(run_id, DATA)),
        output:
            str(records.run_file(run_id, "train")),
        params:
            values=given("03_train", values),
        threads: THREADS
        shell:
            papermill("03_train", run_id)

    rule:
        name:
            f"evaluate_{run_id}"
        input:
            str(records.run_file(run_id, "train")),
        output:
            str(records.run_file(run_id, SCORED)),
        params:
            values=given("04_evaluate", values, run=run_id),
        threads: THREADS
        shell:
            papermill("04_evaluate", run_id)

    rule:
        name:
            f"sharpness_{run_id}"
        input:
            str(records.run_file(run_id, "train")),
        output:
            str(records.run_file(run_id, "sharpness")),
        params:
            values=given("05_sharpness", values, run=run_id),
        threads: workflow.cores  # alone: with its graphs kept it needs the most memory
        shell:
            papermill("05_sharpness", run_id)


rule compare:
    input:
        [str(records.run_file(r, SCORED)) for r in GRID],
        [str(records.run_file(r, "sharpness")) for r in MEASURED],
    output:
        str(REPORT),
    params:
        values=given("06_compare", VALUES),
    shell:
        papermill("06_compare", PRESET)
