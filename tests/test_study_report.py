"""What notebook 06 shows and writes of a study: pages, findings, figures and files, from made-up records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import papermill
import pytest
from made_up_study import METHODS, cells, made_up_run, result, study
from matplotlib.text import Text

from talas_lib import bench, compare, params, paths, point_names
from talas_lib.study import charts, markdown, on_record, resampling, wording
from talas_lib.study import overview as studies
from talas_lib.study.tabulation import DIFFERENCES, OWN

GAIN = {"talas": 60.0, "simcse": 50.0, "cdm": 61.0, "dskd": 59.9}
TABLES: dict[str, Any] = {
    "table1": {
        "title": "Methods",
        "paper": "table1",
        "grid": METHODS | {"seed": [42, 43, 44]},
    },
    "tune": {
        "title": "Tuning",
        "tasks": "mini",
        "beside": ["stsb-dev"],
        "grid": {"optimizer": ["asam"], "pooling": ["cls", "mean"], "lr": [2.0e-5, 1.0e-4]},
    },
    "table7": {
        "title": "Layers",
        "paper": "table7",
        "optimizer": "asam",
        "grid": {"method_params": [{"num_anchor_layers": 1}, {"num_anchor_layers": 2}]},
    },
    "controls": {
        "title": "ASAM",
        "grid": {
            "optimizer, rho, same_dropout": [
                ["adamw", None, None],
                ["asam", 0.0, None],
                ["asam", 0.05, None],
                ["asam", 0.5, True],
            ]
        },
    },
}


VALUES = study(TABLES)


def score(p: Any, task: str) -> float:
    return GAIN[p.method] + (p.seed - 43) * 0.5 - (10 if task == "wic" and p.method == "talas" else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Outputs and results of a study with all runs but one on record; for reading."""
    made = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(made / "outputs"))
        patch.setenv("TALAS_RESULTS", str(made / "results"))
        patch.setattr(resampling, "RESAMPLES", 20)
        for number, cell in enumerate(cells(VALUES)):
            if number != 8:  # SimCSE, seed 44
                on_record.keep(VALUES, made_up_run(cell, score, unseen={"stsb": (100, 30.0)}, items=True).id)
        yield made


@pytest.fixture(scope="module")
def found(folder: Path) -> studies.Report:
    report = studies.of(VALUES)
    assert report.tables  # computed while the folders are those of the fixture
    return report


def files() -> dict[str, bytes]:
    folder = result()
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_all_of_it_is_written_and_a_rerun_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("outputs", "results"):
        shutil.copytree(folder / name, tmp_path / name)
        monkeypatch.setenv(f"TALAS_{name.upper()}", str(tmp_path / name))
    assert studies.of(VALUES).write() == result()
    first = files()
    made = {name for name in first if not name.startswith(("runs/", "references/"))}
    assert made == {
        "runs.csv",
        "findings.md",
        *(f"bootstrap/{name}.csv" for name in ("controls", "table1", "table7")),
        *(f"figures/{name}.png" for name in ("controls", "figure2-anchor-layers")),
        *(f"tables/{name}.{ending}" for name in TABLES for ending in ("csv", "md")),
        "tables/choice.csv",
    }
    summary = json.loads((tmp_path / "outputs" / "made-up" / "summary.json").read_text())
    assert summary["runs"] == len({params.resolve("03_train", cell).run_id for cell in cells(VALUES)})
    assert [len(suites) for suites in summary["lacking"].values()] == [1]
    choice = pd.read_csv(result("tables", "choice.csv"))
    assert choice[["method", "lr", "pooling"]].to_numpy().tolist() == [["talas", 2e-5, "cls"]]
    shutil.rmtree(tmp_path / "outputs")
    studies.of(VALUES).write()
    again = files()
    assert {name for name in first if first[name] != again.get(name)} == set()


def test_a_page_has_our_rows_what_is_missing_and_the_papers_apart(found: studies.Report) -> None:
    page = found.pages["table1"]
    ours, _, paper = page.partition("## The paper's numbers")
    assert "| simcse + adamw | 2 | 49.75 ± 0.35 |" in ours
    assert "Not on record yet: simcse + adamw (seeds 44)." in ours
    assert "| talas + asam, pooling cls | 3 |" in ours
    assert "93.21" not in ours  # the paper's teacher on Banking77
    assert "| Teacher | teacher | 93.21 |" in paper
    assert "| TALAS | talas + asam, pooling cls | 86.69 |" in paper
    assert "| Student base | untrained student, CLS pooling | 68.29 | 69.90¹ | 41.07¹ |" in paper
    assert "¹ T1-swap: in the three rows" in paper
    heads = [line for line in page.splitlines() if line.startswith("| ---")]
    rows = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert len(heads) == 1 + 3
    assert len(set(rows)) == 2  # ours have one width, the paper's another


def test_the_tuning_page_marks_what_was_chosen(found: studies.Report) -> None:
    assert found.pages["tune"].count("| yes |") == 1
    assert "| talas + asam | 2e-05 | cls | 59.50 | 59.50 | 59.50 | yes |" in found.pages["tune"]


def test_the_findings_name_every_table_and_what_is_missing(found: studies.Report) -> None:
    text = found.findings
    asked = len({cell.run_id for cell in found.study.cells})
    assert f"{asked - 1} of {asked} runs are on record" in text
    assert all(f"## [{name}](tables/{name}.md)" in text for name in TABLES)
    assert text.count("- `tiny--tiny--simcse--adamw--s44") == 1


# ---- words


def row(name: str, avg: float, low: float, high: float, items: tuple[float, float], **more: Any) -> dict[str, Any]:
    numbers = dict(zip(DIFFERENCES, (avg - 60, low, high, 3, 3, *items, 0.5), strict=True))
    return {"row": name, "kind": OWN, "n": 3, "avg": avg, "avg sd": 0.1, **numbers, **more}


class One:
    """A block of which only what words ask for is there."""

    baseline, suite = "talas + asam", "paper"
    asked_groups = dict.fromkeys(("talas + asam",))


def test_a_finding_says_what_seeds_and_items_tell_apart_and_where_talas_does_not_win() -> None:
    nothing = (np.nan, np.nan)
    rows = [
        row("talas + asam", 60.0, *nothing, nothing, banking77=80.0, wic=50.0),
        row("clear", 61.0, 0.5, 1.5, (0.4, 1.6), banking77=79.0, wic=51.5),
        row("seeds only", 60.5, 0.4, 0.6, (-0.1, 1.1), banking77=79.0, wic=50.0),
        row("items only", 59.5, -1.1, 0.1, (-0.9, -0.1), banking77=79.0, wic=50.0),
        row("near", 60.1, -0.2, 0.4, (-0.3, 0.5), banking77=79.0, wic=50.0),
        row("far", 50.0, -11.0, -9.0, (-11.0, -9.0), banking77=79.0, wic=50.0),
        row("open", 59.0, *nothing, nothing, banking77=79.0, wic=50.0, n=1),
    ]
    text = wording.finding(One(), pd.DataFrame(rows))  # type: ignore[arg-type]
    assert text.startswith("clear with 61.00 (sd 0.10 over 3 seeds) is first of 7; talas + asam with 60.00")
    assert "is number 4, 1.00 below." in text
    assert "Above talas + asam by more than seeds and test items explain: clear (+1.00)." in text
    assert (
        "Above talas + asam by more than the seeds explain, while the test items do not tell them apart: seeds only (+0.50)."
        in text
    )
    assert (
        "Below talas + asam by more than the test items explain, while the seeds do not tell them apart: items only (-0.50)."
        in text
    )
    assert "Not told apart from talas + asam: near (+0.10)." in text
    assert "Below talas + asam by more than seeds and test items explain: far (-10.00)." in text
    assert "with one seed and no results by item to judge by: open (-1.00)." in text
    assert text.endswith(
        "- By task talas + asam is first on 1 of 2 (banking77).\n- First elsewhere: clear (wic +1.50)."
    )


def test_a_finding_of_a_first_place_and_of_nothing() -> None:
    rows = pd.DataFrame(
        [row("talas + asam", 60.0, np.nan, np.nan, (np.nan, np.nan)), row("b", 58.0, -3.0, -1.0, (-3.0, -1.0))]
    )
    text = wording.finding(One(), rows)  # type: ignore[arg-type]
    assert text.startswith("talas + asam with 60.00 (sd 0.10 over 3 seeds) is first of 2, 2.00 above the next, b.")
    assert wording.finding(One(), rows.assign(n=0)) == "Nothing of this table is on record yet."  # type: ignore[arg-type]


def test_a_finding_counts_against_the_better_untrained_student() -> None:
    references = [
        {"row": "teacher", "kind": "reference", "n": np.nan, "avg": 80.0},
        {"row": "untrained student, CLS pooling", "kind": "reference", "n": np.nan, "avg": 40.0},
        {"row": "untrained student, mean pooling", "kind": "reference", "n": np.nan, "avg": 59.0},
    ]
    own = [row("talas + asam", 60.0, np.nan, np.nan, (np.nan, np.nan)), row("b", 58.0, -3.0, -1.0, (-3.0, -1.0))]
    text = wording.finding(One(), pd.DataFrame([*references, *own]))  # type: ignore[arg-type]
    assert text.startswith(
        "The teacher averages 80.00, the untrained student, mean pooling 59.00. talas + asam with 60.00"
    )
    ready_made = [
        {"row": name, "kind": "encoder", "avg": avg} for name, avg in (("a", np.nan), ("b", 70.0), ("c", 71.0))
    ]
    text = wording.finding(One(), pd.DataFrame([*references, *ready_made, *own]))  # type: ignore[arg-type]
    assert "mean pooling 59.00. Ready-made: c 71.00, b 70.00. talas + asam with 60.00" in text
    assert "Not above the untrained student, mean pooling: b (-1.00)." in text
    references[2]["avg"] = 61.0
    text = wording.finding(One(), pd.DataFrame([*references, *own]))  # type: ignore[arg-type]
    assert "No row is above the untrained student, mean pooling: talas + asam (-1.00), b (-3.00)." in text


def test_a_table_of_one_seed_says_how_much_seeds_change_elsewhere(found: studies.Report) -> None:
    said = {name.split(",")[0]: text for name, text in found.words.items()}
    assert "One seed" not in said["table1"]
    for name in ("table7", "controls"):
        assert (
            "One seed a row: in table1 Avg of talas + asam, pooling cls has a standard deviation of 0.50 over 3 seeds"
            in said[name]
        )


def test_numbers_of_a_page() -> None:
    assert markdown.mean_sd({"a": 1.005, "a sd": 0.1}, "a") == "1.00 ± 0.10"
    assert markdown.mean_sd({"a": 1.0, "a sd": np.nan}, "a") == "1.00"
    assert markdown.mean_sd({}, "a") == "–"


# ---- figures


def boxes(figure: Any, names: list[Any]) -> list[Any]:
    figure.draw_without_rendering()
    return [Text.get_window_extent(name, figure.canvas.get_renderer()) for name in names]


def test_labels_do_not_cover_one_another() -> None:
    figure, axes = plt.subplots(figsize=(9, 5))
    plt.close(figure)
    rng = np.random.default_rng(0)
    x, y = 20 + rng.random(12), 70 + rng.random(12) * 0.6  # a cloud, as methods of equal cost make it
    axes.scatter(x, y)
    axes.margins(0.2)
    names = point_names.place_labels(axes, [f"method_{i} + adamw" for i in range(12)], x, y)
    found = boxes(figure, names)
    assert sorted(name.get_text() for name in names) == sorted(f"method_{i} + adamw" for i in range(12))
    assert not [(i, j) for i, a in enumerate(found) for j, b in enumerate(found[:i]) if a.overlaps(b)]
    room = axes.get_window_extent()
    assert all(room.x0 <= box.x0 and box.x1 <= room.x1 for box in found)


def test_figures_are_drawn_for_the_tables_that_vary_what_they_show(found: studies.Report) -> None:
    drawn = found.figures
    assert list(drawn) == ["figure2-anchor-layers", "controls"]
    panels = drawn["figure2-anchor-layers"].axes
    assert [axes.get_title().splitlines()[0] for axes in panels] == [
        "tiny to tiny",
        "paper: qwen3-0.6b to minilm-l6-h384",
        "paper: qwen3-4b to bert-base",
    ]
    assert [len(axes.lines) >= 3 for axes in panels] == [True] * 3
    assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["1", "2", "3", "6"]
    (axes,) = drawn["controls"].axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.05", "0.5"]
    (legend,) = drawn["controls"].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert set(labels) == {"AdamW, 3 epochs", "ASAM, fresh dropout masks", "ASAM, the same masks in both passes"}


def test_score_against_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("TALAS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(bench, "folder", lambda: tmp_path)  # no benchmarks: minutes by the clock
    methods = {"method, optimizer": [["talas", "asam"], ["simcse", "adamw"], ["cdm", "adamw"], ["dskd", "adamw"]]}
    of = study({"t": {"title": "T", "grid": methods | {"seed": [42, 43]}}})
    for number, cell in enumerate(cells(of)):
        on_record.keep(of, made_up_run(cell, score, train_s=60.0 * (1 + number)).id)
    found = studies.of(of).figures
    assert list(found) == ["cost-t"]
    (axes,) = found["cost-t"].axes
    assert axes.get_xscale() == "log"
    assert "by the clock" in axes.get_xlabel()
    assert axes.get_title() == "Highest: cdm + adamw, 60.8 after 5.5 minutes\ntalas + asam, 58.6 after 1.5 minutes"
    names = [text for text in axes.texts if text.get_text()]
    assert {name.get_text() for name in names} == {"talas + asam", "simcse", "cdm", "dskd"}


def test_the_title_of_score_against_cost_names_what_is_not_told_apart_from_the_first() -> None:
    rows = [
        row("talas + asam", 60.0, np.nan, np.nan, (np.nan, np.nan), **{"train min": 1.6}),
        row("near", 59.9, -0.3, 0.1, (-0.4, 0.2), **{"train min": 0.5}),
        row("items only", 59.8, -0.3, 0.1, (-0.4, -0.1), **{"train min": 0.5}),
        row("one seed", 59.7, np.nan, np.nan, (-0.4, 0.1), **{"train min": 0.5}),
    ]
    title = charts._cost_title(rows, "talas + asam")
    assert title == "Highest: talas + asam, 60.0 after 1.6 minutes\nnot told apart: near, 59.9 after 0.5 minutes"
    assert charts._cost_title([], "talas + asam") == "Nothing on record yet"


# ---- the notebook's way


def test_the_notebook_takes_the_first_table_for_a_closer_look(folder: Path, found: studies.Report) -> None:
    p = params.resolve("06_compare", VALUES)
    block = compare.collect(p)
    assert block.table.name == "table1"
    assert len(block.members) == 8
    items = block.item_differences()
    assert set(items["group"]) == {"talas + asam, pooling mean", "simcse + adamw"}
    assert [cell.run_id for cell in studies.of(p).study.cells] == [cell.run_id for cell in found.study.cells]
    assert "# table7: Layers" in found.show().data


@pytest.mark.slow
def test_notebook_06_shows_and_writes_the_study(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("outputs", "results"):
        shutil.copytree(folder / name, tmp_path / name)
        monkeypatch.setenv(f"TALAS_{name.upper()}", str(tmp_path / name))
    names = params.notebook_schema("06_compare").names
    book = papermill.execute_notebook(
        str(paths.root() / "notebooks" / "06_compare.ipynb"),
        str(tmp_path / "06_compare.ipynb"),
        {name: value for name, value in VALUES.items() if name in names},
        cwd=str(paths.root()),
        kernel_name="python3",
        progress_bar=False,
    )
    outputs = [o for cell in book.cells for o in cell.get("outputs", [])]
    assert not [o.text for o in outputs if o.get("name") == "stderr"]
    pages = [o["data"]["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    assert any("## The paper's numbers" in page for page in pages)
    assert result("tables", "table1.md").is_file()
    assert (tmp_path / "outputs" / "made-up" / "summary.json").is_file()
