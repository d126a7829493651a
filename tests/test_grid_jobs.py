"""The experiment graph with several jobs at once, on a cluster, and when one of them fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from talas_lib import paths

PROFILE = paths.root() / "profiles" / "slurm" / "config.yaml"


def snakemake(*arguments: str, outputs: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    programs = str(Path(sys.executable).parent)
    given = os.environ | {"TALAS_OUTPUTS": str(outputs), "PATH": programs + os.pathsep + os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=cwd or paths.root(),
        env=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def test_the_slurm_profile_plans_the_smoke_preset(tmp_path: Path) -> None:
    """Without the plugin and without a cluster: the profile is read, every job has memory, minutes and processors."""
    done = snakemake(
        "--profile", str(PROFILE.parent), "--executor", "dryrun", "--dry-run", "--config", "preset=smoke", outputs=tmp_path
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    jobs = re.findall(r"resources: (.*)", said)
    assert len(jobs) >= 8
    for resources in jobs:
        assert "mem_mb=6000" in resources, resources
        assert "runtime=240" in resources, resources
        assert "cpus_per_task=" in resources, resources


def test_the_profile_says_what_makes_a_grid_safe() -> None:
    profile = yaml.safe_load(PROFILE.read_text())
    assert profile["executor"] == "slurm"
    assert profile["keep-going"] is True
    assert profile["rerun-incomplete"] is True
    assert profile["retries"] >= 1
    assert all("attempt" in profile["default-resources"][name] for name in ("mem_mb", "runtime"))


@pytest.mark.slow
def test_a_failed_job_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    """Two runs at once, one of which cannot train: the other is trained and scored, and the end names what failed and why."""
    for name in ("params", "notebooks", "talas_lib"):
        shutil.copytree(paths.root() / name, tmp_path / name)
    shutil.copy(paths.root() / "Snakefile", tmp_path)
    preset = yaml.safe_load((tmp_path / "params" / "presets" / "smoke.yaml").read_text())
    preset |= {"sharpness_batches": 0, "report": "broken", "probe_every": 0, "optimizer": "adamw"}
    preset["grid"] = {"lr": [1.0e-3, 1.0]}
    preset["weight_decay"] = 1.0
    (tmp_path / "params" / "presets" / "broken.yaml").write_text(yaml.safe_dump(preset))
    spoilt = tmp_path / "notebooks" / "03_train.ipynb"
    book = json.loads(spoilt.read_text())
    cell = next(c for c in book["cells"] if c["cell_type"] == "code" and "from_notebook" in "".join(c["source"]))
    cell["source"] = [*cell["source"], "\nassert p.lr < 0.5, 'this one fails'"]
    spoilt.write_text(json.dumps(book))
    done = snakemake(
        "--cores", "2", "--keep-going", "--config", "preset=broken",
        outputs=tmp_path / "outputs", cwd=tmp_path,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "this one fails" in said
    finished = list((tmp_path / "outputs").glob("*/records/evaluate*.json"))
    assert len(finished) == 1
    failed = {run for run in re.findall(r"Error in rule (\S+):", said) if run.startswith("train_")}
    assert len(failed) == 1, said[-3000:]
    assert finished[0].parent.parent.name not in failed.pop()
