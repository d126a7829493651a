"""The paper's tables: every average recomputed, every known error found, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_study import study

from talas_lib.errors import TalasError
from talas_lib.study import paper_tables
from talas_lib.study.blocks import Study

IN, OUT = ("emotion", "wic", "stsb"), ("banking77", "tweet", "mrpc", "scitail", "sick", "sts12")
AVERAGES = {"avg_in": IN, "avg_out": OUT, "avg": (*IN, *OUT)}
FULL = ("table1", "table7", "table8", "table9")
ROUNDING = 0.011  # of averages printed with two digits, computed from tasks with two


def mismatches(name: str, number: str) -> set[tuple[str, str, str]]:
    """(student, row, average) of every average that its row's tasks do not give; number: printed or corrected."""
    found = set()
    for (student, row), lines in paper_tables.table(name).groupby(["student", "row"], sort=False):
        values = dict(zip(lines["column"], lines[number], strict=True))
        for average, tasks in AVERAGES.items():
            if average in values and abs(np.mean([values[task] for task in tasks]) - values[average]) > ROUNDING:
                found.add((str(student), str(row), average))
    return found


@pytest.mark.parametrize("name", FULL)
def test_averages_come_out_but_for_the_exchanged_columns_of_table_1(name: str) -> None:
    students = ("minilm-l6-h384", "minilm-l6-h768", "bert-base")
    known = {(student, "Student base", average) for student in students for average in ("avg_in", "avg_out")}
    assert mismatches(name, "printed") == (known if name == "table1" else set())
    assert mismatches(name, "corrected") == set()


def test_averages_of_the_tables_without_all_tasks() -> None:
    for row in paper_tables.rows("table6"):
        assert np.mean([row.numbers[task] for task in OUT]) == pytest.approx(row.numbers["avg_out"], abs=ROUNDING)
    assert len(paper_tables.rows("table2")) == 21
    for row in paper_tables.rows("table2"):
        whole = (3 * row.numbers["avg_in"] + 6 * row.numbers["avg_out"]) / 9
        assert whole == pytest.approx(row.numbers["avg"], abs=0.015)


def row_of(name: str, student: str, row: str) -> paper_tables.Row:
    (found,) = [r for r in paper_tables.rows(name) if (r.student, r.name) == (student, row)]
    return found


@pytest.mark.parametrize("student", ["minilm-l6-h384", "bert-base"])
def test_the_ablations_repeat_the_row_of_table_1(student: str) -> None:
    expected = row_of("table1", student, "TALAS").numbers
    last = {"minilm-l6-h384": "6 layers", "bert-base": "12 layers"}[student]
    for name, row in (("table7", "2 layers"), ("table8", last), ("table9", "ASAM")):
        assert row_of(name, student, row).numbers == expected


@pytest.mark.parametrize("student", ["minilm-l6-h384", "minilm-l6-h768", "bert-base"])
def test_table_2_agrees_with_table_1_once_corrected(student: str) -> None:
    full = row_of("table1", student, "TALAS").numbers
    assert row_of("table2", student, "row 7: all parts").numbers == {name: full[name] for name in AVERAGES}
    first = "row 1: SimCSE" if student == "bert-base" else "row 1: Student base"
    theirs = row_of("table1", student, "SimCSE-unsup" if student == "bert-base" else "Student base").numbers
    assert row_of("table2", student, first).numbers == {name: theirs[name] for name in AVERAGES}


def test_every_correction_has_its_error_and_every_error_its_words() -> None:
    known, used = paper_tables.errors(), set()
    for file in ("table1", "table2", "table4", "table6", "table7", "table8", "table9"):
        lines = paper_tables.table(file)
        changed = lines["printed"] != lines["corrected"]
        assert (lines.loc[changed, "error"] != "").all()
        used |= set(lines["error"]) - {""}
    assert used == {"T1-swap", "T2-row1-exchange", "T2-row1-kind", "T2-T1-bge", "T2-ticks", "T7-K1-bert", "T9-SAM-bert"}
    assert used < set(known)
    assert all(len(what) > 40 for what in known.values())


def test_rows_are_matched_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_RESULTS", str(tmp_path))
    layers = [{"num_anchor_layers": 1}, {"num_anchor_layers": 2}]
    tables = {
        "table1": {
            "title": "1",
            "encoders": ["mpnet-base"],
            "grid": {
                "method, optimizer, pooling": [
                    ["talas", "asam", "mean"],
                    ["talas", "asam", "cls"],
                    ["cdm", "adamw", "cls"],
                ]
            },
        },
        "table7": {"title": "7", "optimizer": "asam", "grid": {"method_params": layers}},
        "table8": {
            "title": "8",
            "optimizer": "asam",
            "grid": {"method_params": [{"lasd_pairs": 1}, {"lasd_pairs": "all"}]},
        },
        "tuned": {"title": "t", "grid": {"method, optimizer, pooling, lr": [["talas", "asam", "mean", 3.0e-4]]}},
    }
    found = Study.open(study(tables)).blocks
    (one,), (seven,), (eight,), (tuned,) = (found[name] for name in tables)
    of_tuned = {row.name: paper_tables.counterpart(row, tuned) for row in paper_tables.rows("table1")}
    assert of_tuned["TALAS"] == "talas + asam, pooling mean, lr 0.0003"  # no other talas there
    assert of_tuned["CDM"] is None
    ours = {row.name: paper_tables.counterpart(row, one) for row in paper_tables.rows("table1")}
    assert ours == {
        "Teacher": "teacher",
        "Student base": "untrained student, CLS pooling",
        "TALAS": "talas + asam, pooling cls",
        "CDM": "cdm + adamw",
        **dict.fromkeys(("SimCSE-unsup", "DSKD", "Jasper and Stella", "DistillCSE", "EMO")),
    }
    ours = {row.name: paper_tables.counterpart(row, seven) for row in paper_tables.rows("table7")}
    expected = {f"{n} layers": None for n in (3, 4, 6, 9, 12)} | {
        "1 layer": "talas + asam, num_anchor_layers 1",
        "2 layers": "talas + asam, num_anchor_layers 2",
    }
    assert ours == expected
    mini = paper_tables.pairs("table8")["qwen3-0.6b", "minilm-l6-h384"]
    of_mini = {row.name: paper_tables.counterpart(row, eight) for row in mini}
    assert of_mini == {"2 layers": None, "3 layers": None, "6 layers": "talas + asam, lasd_pairs all"}
    assert {paper_tables.counterpart(row, one) for row in paper_tables.rows("table2") if row.name == "row 3"} == {None}


def test_an_unknown_table_is_answered_with_those_there_are() -> None:
    with pytest.raises(TalasError, match=r"the paper's table 'table11' is not there\. Did you mean 'table1'"):
        paper_tables.table("table11")
    with pytest.raises(TalasError, match=r"table3\.csv has the columns"):
        paper_tables.table("table3")
