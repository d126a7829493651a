"""Presets with tables: which cells they have, and what is answered, with file and line, when one cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from talas_lib import params, paths
from talas_lib.errors import TalasError

STUDY: dict[str, Any] = {
    "teacher": "tiny",
    "lr": 1.0e-3,
    "tasks": "tiny",
    "tables": {
        "one": {"title": "Two optimizers", "paper": "table1", "grid": {"optimizer": ["asam", "adamw"], "seed": [1, 2]}},
        "two": {
            "title": "Another rate",
            "lr": 2.0e-3,
            "beside": ["extra-tiny"],
            "encoders": ["tiny-xlmr"],
            "grid": [{"optimizer": ["asam"]}, {"optimizer, rho": [["sam", 0.1], ["sam", None]]}],
        },
        "three": {"title": "One cell"},
    },
}


def with_table(**table: Any) -> dict[str, Any]:
    return {"lr": 1.0, "tables": {"mine": {"title": "mine", **table}}}


def test_each_table_lies_over_the_preset() -> None:
    one, two, three = params.expand_tables(STUDY)
    assert (one.name, one.title, one.paper, one.encoders) == ("one", "Two optimizers", "table1", ())
    assert one.cells == tuple(
        {"teacher": "tiny", "lr": 1.0e-3, "tasks": "tiny", "optimizer": optimizer, "seed": seed}
        for optimizer in ("asam", "adamw")
        for seed in (1, 2)
    )
    over = {"teacher": "tiny", "lr": 2.0e-3, "tasks": "tiny", "beside": ["extra-tiny"]}
    assert two.cells == (
        over | {"optimizer": "asam"},
        over | {"optimizer": "sam", "rho": 0.1},
        over | {"optimizer": "sam", "rho": None},
    )
    assert (two.paper, two.encoders) == (None, ("tiny-xlmr",))
    assert three.cells == ({"teacher": "tiny", "lr": 1.0e-3, "tasks": "tiny"},)


def test_all_cells_come_in_the_order_of_the_tables() -> None:
    assert params.expand_grid(STUDY) == [cell for table in params.expand_tables(STUDY) for cell in table.cells]
    params.expand_grid(STUDY)[0]["teacher"] = "changed"
    assert STUDY["teacher"] == "tiny"


def test_a_preset_without_tables_is_one_table_without_name() -> None:
    (table,) = params.expand_tables({"lr": 1.0, "grid": {"seed": [1, 2]}})
    assert (table.name, table.title, table.paper) == ("", "", None)
    assert list(table.cells) == params.expand_grid({"lr": 1.0, "grid": {"seed": [1, 2]}})
    assert params.expand_tables({"lr": 1.0, "tables": {}}) == params.expand_tables({"lr": 1.0})


def test_some_tables_only() -> None:
    assert list(params.select_tables(STUDY, ["three", "one"])["tables"]) == ["one", "three"]
    assert params.select_tables(STUDY, []) == STUDY
    with pytest.raises(TalasError, match=r"no table 'on'. Did you mean 'one'\? Accepted: one, two, three"):
        params.select_tables(STUDY, ["on"])
    with pytest.raises(TalasError, match="has no tables; leave the names out"):
        params.select_tables({"lr": 1.0}, ["one"])


def test_the_suites_of_a_cell() -> None:
    assert params.cell_suites({}) == ("mini",)
    assert params.cell_suites({"tasks": "paper", "beside": ["tweet-eval", "paper"]}) == ("paper", "tweet-eval")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_table() | {"grid": {"seed": [1]}}, "has `grid` or `tables`, not both"),
        ({"tables": ["one"]}, "expected a mapping"),
        ({"tables": {"Table 1": {"title": "x"}}}, "'Table 1' names no table; take small letters"),
        ({"tables": {"one": "x"}}, "table one is 'x', expected a mapping"),
        ({"tables": {"one": {"grid": {"seed": [1]}}}}, "table one has no title"),
        (with_table(title=""), "title is '' .*it is empty"),
        (with_table(titel="x"), "table mine has no 'titel'. Did you mean 'title'"),
        (with_table(report="x"), "table mine has no 'report'"),
        (with_table(run="x"), "table mine has no 'run'"),
        (with_table(lr="1e-4"), "table mine: lr is '1e-4'.*write 1.0e-4"),
        (with_table(beside="tweet-eval"), "table mine: beside is 'tweet-eval'"),
        (with_table(encoders=[1]), "table mine: encoders has the entry 1"),
        (with_table(grid=[]), "grid is an empty list"),
        (with_table(grid=["seed"]), "grid is 'seed'"),
        (with_table(grid={"sede": [1]}), "no parameter 'sede' to vary. Did you mean 'seed'"),
        (with_table(grid={"tables": [{}]}), "no parameter 'tables'"),
        (with_table(grid={"seed": []}), "seed is .*expected a list of values"),
        (with_table(grid={"seed": None}), "seed is None, expected a list of values"),
        (with_table(grid={"beside": ["tiny"]}), "expected a list of lists"),
        (with_table(grid={"seed": [1, "2"]}), "seed is '2'"),
        (with_table(grid={"seed": [1, 1]}), "this cell twice: {'seed': 1}"),
        (with_table(grid=[{"seed": [1, 2]}, {"seed": [2]}]), "this cell twice: {'seed': 2}"),
    ],
)
def test_tables_that_cannot_be_used(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TalasError, match=message):
        params.expand_tables(values)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("lr: 1.0\ntables:\n  one:\n    grid: {seed: [1]}\n", 3, "has no title"),
        ("lr: 1.0\ntables:\n  one:\n    title: x\n    sede: 1\n", 5, "Did you mean 'seed'"),
        ("lr: 1.0\ntables:\n  one:\n    title: x\n    grid:\n      seed: [1]\n      lrr: [1.0]\n", 7, "'lrr' to vary"),
        ("tables:\n  one:\n    title: x\n    grid:\n      seed:\n        - 1\n        - two\n", 7, "seed is 'two'"),
        ("tables:\n  one:\n    title: x\n    grid:\n      - seed: [1]\n      - sede: [1]\n", 6, "'sede' to vary"),
        ("lr: 1.0\ngrid:\n  method, seed:\n    - [talas, 1]\n    - [simcse]\n", 5, "a list of 2 values"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, message: str
) -> None:
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params" / "presets" / "mine.yaml").write_text(text)
    with pytest.raises(TalasError, match=message) as caught:
        params.load_preset("mine")
    assert str(caught.value).startswith(f"params/presets/mine.yaml, line {line}: ")


def test_what_06_was_given_gives_back_the_runs_of_the_tables() -> None:
    given = params.resolve("06_compare", STUDY | {"student": "tiny", "corpus": "tiny"}).given_values()
    again = [params.resolve("03_train", cell).run_id for cell in params.expand_grid(given)]
    cells = params.expand_grid(STUDY | {"student": "tiny", "corpus": "tiny"})
    assert again == [params.resolve("03_train", cell).run_id for cell in cells]
