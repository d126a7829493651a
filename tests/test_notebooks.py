"""The notebooks: their shape, what they record when papermill runs them with the smoke preset, and how they refuse bad input."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from solved import folded, solutions, solved

from talas_lib import bench_figures, params, paths, records, runs

FOLDER = paths.root() / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
WITH_PARAMETERS = params.notebook_names()
COURSE = paths.root() / "docs" / "course.md"
BY_HAND = [name for name in NAMES if re.match(r"a[1-9]_", name)]
CELL_LINES, DEFINITION_LINES = 15, 5
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(book: Any) -> list[Any]:
    """Code cells without the parameters cell and the one papermill injects."""
    cells = (cell for cell in book.cells if cell.cell_type == "code")
    return [cell for cell in cells if not {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))]


# ---- shape


def test_every_schema_has_its_notebook() -> None:
    assert set(WITH_PARAMETERS) <= set(NAMES)
    assert "a0_talas_by_hand" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stripped_and_opens_with_a_title(name: str) -> None:
    book = read(name)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert book.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in book.cells] == [str(i) for i in range(len(book.cells))]  # as nbstripout leaves them
    for cell in book.cells:
        assert set(cell.metadata) <= {"tags"}
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    first = book.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {name.split('_')[0]} · ")
    for row in ("Reads", "Writes", "Runtime"):
        assert f"| {row} |" in first.source


@pytest.mark.parametrize("name", NAMES)
def test_prose_stands_before_every_cell_and_cells_are_short(name: str) -> None:
    book = read(name)
    for before, cell in zip(book.cells, book.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source
    for cell in code_cells(book):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= CELL_LINES, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                assert (node.end_lineno or first) - first < DEFINITION_LINES, f"{node.name} belongs in talas_lib"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_notebooks_and_the_last_cell_says_what_comes_next(name: str) -> None:
    book = read(name)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    linked = set(re.findall(r"\]\((\w+)\.ipynb\)", text))
    assert linked
    assert linked <= set(NAMES)
    assert "Next:" in code_cells(book)[-1].source


# ---- the course


def links(text: str) -> list[str]:
    return re.findall(r"\]\((?:\.\./notebooks/)?(\w+)\.ipynb\)", text)


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_one_path_leads_through_all_notebooks() -> None:
    order = [name for row in rows_of(COURSE.read_text(encoding="utf-8")) for name in links(row)[:1]]
    assert sorted(order) == NAMES
    course = next(cell.source for cell in read(order[0]).cells if cell.source.startswith("## The course"))
    assert [name for row in rows_of(course) for name in links(row)] == order
    minutes = {row.split("|")[1].strip(): int(row.split("|")[3]) for row in rows_of(COURSE.read_text()) if links(row)}
    by_page = {links(page)[0]: spent for page, spent in minutes.items()}
    for row in filter(links, rows_of(course)):
        assert 60 * float(row.split("|")[3]) == sum(by_page[name] for name in links(row))
    for i, name in enumerate(order):
        (row,) = [row for row in rows_of(read(name).cells[0].source) if re.match(r"\| (Before|Next)", row)]
        assert links(row) == [*order[max(i - 1, 0) : i], *order[i + 1 : i + 2]], name


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_its_question_which_the_syllabus_repeats(name: str) -> None:
    question = re.fullmatch(r"> \*\*(.+\?)\*\*", read(name).cells[0].source.split("\n\n")[1], re.DOTALL)
    assert question is not None
    assert f"| {question[1].replace(chr(10) + '> ', ' ')} |" in COURSE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(BY_HAND) - {"a0_talas_by_hand"}))
def test_something_small_comes_before_the_real_run(name: str) -> None:
    cells = read(name).cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Small enough to see: "))
    end = next(i for i in range(start + 1, len(cells)) if cells[i].source.startswith("## "))
    assert any("assert" in cell.source for cell in cells[start:end] if cell.cell_type == "code")


@pytest.mark.parametrize("name", NAMES)
def test_exercises_have_solutions_that_assert(name: str) -> None:
    book = read(name)
    (exercises,) = [cell.source for cell in book.cells if cell.source.startswith("## Exercises")]
    numbers = [int(number) for number in re.findall(r"^\*\*(\d)\.\*\*", exercises, re.MULTILINE)]
    assert numbers == list(range(1, len(folded(book)) + 1))
    assert 2 <= len(numbers) <= 3
    assert len(solutions(book)) == len(numbers)
    taken = {parameter for parameter, *_ in params.notebook_parameters(name)} if name in WITH_PARAMETERS else set()
    for code in solutions(book):
        assert re.search(r"\bassert|assert_\w+\(", code)
        assert max(map(len, code.splitlines())) <= 120, code
        stored = {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not stored & taken


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_parameters_come_first_and_are_the_schemas(name: str) -> None:
    book = read(name)
    tagged = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in tagged] == [params.parameters_cell(name)]
    assert next(cell for cell in book.cells if cell.cell_type == "code") is tagged[0]
    found = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assert list(found) == [parameter for parameter, *_ in params.notebook_parameters(name)]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_the_first_working_cell_validates(name: str) -> None:
    source = code_cells(read(name))[0].source
    assert f'params.from_notebook("{name}", globals(), In)' in source
    assert "print(p.summary())" in source
    imported = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    light = {"params", "runs", "paths"}  # nothing here imports torch
    for node in imported:
        assert isinstance(node, ast.ImportFrom)
        assert node.module == "talas_lib"
        assert {alias.name for alias in node.names} <= light


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_no_cell_overwrites_a_parameter(name: str) -> None:
    """Else running the validating cell again, as one does in JupyterLab, would see another value."""
    taken = {parameter for parameter, *_ in params.notebook_parameters(name)}
    for cell in code_cells(read(name)):
        tree = ast.walk(ast.parse(cell.source))
        for node in tree:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id not in taken, cell.source
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not {alias.asname or alias.name for alias in node.names} & taken, cell.source


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_names_never_paths(name: str) -> None:
    for cell in code_cells(read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "papermill" not in node.value:
                assert not re.match(r"(\.{0,2}|~|outputs|params|notebooks)/", node.value), node.value


# ---- execution: the smoke preset through every notebook, judged by what was recorded


class Bench:
    """Runs notebooks with papermill into one outputs folder."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.preset = params.load_preset("smoke")

    def values(self, **changes: Any) -> dict[str, Any]:
        return self.preset | changes

    def execute(
        self, name: str, values: dict[str, Any], *, cwd: Path | None = None, label: str = "", exercises: bool = False
    ) -> Any:
        """exercises: their solutions run in the same kernel."""
        source = FOLDER / f"{name}.ipynb"
        if exercises:
            source = solved(source, self.outputs / "solved")
        executed = self.outputs / "nb" / f"{name}{label}.ipynb"
        executed.parent.mkdir(parents=True, exist_ok=True)
        book = papermill.execute_notebook(
            str(source),
            str(executed),
            values,
            cwd=str(cwd or paths.root()),
            kernel_name="python3",
            progress_bar=False,
        )
        errors = [o.text for cell in book.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        assert not errors, errors  # warnings included
        return book

    def run(self, optimizer: str) -> runs.Run:
        values = {k: v for k, v in self.values(optimizer=optimizer).items() if k != "grid"}
        return runs.open_run(params.resolve("03_train", values), create=False)


def pictures(book: Any) -> int:
    return sum("image/png" in o.get("data", {}) for cell in book.cells for o in cell.get("outputs", []))


def finite(value: Any) -> bool:
    """True when every number in a record is finite."""
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    outputs = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(outputs))
        patch.delenv("MPLBACKEND", raising=False)  # kernels draw inline, as in JupyterLab
        yield Bench(outputs)


@pytest.fixture(scope="module")
def data(bench: Bench) -> Any:
    return bench.execute("01_data", bench.values(), exercises=True)


@pytest.fixture(scope="module")
def cached(bench: Bench, data: Any) -> Any:
    return bench.execute("02_cache_teacher", bench.values(), exercises=True)


@pytest.fixture(scope="module")
def trained(bench: Bench, cached: Any) -> dict[str, Any]:
    return {
        o: bench.execute("03_train", bench.values(optimizer=o), label=o, exercises=o == "asam")
        for o in ("adamw", "asam")
    }


@pytest.fixture(scope="module")
def evaluated(bench: Bench, trained: dict[str, Any]) -> dict[str, Any]:
    by_id = bench.execute("04_evaluate", bench.values(run=bench.run("adamw").id), label="adamw")
    latest = bench.execute("04_evaluate", bench.values(run="latest"), label="asam", exercises=True)  # trained last
    return {"adamw": by_id, "asam": latest}


@pytest.fixture(scope="module")
def measured(bench: Bench, trained: dict[str, Any]) -> dict[str, Any]:
    return {
        o: bench.execute("05_sharpness", bench.values(run=bench.run(o).id), cwd=FOLDER, label=o, exercises=o == "asam")
        for o in ("adamw", "asam")
    }


@pytest.fixture(scope="module")
def compared(bench: Bench, evaluated: dict[str, Any], measured: dict[str, Any]) -> Any:
    return bench.execute("06_compare", bench.values(), exercises=True)


def test_talas_by_hand_equals_the_library(bench: Bench) -> None:
    source = "\n".join(cell.source for cell in read("a0_talas_by_hand").cells if cell.cell_type == "code")
    assert source.count("assert") >= 8  # it fails by itself when one of them does
    bench.execute("a0_talas_by_hand", {}, cwd=FOLDER, exercises=True)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand_equals_the_library_and_the_exercises_are_solved(name: str, bench: Bench) -> None:
    book = read(name)
    assert sum(cell.source.count("assert") for cell in code_cells(book)) >= 20
    assert any("from talas_lib" in cell.source for cell in code_cells(book))
    executed = bench.execute(name, {}, cwd=FOLDER, exercises=True)
    assert pictures(executed) >= 5


def test_01_records_the_data(bench: Bench, data: Any) -> None:
    p = params.resolve("01_data", {k: bench.preset[k] for k in ("corpus", "tasks")})
    record = json.loads(records.data_file(p).read_text())
    assert record["corpus"]["sentences"] == record["corpus"]["distinct"] == 64
    assert record["held_out"] is True
    assert set(record["overlap"]) == set(record["tasks"]) == {task.name for task in p.tasks_spec.tasks}
    assert not any(record["overlap"].values())
    hashes = [record["corpus"]["sha256"], *(task["sha256"] for task in record["tasks"].values())]
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in hashes)
    assert pictures(data) == 1


def test_02_records_a_cache_that_was_checked(bench: Bench, cached: Any) -> None:
    p = params.resolve("02_cache_teacher", {k: bench.preset[k] for k in ("teacher", "corpus")})
    record = json.loads(records.cache_file(p).read_text())
    assert (bench.outputs / "cache" / record["key"] / "meta.json").is_file()
    assert (record["sentences"], record["dim"]) == (64, 32)
    assert max(record["checks"]["batched_vs_single"], record["checks"]["cached_vs_fresh"]) < 1e-4
    geometry = record["geometry"]
    assert finite(geometry)
    assert geometry["smallest norm"] == pytest.approx(1, abs=1e-5)
    assert -1 < geometry["mean cosine"] < 1
    assert 1 < geometry["effective rank"] <= 32
    assert 1 <= geometry["directions for 90 %"] <= 32
    assert pictures(cached) == 1


def test_02_caches_every_teacher_of_several(bench: Bench, cached: Any) -> None:
    values = {
        k: v for k, v in bench.values(method="majority_vote", teachers=["tiny", "tiny-mpnet"]).items() if k != "teacher"
    }
    bench.execute("02_cache_teacher", values, label="-several")
    names = params.notebook_schema("02_cache_teacher").names
    p = params.resolve("02_cache_teacher", {k: v for k, v in values.items() if k in names})
    record = json.loads(records.cache_file(p).read_text())
    (other,) = record["others"]
    assert [record["teacher"], other["teacher"]] == ["tiny", "tiny-mpnet"]
    assert record["key"] != other["key"]
    for found in (record, other):
        assert (bench.outputs / "cache" / found["key"] / "meta.json").is_file()
        assert max(found["checks"]["batched_vs_single"], found["checks"]["cached_vs_fresh"]) < 1e-4
        assert finite(found["geometry"])
    assert record["tokens"] is None


def test_02_builds_the_token_states_that_03_asks_for(bench: Bench) -> None:
    values = {k: v for k, v in bench.values(method="cdm", optimizer="adamw").items() if k != "grid"}
    with pytest.raises(papermill.PapermillExecutionError, match="-p method cdm") as caught:
        bench.execute("03_train", values, label="-too-early")
    assert "papermill notebooks/02_cache_teacher.ipynb" in str(caught.value)
    run = runs.open_run(params.resolve("03_train", values), create=False)
    assert run.status == "new"
    bench.execute("02_cache_teacher", values, label="-tokens")
    names = params.notebook_schema("02_cache_teacher").names
    p = params.resolve("02_cache_teacher", {k: v for k, v in values.items() if k in names})
    tokens = json.loads(records.cache_file(p).read_text())["tokens"]
    assert (bench.outputs / "cache" / tokens["key"] / "hidden-1.npy").is_file()
    assert tokens["bytes"] == pytest.approx(tokens["estimate"]["bytes"], rel=0.1)
    bench.execute("03_train", values, label="-tokens")
    assert run.status == "finished"
    assert "loss_token" in run.read_metrics()[0]


def test_03_trains_and_records(bench: Bench, trained: dict[str, Any]) -> None:
    first = {}
    for optimizer, book in trained.items():
        run = bench.run(optimizer)
        record, rows = run.read_record("train"), run.read_metrics()
        assert record is not None
        assert record["steps"] == rows[-1]["step"] == 8
        assert record["loaded_cosine"] > 0.9999
        assert finite(record)
        assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
        assert {"loss_tamd", "loss_lasd", "loss_simcse", "mean_cosine", "effective_rank"} <= set(rows[0])
        assert (run.folder / "model" / "modules.json").is_file()
        assert pictures(book) == (2 if optimizer == "asam" else 1)
        first[optimizer] = rows[0]["loss"]
    assert first["asam"] == first["adamw"]  # same weights, same first batch
    probes = [row for row in bench.run("asam").read_metrics() if "ascent_gain" in row]
    assert len(probes) >= 4
    assert all(row["ascent_gain"] == pytest.approx(row["predicted_gain"], rel=0.3) for row in probes)
    assert all(0 < row["relative"] < 1 and 0.9 < row["ascent_cosine"] <= 1 for row in probes)
    assert not any("ascent_gain" in row for row in bench.run("adamw").read_metrics())


def test_03_shows_a_finished_run_and_does_not_train_it_again(bench: Bench, trained: dict[str, Any]) -> None:
    files = [bench.run("asam").folder / name for name in ("records/train.json", "metrics.jsonl", "model/modules.json")]
    before = [file.stat().st_mtime_ns for file in files]
    book = bench.execute("03_train", bench.values(optimizer="asam"), cwd=FOLDER, label="-again")
    assert [file.stat().st_mtime_ns for file in files] == before
    assert pictures(book) == 2


def test_04_records_scores_beside_the_references(bench: Bench, evaluated: dict[str, Any]) -> None:
    tasks = {task.name for task in params.load_tasks("tiny").tasks}
    found = [bench.run(optimizer).evaluation("tiny") for optimizer in evaluated]
    for record in found:
        assert record is not None
        assert record["suite"]["name"] == "tiny"
        for scores in (record, *record["references"].values()):
            assert set(scores["tasks"]) == tasks
            assert all(-100 <= row["score"] <= 100 for row in scores["tasks"].values())
            assert scores["avg"] == pytest.approx(sum(row["score"] for row in scores["tasks"].values()) / len(tasks))
        assert set(record["references"]) == {"teacher", "untrained_cls", "untrained_mean"}
    assert found[0]["references"] == found[1]["references"]
    assert all(pictures(book) == 1 for book in evaluated.values())
    assert "tiny_topics" in (bench.run("asam").folder / "model" / "README.md").read_text()


def test_05_records_both_estimators_with_their_errors(bench: Bench, measured: dict[str, Any]) -> None:
    found = [bench.run(optimizer).read_record("sharpness") for optimizer in measured]
    for record in found:
        assert record is not None
        assert record["subset"] == "encoder"
        subsets = ["encoder", "encoder+heads", "embeddings", "layer-1", "layer-2", "layer-3"]
        for side in (record, record["untrained"]):
            assert finite(side)
            assert list(dict.fromkeys(row["subset"] for row in side["rows"])) == subsets
            rows = [row for row in side["rows"] if row["subset"] == "encoder" and row["batch"] is None]
            assert {"lambda_max", "lambda_abs_max", "lambda_2", "trace", "asam_rise"} <= {
                row["quantity"] for row in rows
            }
            assert {"lanczos", "power", "hutchinson", "ascent", "draws"} == {row["estimator"] for row in rows}
            lanczos = {row["quantity"]: row["value"] for row in rows if row["estimator"] == "lanczos"}
            assert lanczos["lambda_max"] == side["lambda_max"]
            for row in rows:
                if row["estimator"] == "power" and row["converged"] and row["quantity"] == "lambda_max":
                    assert row["value"] == pytest.approx(side["lambda_max"], rel=0.02)
            assert side["converged"] == (side["lambda_max_residual"] < record["settings"]["sharpness_tol"])
        assert sum(row["batch"] is not None for row in record["rows"]) == record["settings"]["sharpness_batches"]
        assert record["gap"]["gap"] == record["gap"]["held_out_loss"] - record["gap"]["train_loss"]
        assert record["landscape"]["plane"]["losses"][2][2] == record["landscape"]["loss"] == record["loss"]
    assert found[0]["untrained"] == found[1]["untrained"]
    for optimizer, book in measured.items():
        series = bench.run(optimizer).read_record("sharpness-epoch-1")  # the last epoch of one, so the same weights
        assert series is not None
        assert series["lambda_max"] == bench.run(optimizer).read_record("sharpness")["lambda_max"]  # type: ignore[index]
        assert pictures(book) == 3


def test_06_writes_the_report(bench: Bench, compared: Any) -> None:
    folder = bench.outputs / "smoke"
    summary = json.loads((folder / "summary.json").read_text())
    assert [run["optimizer"] for run in summary["runs"]] == ["asam", "adamw"]
    for row in summary["runs"]:
        run = bench.run(row["optimizer"])
        scored, sharp = run.evaluation("tiny"), run.read_record("sharpness")
        assert row["run"] == run.id
        assert row["avg"] == scored["avg"]  # type: ignore[index]
        assert row["lambda_max"] == sharp["lambda_max"]  # type: ignore[index]
        assert (bench.outputs / row["run"] / "model" / "modules.json").is_file()
    assert summary["teacher_avg"] == bench.run("asam").evaluation("tiny")["references"]["teacher"]["avg"]  # type: ignore[index]
    assert finite(summary)
    assert {file.name for file in folder.glob("*.csv")} >= {"scores.csv", "sharpness.csv"}
    assert all(file.stat().st_size > 5000 for file in folder.glob("*.png"))
    assert pictures(compared) == len(list(folder.glob("*.png"))) == 3


def test_00_is_the_whole_way_on_one_page(bench: Bench) -> None:
    book = bench.execute("00_quickstart", bench.values(), exercises=True)
    ids = [folder.name for folder in bench.outputs.iterdir() if runs.RUN_ID.fullmatch(folder.name)]
    run = next(run for run in map(runs.find_run, ids) if run.read_record("quickstart"))
    record, rows = run.read_record("quickstart"), run.read_metrics()
    assert record is not None
    assert set(record["agreement"]) == {"teacher", "untrained student", "trained student"}
    assert all(-1 <= value <= 1 for value in record["agreement"].values())
    assert record["agreement"]["teacher"] == pytest.approx(1)
    assert rows[-1]["loss"] == record["loss"] < rows[0]["loss"]
    assert run.params.max_sentences == 2000  # this notebook's own default reached the run
    assert pictures(book) == 1


def test_07_shows_the_tables_that_came_with_the_repository(bench: Bench) -> None:
    assert pictures(bench.execute("07_efficiency", {}, exercises=True)) == len(bench_figures.FIGURES) - 1  # encode


# ---- refusal: through the command line, as users call it


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["-p", "teecher", "x"], ["no parameter 'teecher'", "Did you mean 'teacher'?"]),
        (["-f", "lr: 1e-4"], ["lr is '1e-4'", "write 1.0e-4"]),
        (["-p", "epochs", "five"], ["epochs is 'five'", "expected a whole number"]),
        (["-p", "epochs", "0"], ["epochs is 0", "Accepted: at least 1"]),
        (["-p", "teacher", "nope"], ["'nope'", "minilm-l6"]),
        (["-p", "teacher", "qwen3-4b"], ["Qwen/Qwen3-Embedding-4B", "teacher_source"]),
    ],
    ids=["unknown-name", "yaml-text", "wrong-type", "out-of-range", "unknown-teacher", "teacher-not-here"],
)
def test_bad_parameters_stop_in_the_first_working_cell(
    arguments: list[str], messages: list[str], tmp_path: Path
) -> None:
    if arguments[0] == "-f":
        (tmp_path / "values.yaml").write_text(arguments[1] + "\n")
        arguments = ["-f", str(tmp_path / "values.yaml")]
    executed = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "notebooks/03_train.ipynb", str(executed)]
    environment = os.environ | {"TALAS_OUTPUTS": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *arguments],
        cwd=paths.root(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    said = " ".join(ANSI.sub("", done.stderr).split())
    assert "TalasError" in said
    for message in messages:
        assert message in said, said
    book = nbformat.read(executed, as_version=4)
    working = code_cells(book)
    failed = next(cell for cell in working if "from_notebook" in cell.source)
    assert failed.metadata.papermill.duration < 10  # seconds: nothing heavy was loaded
    assert all(cell.execution_count is None for cell in working[working.index(failed) + 1 :])
    assert not (tmp_path / "outputs").exists()
