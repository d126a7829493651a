"""The experiment graph: what Snakemake would run, what a preset run leaves behind, and that a second call does nothing."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from talas_lib import display, params, paths
from talas_lib.graph import plan


def call(*arguments, outputs, cwd=None, **environment):
    command = [sys.executable, "-m", "talas_lib", *arguments]
    given = os.environ | {"TALAS_OUTPUTS": str(outputs)} | environment
    return subprocess.run(
        command, cwd=cwd or paths.root(), env=given, capture_output=True, text=True, check=False, timeout=3600
    )


def jobs(output: str) -> dict[str, int]:
    """Rule to number of jobs, from Snakemake's first statistics table."""
    table = output.split("Job stats:")[1].split("total")[0]
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def dry_run(preset, *config, outputs, cwd=None, results=None) -> str:
    """What Snakemake says it would do, with the commands."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--cores", "2"]
    surroundings = {"TALAS_OUTPUTS": str(outputs), "TALAS_RESULTS": str(results or outputs / "results")}
    done = subprocess.run(
        [*command, "--config", f"preset={preset}", *config],
        cwd=cwd or paths.root(),
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def planned(preset, *config, **where) -> dict[str, int]:
    """Rule to number of jobs that Snakemake would run."""
    return jobs(dry_run(preset, *config, **where))


def kinds(found: dict[str, int]) -> dict[str, int]:
    """Number of jobs by the word before the first underscore of their rule."""
    return dict(Counter(rule.split("_")[0] for rule, count in found.items() for _ in range(count)))


@pytest.fixture
def clone(tmp_path):
    """The project's params, notebooks and Snakefile in a folder of their own."""
    for name in ("params", "notebooks"):
        shutil.copytree(paths.root() / name, tmp_path / name)
    shutil.copy(paths.root() / "Snakefile", tmp_path)
    return tmp_path


def preset(clone, name, without=(), **values) -> None:
    """A preset on the smoke preset's values."""
    given = yaml.safe_load((clone / "params" / "presets" / "smoke.yaml").read_text()) | values | {"report": name}
    kept = {key: value for key, value in given.items() if key not in without}
    (clone / "params" / "presets" / f"{name}.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))


TABLES = {
    "first": {"title": "Two optimizers", "grid": {"optimizer": ["asam", "adamw"]}},
    "second": {
        "title": "The reader's and a shared run",
        "beside": ["extra-tiny"],
        "encoders": ["tiny-xlmr"],
        "optimizer": "adamw",
        "grid": {"method": ["talas", "simcse"]},
    },
}


def study(clone, **tables) -> None:
    preset(clone, "study", without=("grid",), sharpness_batches=0, tables=TABLES | tables)


def test_the_graph_has_every_stage_of_every_cell(tmp_path):
    found = kinds(planned("smoke", outputs=tmp_path))
    assert found == {"all": 1, "data": 1, "cache": 1, "train": 2, "evaluate": 2, "sharpness": 2, "compare": 1}
    assert list(tmp_path.glob("*--*")) == []


def test_the_graph_of_a_study(clone):
    """A shared run is trained once and scored on the suites of both tables; one table alone asks for less."""
    study(clone)
    outputs = clone / "outputs"
    every = {"all": 1, "data": 1, "cache": 1, "train": 3, "evaluate": 5, "keep": 3, "encoder": 1, "compare": 1}
    said = dry_run("study", outputs=outputs, cwd=clone)
    assert kinds(jobs(said)) == every
    for run_id in (rule.removeprefix("train_") for rule in jobs(said) if rule.startswith("train_")):
        assert f"notebooks/03_train.ipynb {outputs}/nb/{run_id}/03_train.ipynb" in said
        assert f"python -m talas_lib.study.on_record keep study {run_id}" in said
    part = {"all": 1, "data": 1, "cache": 1, "train": 2, "evaluate": 2, "keep": 2, "compare": 1}
    assert kinds(planned("study", "tables=first", outputs=outputs, cwd=clone)) == part


def test_commands_carry_a_preset_s_numbers_as_numbers(clone):
    """YAML 1.1 takes 2e-05 for text, which is how Python and JSON write the paper's learning rate."""
    preset(clone, "small", lr=2.0e-5, min_lr=2.0e-6, optimizer="adamw")
    said = dry_run("small", outputs=clone / "outputs", cwd=clone)
    lines = [shlex.split(line) for line in said.splitlines() if "papermill " in line and "03_train" in line]
    given = [yaml.safe_load(line[line.index("-y") + 1]) for line in lines]
    assert len(given) == 2
    assert all((values["lr"], values["min_lr"]) == (2.0e-5, 2.0e-6) for values in given)


def test_a_job_hands_on_the_lines_that_say_how_far_it_is(clone, capsys, monkeypatch):
    """Of all that its notebook prints, as the progress of notebooks writes them, and at once."""
    preset(clone, "small", optimizer="adamw")
    said = dry_run("small", outputs=clone / "outputs", cwd=clone)
    [told, *_] = [line for line in said.splitlines() if "papermill " in line and "03_train" in line]
    command = re.search(r"--stdout-file >\((grep .*?; done)\)", told)[1]
    monkeypatch.setattr(display, "_interactive", lambda: False)
    tell = display.progress("training", every_s=0.0)
    for done in range(3):
        tell(done, 2)
    with display.elapsed("products", every_s=0.05):
        time.sleep(0.1)
    printed = capsys.readouterr().out + "teacher tiny given\n"
    with subprocess.Popen(["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        job.stdin.write(printed)
        job.stdin.flush()
        assert select.select([job.stdout], [], [], 60)[0], "nothing is handed on before the notebook ends"
        shown, _ = job.communicate()
    lines = [line.partition(": ") for line in shown.splitlines()]
    assert {where.split(",")[0] for where, *_ in lines} == {"03_train"}
    assert [line for *_, line in lines][:2] == [line for line in printed.splitlines() if line.endswith(" left")]
    assert {line for *_, line in lines[2:]} == {"products: at work, 0 s"}


def test_runs_wait_for_what_their_method_reads(clone):
    """Vectors of one teacher, its token states as well, vectors of two teachers, nothing: one cache job for each kind."""
    pairs = [("talas", ["tiny"]), ("rkd", ["tiny"]), ("cdm", ["tiny"]), ("simcse", ["tiny"])]
    pairs.append(("majority_vote", ["tiny", "tiny-xlmr"]))
    grid = {"method, teachers": [list(pair) for pair in pairs]}
    preset(clone, "mixed", without=("teacher",), grid=grid)
    found = planned("mixed", outputs=clone / "outputs", cwd=clone)
    assert sum(rule.startswith("cache_") for rule in found) == 3
    trained = [rule for rule in found if rule.startswith("train_")]
    assert len(trained) == len(pairs)
    assert sum("--tiny+tiny-xlmr--majority_vote--" in rule for rule in trained) == 1


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nope"], ["'nope'", "quickstart"]),
        (["smoke", "--tables", "one"], ["no table 'one'", "has no tables"]),
        (["cpu-study", "--tables", "tabel1"], ["no table 'tabel1'", "Did you mean 'table1'"]),
        (["paper-study"], ["talas15k", "TALAS_DATA"]),
    ],
)
def test_what_cannot_run_is_answered_at_once(tmp_path, arguments, names):
    done = call(*arguments, outputs=tmp_path, HF_HUB_OFFLINE="1", TALAS_DATA="")
    assert done.returncode == 2
    assert all(name in done.stderr for name in names)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_preset_runs_to_its_report_and_a_second_call_does_nothing(tmp_path):
    first = call("smoke", "--cores", "2", outputs=tmp_path, OMP_NUM_THREADS="3")
    assert first.returncode == 0, first.stderr[-3000:]
    result = json.loads((tmp_path / "smoke" / "summary.json").read_text())
    assert {run["optimizer"] for run in result["runs"]} == {"asam", "adamw"}
    assert result["wall_s"] > 0
    assert result["versions"].keys() >= {"torch", "python", "talas"}
    assert "SentenceTransformer" in first.stdout
    for run in plan.make("smoke").runs:
        executed = {file.name for file in (tmp_path / "nb" / run.run_id).iterdir()}
        assert executed == {"03_train.ipynb", "04_evaluate-tiny.ipynb", "05_sharpness.ipynb"}
        record = json.loads((tmp_path / run.run_id / "records" / "evaluate-tiny.json").read_text())
        assert record["efficiency"]["threads"] == 1  # two runs side by side on two cores, whatever the surroundings say
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    second = call("smoke", "--cores", "2", outputs=tmp_path)
    assert second.returncode == 0
    assert "nothing to do" in second.stdout
    assert {f: f.stat().st_mtime_ns for f in before} == before


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(clone):
    """A failing run stops only itself and is named; what is on record is never made again; a lost record alone is made anew."""
    broken = {"title": "Too many layers", "grid": {"method_params": [{"num_anchor_layers": 9}]}}
    study(clone, third=broken)
    outputs, kept = clone / "outputs", clone / "results" / "study"
    where = {"outputs": outputs, "cwd": clone, "TALAS_RESULTS": str(clone / "results")}
    first = call("study", "--cores", "2", **where)
    assert first.returncode not in (0, 2)
    assert "03_train: TalasError: method talas does not fit student tiny: num_anchor_layers=9" in first.stderr
    assert len(list((kept / "runs").glob("*.json"))) == 3
    assert (kept / "encoders" / "tiny-xlmr.json").is_file()

    study(clone)
    second = call("study", "--cores", "2", **where)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "3 of 3 runs on record, 0 to make" in second.stdout
    before = {f: f.stat().st_mtime_ns for f in [*kept.rglob("*.json"), *outputs.rglob("records/*.json")]}
    assert call("study", "--cores", "2", **where).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before

    # tables and summary are newer than the records that are left, and yet one is missing
    gone = next(f for f in (kept / "runs").iterdir() if "--asam--" in f.name)
    gone.unlink()
    third = call("study", "--cores", "2", **where)
    assert third.returncode == 0
    assert "2 of 3 runs on record, 1 to make" in third.stdout
    assert gone.is_file()
    before = {f: f.stat().st_mtime_ns for f in before}

    shutil.rmtree(outputs)  # a lost machine: the committed records are all there is
    lost = next(f for f in (kept / "runs").iterdir() if "--simcse--" in f.name)
    lost.unlink()
    found = kinds(planned("study", outputs=outputs, cwd=clone, results=clone / "results"))
    assert found == {"all": 1, "data": 1, "train": 1, "evaluate": 2, "keep": 1, "compare": 1}
    assert call("study", "--cores", "2", **where).returncode == 0
    assert lost.is_file()
    assert {f: f.stat().st_mtime_ns for f in before if kept in f.parents and f != lost} == {
        f: t for f, t in before.items() if kept in f.parents and f != lost
    }


def test_presets_are_complete_and_their_runs_differ():
    for name in params.available("presets"):
        values = params.load_preset(name)
        assert values["report"] == name
        if "tables" not in values:  # tables may share runs
            of = plan.make(name)
            assert len(of.runs) == len(params.expand_grid(values))
