# The experiment graph: every arrow is one notebook run by papermill. One preset, or several, per call:
#   snakemake --cores 2 --config preset=quickstart
# A rule declares one small record as its output, which its notebook writes last; models, caches and checkpoints are not
# declared, so nothing here ever deletes them. A finished stage is read, an interrupted one goes on (see docs/architecture.md).
import json
from pathlib import Path

from talas_lib import params, paths, records

PRESET = config.get("preset", "quickstart")
PRESET_FILE = paths.params_dir() / "presets" / f"{PRESET}.yaml"
VALUES = params.load_preset(PRESET)
GRID = {params.resolve("03_train", v).run_id: v for v in params.expand_grid(VALUES)}
CACHES = {str(records.cache_file(params.resolve("02_cache_teacher", v))): v for v in GRID.values()}
DATA = str(records.data_file(params.resolve("01_data", VALUES)))
REPORT = paths.outputs() / VALUES.get("report", PRESET) / "summary.json"
OUT = paths.outputs()


def papermill(notebook, label):
    """The command of one notebook; {params.values} is a JSON mapping laid over the preset."""
    executed = OUT / "nb" / label / f"{notebook}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    return f"papermill --no-progress-bar --log-level WARNING notebooks/{notebook}.ipynb {executed} -f {PRESET_FILE} -y '{{params.values}}'"


def only(values, *extra):
    """What a grid cell changes, as YAML for papermill."""
    return json.dumps({k: v for k, v in values.items() if VALUES.get(k) != v} | dict(extra))


rule all:
    input:
        str(REPORT),


rule data:
    output:
        DATA,
    params:
        values="{}",
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
            values=only(values),
        threads: workflow.cores
        shell:
            papermill("02_cache_teacher", f"{PRESET}-{values['teacher'] if 'teacher' in values else 'teacher'}")


for run_id, values in GRID.items():

    rule:
        name:
            f"train_{run_id}"
        input:
            ancient(str(records.cache_file(params.resolve("02_cache_teacher", values)))),
        output:
            str(records.run_file(run_id, "train")),
        params:
            values=only(values),
        threads: workflow.cores
        shell:
            papermill("03_train", run_id)

    rule:
        name:
            f"evaluate_{run_id}"
        input:
            str(records.run_file(run_id, "train")),
        output:
            str(records.run_file(run_id, "evaluate")),
        params:
            values=json.dumps({"run": run_id}),
        threads: workflow.cores
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
            values=json.dumps({"run": run_id}),
        threads: workflow.cores
        shell:
            papermill("05_sharpness", run_id)


rule compare:
    input:
        [str(records.run_file(r, stage)) for r in GRID for stage in ("evaluate", "sharpness")],
    output:
        str(REPORT),
    params:
        values="{}",
    shell:
        papermill("06_compare", PRESET)
