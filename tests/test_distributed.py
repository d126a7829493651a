"""Two processes together do what one does alone: gradients, steps, training, caches, whole runs, and the two launchers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fault_pipeline
import pytest

from talas_lib import distribution, params, paths, runs

HERE = Path(__file__).parent


def findings(folder: Path, *tasks: str) -> dict[str, list[Any]]:
    """What each of the two processes of tests/ranks.py found, by task."""
    command = [sys.executable, str(HERE / "ranks.py"), str(folder), *tasks]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.root(), timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """Folder and findings of the quick tasks; one process imports torch for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, findings(folder, "steps", "training", "caches", "run")


def test_one_process_is_alone() -> None:
    assert distribution.current() is None
    assert distribution.is_first()
    distribution.wait()
    assert distribution.first_says("x") == "x"
    assert distribution.join("cpu") is None  # no launcher has set anything


@pytest.mark.slow
def test_gradients_are_those_of_one_process_for_every_method(tmp_path: Path) -> None:
    """In fp64 without dropout: in-batch terms see the sentences of both, a batch of one as well, and heads count once."""
    for found in findings(tmp_path, "gradients")["gradients"]:
        assert len(found) >= 60
        assert {name: error for name, error in found.items() if not error < 1e-9} == {}


def test_steps_are_those_of_one_process(shared: Any) -> None:
    """ASAM's norm is over the whole gradient, DISAM's variance over all sources; after three steps the weights are equal."""
    both = shared[1]["steps"]
    for found in both:
        for how, errors in found.items():
            assert errors["weights"] < 1e-9, how
            assert errors["row"] < 1e-6, how
    assert both[0] == both[1]


def test_training_resumes_and_ends_as_one_process(shared: Any) -> None:
    first, second = shared[1]["training"]
    for found in (first, second):
        assert found["distance"] < 1e-6  # teacher vectors are cached in fp32, ten steps
        assert found["processes"] == 2
        assert found["checkpoint"]
        assert found["resumed_from"] == 4
        assert found["same bits"]
        assert found["same on both"]
    assert first["rows"] == 10
    assert second["rows"] == 0  # the first alone calls back


def test_caches_are_filled_into_the_same_bytes(shared: Any) -> None:
    folder, encoded = shared[0] / "caches", shared[1]["caches"]
    assert sum(encoded) == 200
    assert all(60 < count < 140 for count in encoded)
    alone, together = (fault_pipeline.contents(folder / name) for name in ("alone", "together"))
    assert len(alone) > 15
    assert fault_pipeline.differences(alone, together) == []


def smoke() -> Any:
    names = params.notebook_schema("03_train").names
    return params.resolve("03_train", {k: v for k, v in fault_pipeline.values(optimizer="asam").items() if k in names})


def check_run(outputs: Path, monkeypatch: pytest.MonkeyPatch, processes: int = 2) -> None:
    from talas_lib import stages

    monkeypatch.setenv("TALAS_OUTPUTS", str(outputs))
    run = runs.open_run(smoke(), create=False)
    record = run.read_record("train")
    assert record is not None
    assert (record["steps"], record["processes"]) == (8, processes)
    assert [row["step"] for row in run.read_metrics()][-1] == 8
    assert not list((run.folder / "checkpoints").glob("*"))
    assert stages.load_run_student(run).encode(["a boat"]).shape == (1, 32)


def test_a_run_by_two_processes_is_a_run(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, refused, trained = shared[1]["run"]
    assert cached == trained == [0, 0]
    assert refused == [2, 2]  # while somebody else trains it: every process of the launch ends
    check_run(shared[0] / "run" / "outputs", monkeypatch)


# ---- the launchers, as docs/scale.md gives them


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launched(command: list[str], outputs: Path) -> str:
    given = os.environ | {"TALAS_OUTPUTS": str(outputs), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=paths.root(), env=given, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--multi_gpu` is what makes Accelerate start several processes, on CPUs as well."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        free_port(),
    ]
    given = ["-m", "talas_lib.worker", "03_train", "-f", "params/presets/smoke.yaml", "-p", "optimizer", "asam"]
    assert launched([*launch, *given], tmp_path).count("is finished") == 1
    check_run(tmp_path, monkeypatch)


@pytest.mark.slow
def test_notebook_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
from accelerate import notebook_launcher
from talas_lib import params, worker

values = {{k: v for k, v in params.load_preset("smoke").items() if k not in ("grid", "report")}}
p = params.resolve("03_train", values | {{"optimizer": "asam"}})
notebook_launcher(worker.work, ("03_train", p), num_processes=2, use_port="{free_port()}")
"""
    launched([sys.executable, "-c", code], tmp_path)
    check_run(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["03_train", "-p", "lr", "1e-4"], ["'1e-4' (str)", "write 1.0e-4"]),
        (["03_train", "-p", "epoch", "3"], ["'epoch'", "Did you mean 'epochs'?"]),
        (["03_train", "-y", "[1"], ["-y [1 is not readable as YAML"]),
        (["03_train", "-y", "epochs"], ["-y epochs holds str", "expected `key: value`"]),
        (["03_train", "-p", "epochs", "!!python/object/apply:os.getpid []"], ["-p epochs", "a tag (!...)"]),
        (["03_train", "-y", "lr: !!python/name:os.system"], ["-y lr", "a tag (!...)"]),
        (["03_train", "-p", "keep_epochs", "[" * 20_000], ["-p keep_epochs", "nested deeper than 50"]),
        (["03_train", "-f", "params/presets/nope.yaml"], ["nope.yaml"]),
    ],
)
def test_the_worker_answers_bad_input_before_torch(arguments: list[str], names: list[str], tmp_path: Path) -> None:
    code = "import sys; from talas_lib import worker; code = worker.main(sys.argv[1:]); print('torch' in sys.modules)"
    code += "; sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=paths.root(),
        env=os.environ | {"TALAS_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert all(name in done.stderr for name in names), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
