"""Notebooks 08 and 09 under papermill on a run of seconds: what they show where nobody looks, and what they leave behind."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import papermill
import pytest
from small_run import small_run, write_csv
from solved import solved

from talas_lib import agreement, assess, params, paths, runs

FOLDER = paths.root() / "notebooks"
HAVE_ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_texts):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(folder / "outputs"))
        patch.delenv("MPLBACKEND", raising=False)
        trained = small_run(folder, tiny_texts[:120])
        assess.evaluate_run(trained, params.load_tasks("tiny"))
        yield trained


def execute(name: str, folder: Path, **values: Any) -> Any:
    """The notebook, executed with the solutions of its exercises."""
    book = papermill.execute_notebook(
        str(solved(FOLDER / f"{name}.ipynb", folder / "solved")),
        str(folder / f"{name}.ipynb"),
        values,
        cwd=str(FOLDER),
        kernel_name="python3",
        progress_bar=False,
    )
    errors = [o.text for cell in book.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
    assert not errors, errors  # warnings included
    return book


def shown(book: Any, kind: str) -> list[str]:
    """What cells show of one kind."""
    return [o.data[kind] for cell in book.cells for o in cell.get("outputs", []) if kind in o.get("data", {})]


def test_08_draws_without_a_browser_what_it_shows_in_one(run, tmp_path):
    book = execute("08_explore", tmp_path, run=run.id, shown=40, query="a boat on the sea")
    assert len(shown(book, "image/svg+xml")) == 4  # relations, map, rho, gains
    (table,) = shown(book, "text/html")
    assert "untrained student" in table
    assert not shown(book, "application/vnd.jupyter.widget-view+json")


@pytest.mark.slow
@pytest.mark.skipif(not HAVE_ONNX, reason="needs onnx, onnxscript and onnxruntime")
def test_09_leaves_a_folder_and_its_records(run, tmp_path):
    book = execute("09_export", tmp_path, tasks="tiny")
    assert len(shown(book, "image/svg+xml")) == 1
    record = run.read_record("export")
    assert min(record["loads"].values()) > 0.99999
    assert {row["how"] for row in record["widths"]} == {"first", "principal"}
    assert all("avg" in row for row in record["widths"])
    assert run.read_record("agreement")["sentences"] >= 20
    card = (run.folder / "export" / "README.md").read_text(encoding="utf-8")
    for section in ("Scores", "Agreement with the teacher", "Forms", "Shorter vectors", "Limits", "Licences"):
        assert f"## {section}" in card
    assert (run.folder / "export" / "onnx" / "model_int8.onnx").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not HAVE_ONNX, reason="needs onnx, onnxscript and onnxruntime")
def test_the_three_commands_of_the_page_on_own_data(tmp_path, tiny_texts, tiny_encoder_folder, monkeypatch):
    page = (paths.root() / "docs" / "own-data.md").read_text(encoding="utf-8")
    commands = re.findall(
        r"^    (.+)$", page[page.index("## Three commands") : page.index("1. **Train.**")], re.MULTILINE
    )
    assert len(commands) == 3
    given = {
        "./my_teacher": str(tiny_encoder_folder("bert")),
        "./my_sentences.csv": str(write_csv(tmp_path / "mine.csv", tiny_texts)),
        "outputs/nb": str(tmp_path),
    }
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for number, command in enumerate(commands):
        for name, own in given.items():
            command = command.replace(name, own)
        command += " -p student tiny -p epochs 1" * (number == 0)
        done = subprocess.run(shlex.split(command), cwd=paths.root(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    run = runs.latest_run()
    assert run.params.hold_out == 0.1
    assert set(run.read_record("agreement")["teachers"]) == {run.params.teacher_spec.name}
    assert agreement.unseen_texts(run)
    assert (run.folder / "export" / "onnx" / "model_int8.onnx").is_file()
