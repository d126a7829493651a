# The experiment graph: every arrow is one notebook run by papermill. One preset a call, of a study some tables only if wanted:
#   snakemake --cores 2 --config preset=cpu-study tables=table1,tune
# A rule declares one small record as its output, which its notebook writes last; models, caches and checkpoints are not
# declared, so nothing here ever deletes them. A finished stage is read, an interrupted one goes on (see docs/architecture.md).
# A study's runs leave committed records, declared as updated, which are never deleted either; what is on record gets no rules.
import shlex

from talas_lib import params, paths, records
from talas_lib.graph import plan
from talas_lib.study import ready_made

PRESET = config.get("preset", "quickstart")
PLAN = plan.make(PRESET, [name for name in str(config.get("tables", "")).split(",") if name])
VALUES = PLAN.values
LEFT = PLAN.left()  # suites to be scored by run id, of the runs that are to be made
RUNS = [run for run in PLAN.runs if run.run_id in LEFT]
MEASURED = [run.run_id for run in RUNS if run.trains and run.sharpness]
CACHES = [cache for cache in PLAN.caches if {run.key for run in RUNS} & set(cache.readers)]
ENCODERS = [encoder for encoder in PLAN.encoders if not ready_made.is_kept(PLAN, encoder)]
DATA = str(records.data_file(params.resolve("01_data", VALUES)))
REPORT = str(PLAN.summary_file)
# runs side by side use the cores better than one run on all of them; a GPU takes one run at a time
THREADS = workflow.cores if plan.on_gpu(VALUES) else max(1, workflow.cores // max(1, len(RUNS)))
ORDER = {run.run_id: len(RUNS) - number for number, run in enumerate(RUNS)}  # priorities: runs begin, and end, in this order


def papermill(notebook, label, values, part=""):
    """The command of one notebook. Rules take it as a parameter: what stands under `shell` is evaluated when the job runs, with
    the loop variables of the last rule."""
    executed = plan.executed(label, f"{notebook}{part}.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    names = params.notebook_schema(notebook).names
    given = shlex.quote(params.yaml_text({name: value for name, value in values.items() if name in names}))
    # what the kernel says at every start, and at an end when it is slow to stop
    quiet = "2> >(grep --line-buffered -v -e 'without encryption' -e 'KeyboardInterrupt caught in kernel' >&2)"
    # of all that a notebook prints, the lines that say how far it is
    where = shlex.quote(f"{notebook}, {label}")
    lines = "grep --line-buffered -E ' s left$|: at work, [0-9]+ s$'"  # not awk: mawk waits for a full buffer
    told = f"--stdout-file >({lines} | while IFS= read -r line; do printf '%s: %s\\n' {where} \"$line\"; done)"
    call = f"papermill --no-progress-bar --log-level WARNING {told} notebooks/{notebook}.ipynb {executed}"
    return f"{call} -y {given} {quiet}"


def program(module, arguments, label):
    """The command of a small program of ours; what it complains of stays beside the executed notebooks."""
    log = plan.executed(label, f"{module}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    return f"python -m talas_lib.{module} {arguments} 2> {log} || {{ cat {log} >&2; exit 1; }}"


def results_of(run):
    """The records that a run is to leave: of each suite that is left, and of its Hessian."""
    return [str(file) for file in plan.result_files(run, LEFT[run.run_id])]


rule all:
    input:
        REPORT,


rule data:
    output:
        DATA,
    params:
        command=papermill("01_data", PRESET, VALUES),
    priority: len(RUNS) + 1
    shell:
        "{params.command}"


for cache in CACHES:

    rule:
        name:
            f"cache_{cache.record.stem.removeprefix('cache-')}"
        input:
            ancient(DATA),
        output:
            str(cache.record),
        params:
            command=papermill("02_cache_teacher", f"{PRESET}-{cache.record.stem}", cache.values),
        # in a study beside a run: alone, it would wait until both cores happen to be free
        threads: THREADS if PLAN.is_study else workflow.cores
        priority: max(ORDER[run.run_id] for run in RUNS if run.key in cache.readers)
        shell:
            "{params.command}"


for run in RUNS:
    run_id = run.run_id

    rule:
        name:
            f"train_{run_id}"
        input:
            ancient(str(PLAN.cache_of(run).record) if run.reads else DATA),
        output:
            str(records.run_file(run_id, "train")),
        params:
            command=papermill("03_train", run_id, run.cell),
        threads: THREADS
        priority: ORDER[run_id]
        shell:
            "{params.command}"

    for suite in LEFT[run_id]:

        rule:
            name:
                f"evaluate_{run_id}_{suite}"
            input:
                str(records.run_file(run_id, "train")),
            output:
                str(plan.scored_file(run_id, suite)),
            params:
                command=papermill("04_evaluate", run_id, run.cell | {"tasks": suite, "run": run_id}, f"-{suite}"),
            threads: THREADS
            priority: ORDER[run_id]
            shell:
                "{params.command}"

    if run_id in MEASURED:

        rule:
            name:
                f"sharpness_{run_id}"
            input:
                str(records.run_file(run_id, "train")),
            output:
                str(records.run_file(run_id, "sharpness")),
            params:
                command=papermill("05_sharpness", run_id, run.cell | {"run": run_id}),
            threads: workflow.cores  # alone: with its graphs kept it needs the most memory
            priority: ORDER[run_id]
            shell:
                "{params.command}"

    if PLAN.is_study:

        rule:
            name:
                f"keep_{run_id}"
            input:
                str(records.run_file(run_id, "train")),
                results_of(run),
            output:
                update(str(PLAN.record_file(run_id))),
            params:
                command=program("study.on_record", f"keep {PRESET} {run_id}", run_id),
            priority: ORDER[run_id]
            shell:
                "{params.command}"


for encoder in ENCODERS:

    rule:
        name:
            f"encoder_{encoder.name}"
        input:
            ancient(DATA),
        output:
            update(str(ready_made.record_file(PLAN, encoder.name))),
        params:
            command=program("study.ready_made", f"{PRESET} {encoder.name}", f"{PRESET}-encoder-{encoder.name}"),
        threads: THREADS
        shell:
            "{params.command}"


rule compare:
    input:
        (
            [str(PLAN.record_file(run.run_id)) for run in PLAN.runs]
            + [str(ready_made.record_file(PLAN, encoder.name)) for encoder in PLAN.encoders]
            if PLAN.is_study
            else [file for run in RUNS for file in results_of(run)]
        ),
    output:
        REPORT,
    params:
        command=papermill("06_compare", PRESET, params.load_preset(PRESET)),  # all tables: it writes what is on record of each
    shell:
        "{params.command}"
