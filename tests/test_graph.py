"""The experiment graph: what Snakemake would run, what a preset run leaves behind, and that a second call does nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from talas_lib import params, paths


def call(*arguments, outputs, cwd=None, **environment):
    command = [sys.executable, "-m", "talas_lib", *arguments]
    given = os.environ | {"TALAS_OUTPUTS": str(outputs)} | environment
    return subprocess.run(
        command, cwd=cwd or paths.root(), env=given, capture_output=True, text=True, check=False, timeout=600
    )


def jobs(output: str) -> dict[str, int]:
    """Rule to number of jobs, from Snakemake's first statistics table."""
    table = output.split("Job stats:")[1].split("total")[0]
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def test_a_dry_run_lists_every_stage_of_every_cell(tmp_path):
    done = call("smoke", "--dry-run", outputs=tmp_path)
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    for stage in ("train", "evaluate", "sharpness"):
        assert sum(count for rule, count in found.items() if rule.startswith(f"{stage}_")) == 2
    assert {"data", "compare"} <= found.keys()
    assert sum(rule.startswith("cache_") for rule in found) == 1
    assert list(tmp_path.glob("*--*")) == []


def test_runs_wait_for_what_their_method_reads(tmp_path):
    """Vectors of one teacher, its token states as well, vectors of two teachers, nothing: one cache job for each kind."""
    for name in ("params", "notebooks"):
        shutil.copytree(paths.root() / name, tmp_path / name)
    shutil.copy(paths.root() / "Snakefile", tmp_path)
    preset = yaml.safe_load((tmp_path / "params" / "presets" / "smoke.yaml").read_text())
    del preset["teacher"]
    pairs = [("talas", ["tiny"]), ("rkd", ["tiny"]), ("cdm", ["tiny"]), ("simcse", ["tiny"])]
    pairs.append(("majority_vote", ["tiny", "tiny-xlmr"]))
    preset |= {"grid": {"method, teachers": [list(pair) for pair in pairs]}, "report": "mixed"}
    (tmp_path / "params" / "presets" / "mixed.yaml").write_text(yaml.safe_dump(preset))
    done = call("mixed", "--dry-run", outputs=tmp_path / "outputs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    assert sum(rule.startswith("cache_") for rule in found) == 3
    trained = [rule for rule in found if rule.startswith("train_")]
    assert len(trained) == len(pairs)
    assert sum("--tiny+tiny-xlmr--majority_vote--" in rule for rule in trained) == 1


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(["nope"], ["'nope'", "quickstart"]), (["paper-talas"], ["talas15k", "TALAS_DATA"])],
)
def test_what_cannot_run_is_answered_at_once(tmp_path, arguments, names):
    done = call(*arguments, outputs=tmp_path, HF_HUB_OFFLINE="1", TALAS_DATA="")
    assert done.returncode == 2
    assert all(name in done.stderr for name in names)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_preset_runs_to_its_report_and_a_second_call_does_nothing(tmp_path):
    first = call("smoke", "--cores", "2", outputs=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    result = json.loads((tmp_path / "smoke" / "summary.json").read_text())
    assert {run["optimizer"] for run in result["runs"]} == {"asam", "adamw"}
    assert result["wall_s"] > 0
    assert result["versions"].keys() >= {"torch", "python", "talas"}
    assert "SentenceTransformer" in first.stdout
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    second = call("smoke", "--cores", "2", outputs=tmp_path)
    assert second.returncode == 0
    assert "nothing to do" in second.stdout
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_presets_are_complete_and_their_runs_differ():
    for name in params.available("presets"):
        values = params.load_preset(name)
        resolved = [params.resolve("03_train", cell) for cell in params.expand_grid(values)]
        if name != "paper-talas":  # its corpus is local data
            assert len({p.run_id for p in resolved}) == len(resolved)
        assert values["report"] == name
