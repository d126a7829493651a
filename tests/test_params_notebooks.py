"""From a notebook's cells to its parameters: what papermill injects, what a user edits, and how little it takes to say no."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from papermill.translators import PythonTranslator

from talas_lib import params, paths
from talas_lib.errors import TalasError

NOTEBOOKS = params.notebook_names()


def run_cells(notebook: str, *cells: str, **later: Any) -> params.ResolvedParams:
    """What `from_notebook` says after these cells were executed, and `later` names assigned since."""
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(cell, namespace)
    namespace |= later | {"In": ["", *cells]}
    return params.from_notebook(notebook, namespace, check=False)


def cell(notebook: str = "03_train", **changes: str) -> str:
    """The parameters cell, with the literals of some names replaced."""
    lines = []
    for line in params.parameters_cell(notebook).splitlines():
        name = line.split(":")[0]
        code, _, comment = line.partition("  # ")
        lines.append(f"{code.split(' = ')[0]} = {changes[name]}  # {comment}" if name in changes else line)
    return "\n".join(lines)


def injected(**values: Any) -> str:
    """The cell papermill would inject."""
    return str(PythonTranslator.codify(values))


# ---- the parameters cell itself


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_cell_states_the_schema(notebook: str) -> None:
    namespace: dict[str, Any] = {}
    source = params.parameters_cell(notebook)
    exec(source, namespace)
    for name, kind, default, _ in params.notebook_parameters(notebook):
        assert namespace[name] == default
        assert namespace["__annotations__"][name] in (kind, {"str": str, "int": int}.get(kind), eval(kind))
    assert all(len(line) <= 120 for line in source.splitlines())


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_papermill_reads_every_line_of_the_cell(notebook: str, tmp_path: Path) -> None:
    """Its parser drops lines with a second equals sign, a union type or Literal[...], with no more than a log line."""
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": ""}}
    )
    book.cells = [nbformat.v4.new_code_cell(params.parameters_cell(notebook), metadata={"tags": ["parameters"]})]
    nbformat.write(book, tmp_path / "book.ipynb")
    found = papermill.inspect_notebook(str(tmp_path / "book.ipynb"))
    assert [
        (p["name"], p["inferred_type_name"], ast.literal_eval(p["default"]), p["help"]) for p in found.values()
    ] == params.notebook_parameters(notebook)


def committed(notebook: str) -> Path:
    folder = paths.root() / "notebooks"
    if not folder.is_dir():
        pytest.skip("the notebooks folder does not exist yet")
    return folder / f"{notebook}.ipynb"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_committed_notebook_has_exactly_this_cell(notebook: str) -> None:
    file = committed(notebook)
    assert file.is_file(), f"{notebook} has a schema but no notebook"
    found = papermill.inspect_notebook(str(file))
    assert list(found) == [name for name, *_ in params.notebook_parameters(notebook)]
    book = nbformat.read(file, as_version=4)
    tagged = [c.source for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert tagged == [params.parameters_cell(notebook)], "write the cell from params.parameters_cell(...)"


def test_every_notebook_with_a_parameters_cell_has_a_schema() -> None:
    for file in sorted(committed("03_train").parent.glob("*.ipynb")):
        book = nbformat.read(file, as_version=4)
        if any("parameters" in c.metadata.get("tags", []) for c in book.cells):
            assert file.stem in NOTEBOOKS


def test_an_unknown_notebook_is_refused() -> None:
    with pytest.raises(TalasError, match="Did you mean '03_train'"):
        params.resolve("03_tran", {})


# ---- reading the cells


def test_untouched_cells_give_the_defaults() -> None:
    p = run_cells("03_train", cell())
    assert p.values == params.resolve("03_train", {}).values
    assert "given" not in p.origins.values()
    assert p.origins["lr"] == "default"
    assert p.origins["rho"] == "optimizers/asam"


def test_papermill_values_win_and_are_marked() -> None:
    p = run_cells("03_train", cell(), injected(teacher="tiny", student="tiny", corpus="tiny", epochs=3, seed=42))
    assert (p.teacher, p.epochs, p.teacher_spec.name) == ("tiny", 3, "tiny")
    given = {name for name, origin in p.origins.items() if origin == "given"}
    assert given == {"teacher", "student", "corpus", "epochs", "seed"}  # seed: passed, though it is the default


@pytest.mark.parametrize(
    ("notebook", "wrong", "meant"),
    [
        ("03_train", "teecher", "teacher"),
        ("03_train", "learning_rat", None),
        ("05_sharpness", "sharpness_batch", "sharpness_batches"),
    ],
)
def test_a_name_papermill_only_warns_about(notebook: str, wrong: str, meant: str | None) -> None:
    with pytest.raises(TalasError) as caught:
        run_cells(notebook, cell(notebook), injected(**{wrong: "x"}))
    assert f"no parameter {wrong!r}" in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == (meant is not None)
    if meant:
        assert f"Did you mean {meant!r}?" in str(caught.value)
    for name, *_ in params.notebook_parameters(notebook):
        assert name in str(caught.value)


def test_names_of_other_notebooks_pass_and_are_listed() -> None:
    p = run_cells("04_evaluate", cell("04_evaluate"), injected(teacher="tiny", grid={"seed": [1, 2]}, device="cpu"))
    assert set(p.unused) == {"teacher", "grid"}
    assert p.device == "cpu"


def test_papermills_own_names_pass() -> None:
    p = run_cells("01_data", cell("01_data"), injected(PAPERMILL_INPUT_PATH="a.ipynb", PAPERMILL_OUTPUT_PATH="b.ipynb"))
    assert not p.unused


def test_an_edited_cell_is_checked_like_an_injected_one() -> None:
    p = run_cells("03_train", cell(epochs="1", teacher='"tiny"'))
    assert (p.epochs, p.teacher, p.origins["epochs"]) == (1, "tiny", "given")
    with pytest.raises(TalasError, match=r"no parameter 'epocs'. Did you mean 'epochs'"):
        run_cells("03_train", cell().replace("epochs:", "epocs:"))
    with pytest.raises(TalasError, match="no parameter 'epocs'"):  # also when only a few names were left in the cell
        run_cells("03_train", 'teacher: str = "tiny"\nepocs: int = 1')


def test_a_corrected_typo_is_forgotten() -> None:
    """IPython keeps the first version of the cell in its history."""
    p = run_cells("03_train", cell().replace("epochs:", "epocs:"), "x = 1", cell(epochs="2"))
    assert p.epochs == 2


def test_a_cell_that_only_looks_alike_is_left_alone() -> None:
    p = run_cells("03_train", cell(), "losses: list = []\nteacher_name: str = 'x'", "def f():\n    epocs: int = 1\n")
    assert p.epochs == 5


def test_a_computed_value_is_refused() -> None:
    with pytest.raises(TalasError, match=r"lr is computed \(2 \* 1e-05\).*write the value itself"):
        run_cells("03_train", cell(lr="2 * 1.0e-5"))
    with pytest.raises(TalasError, match=r"lr is computed \(float\('nan'\)\)"):
        run_cells("03_train", cell(), injected(lr=float("nan")))


def test_a_value_changed_by_a_plain_cell_counts() -> None:
    assert run_cells("03_train", cell(), "epochs = 7").epochs == 7


def test_a_name_overwritten_by_an_object_is_explained() -> None:
    with pytest.raises(TalasError, match="a later cell has overwritten the name teacher"):
        run_cells("03_train", cell(), teacher=object())


def test_without_ipython_the_namespace_is_enough() -> None:
    p = params.from_notebook("03_train", {"epochs": 3, "other": 1}, check=False)
    assert p.epochs == 3


def test_cells_that_are_not_python_are_passed_over() -> None:
    namespace: dict[str, Any] = {}
    exec(cell(epochs="2"), namespace)
    assert (
        params.from_notebook("03_train", namespace, ["", "%%bash\nls", cell(epochs="2"), "!ls"], check=False).epochs
        == 2
    )


def test_availability_is_checked_for_what_the_notebook_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    values = {"teacher": "qwen3-4b", "student": "tiny", "corpus": "tiny", "tasks": "tiny"}
    with pytest.raises(TalasError, match="teacher_source"):
        params.from_notebook("03_train", values)
    with pytest.raises(TalasError, match="teacher_source"):
        params.from_notebook("02_cache_teacher", values)
    params.from_notebook("06_compare", values)  # compares what is there, loads no model
    p = params.from_notebook("03_train", values | {"method": "simcse"})  # reads no teacher
    assert not p.needs_teacher


# ---- the whole way, and how little is imported on it


def test_papermill_stops_at_the_first_working_cell(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": ""}}
    )
    working = 'from talas_lib import params\np = params.from_notebook("03_train", globals(), In)\nprint(p.run_id)'
    book.cells = [
        nbformat.v4.new_code_cell(params.parameters_cell("03_train"), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(working),
    ]
    nbformat.write(book, tmp_path / "in.ipynb")
    values = {"teecher": "x", "teacher": "tiny", "student": "tiny", "corpus": "tiny"}
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter 'teecher'"):
        papermill.execute_notebook(
            str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), values, progress_bar=False, cwd=str(paths.root())
        )


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("params.from_notebook('03_train', {'lr': '1e-4'})", "lr is '1e-4'"),
        ("params.from_notebook('03_train', {'In': ['# Parameters\\nteecher = 1']})", "'teecher'"),
        ("params.from_notebook('03_train', {'teacher': 'qwen3-4b', 'corpus': 'tiny'})", "teacher_source"),
        ("params.from_notebook('03_train', {'method': 'tallas'})", "Did you mean 'talas'"),
        ("print(params.from_notebook('03_train', {'corpus': 'tiny'}).summary())", "minilm-l6"),
        ("print(params.resolve('03_train', {'method': 'simcse'}).run_id)", "--simcse--"),
        ("from talas_lib import runs; print(runs.open_run(params.resolve('03_train', {})).status)", "partial"),
    ],
)
def test_nothing_heavy_is_imported(code: str, outcome: str, tmp_path: Path) -> None:
    script = f"""
        import sys
        from talas_lib import params
        from talas_lib.errors import TalasError
        try:
            {code}
        except TalasError as error:
            print(error)
        print("heavy:", sorted({{"torch", "transformers", "datasets", "sentence_transformers", "sklearn"}} & set(sys.modules)))
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TALAS_OUTPUTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=paths.root(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []")
