"""Tables of a study from made-up records: means, deviations, differences, pairs not seen in training, and what tuning chose."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from made_up_study import METHODS, cells, identity, made_up_run, result, scores, study

from talas_lib import bench, compare, params, plots, spread
from talas_lib.errors import TalasError
from talas_lib.graph.estimates import Rates
from talas_lib.study import charts, cost, effects, markdown, on_record, resampling, tabulation, tuning, wording
from talas_lib.study import overview as studies
from talas_lib.study.blocks import Block, Study
from talas_lib.study.tabulation import block_table, choose, runs_table

# points that a seed adds, and that a method adds
OF_SEED = {42: 0.0, 43: 1.0, 44: 2.0}
OF_METHOD = {("talas", "cls"): 60.0, ("talas", "mean"): 61.0, ("simcse", "cls"): 50.0}
T_2 = 4.302653  # Student's t, two degrees of freedom, 97.5 %


def score(p: Any, task: str) -> float:
    """60 + seed, 50 + twice the seed for SimCSE; WiC ten below."""
    slope = 2 if p.method == "simcse" else 1
    return OF_METHOD.get((p.method, p.pooling), 40.0) + slope * OF_SEED[p.seed] - (10 if task == "wic" else 0)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("TALAS_RESULTS", str(tmp_path / "results"))
    return tmp_path


def recorded(values: dict[str, Any], which: Callable[[int], bool] = lambda _: True, **of_run: Any) -> Study:
    """The study with the runs of some cells, by number."""
    for number, cell in enumerate(cells(values)):
        if which(number):
            on_record.keep(values, made_up_run(cell, score, **of_run).id)
    return Study.open(values)


ONE = {"table1": {"title": "Methods", "paper": "table1", "grid": METHODS | {"seed": [42, 43, 44]}}}


def only(found: Study, name: str = "table1") -> Block:
    (block,) = found.blocks[name]
    return block


# ---- a table by groups


def test_training_minutes_are_those_of_an_idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock said: steps times the measured step. ASAM's two passes show. Without benchmarks, the clock."""
    block = only(recorded(study(ONE), train_s=1e6))
    index = {label: rows[0] for label, rows in block.groups().items()}
    talas, simcse = index["talas + asam, pooling cls"], index["simcse + adamw"]
    rates = Rates.read()
    asked = block.resolved[talas]
    steps = block.record(block.members[talas], "train")["steps"]
    assert cost.minutes(block, talas) == pytest.approx(steps * rates.step_ms(asked, "cpu") / 60_000)
    assert cost.minutes(block, talas) > cost.minutes(block, simcse)
    monkeypatch.setattr(bench, "folder", lambda: Path("nowhere"))
    assert cost.minutes(block, talas) == pytest.approx(1e6 / 60)


def test_means_deviations_and_differences_by_hand() -> None:
    block = only(recorded(study(ONE)))
    table = block_table(block).set_index("row")
    assert list(table.index[:3]) == ["teacher", "untrained student, CLS pooling", "untrained student, mean pooling"]
    assert list(table.index[3:]) == ["talas + asam, pooling cls", "talas + asam, pooling mean", "simcse + adamw"]
    talas, simcse = table.loc["talas + asam, pooling cls"], table.loc["simcse + adamw"]
    assert (talas["n"], talas["seeds"], talas["missing"]) == (3, "42 43 44", "")
    # seeds give 60, 61, 62 on eight tasks and ten less on WiC
    assert (talas["stsb"], talas["stsb sd"]) == pytest.approx((61.0, 1.0))
    assert (talas["wic"], talas["avg_in"], talas["avg_out"]) == pytest.approx((51.0, 61 - 10 / 3, 61.0))
    assert (talas["avg"], talas["avg sd"]) == pytest.approx((61 - 10 / 9, 1.0))
    assert (simcse["avg"], simcse["avg sd"]) == pytest.approx((52 - 10 / 9, 2.0))
    assert talas["train min sd"] == 0
    # by seed SimCSE lies -10, -9, -8 from TALAS: mean -9, sd 1
    assert block.baseline == "talas + asam, pooling cls"
    assert math.isnan(talas["difference"])
    half = T_2 / math.sqrt(3)
    assert tuple(simcse[["difference", "difference low", "difference high"]]) == pytest.approx(
        (-9, -9 - half, -9 + half), abs=1e-5
    )
    assert (simcse["paired seeds"], simcse["better seeds"]) == (3, 0)
    assert table.loc["talas + asam, pooling mean", "difference low"] == pytest.approx(1.0)  # the same by every seed
    assert (table.loc["teacher", "avg"], table.loc["untrained student, mean pooling", "avg"]) == (90.0, 30.0)


def test_unseen_pairs_change_the_average_and_nothing_else() -> None:
    unseen = {"wic": (150, 20.0), "stsb": (120, 30.0), "sick": (200, 1.0)}  # of SICK every pair is left
    block = only(recorded(study(ONE), lambda number: number == 0, unseen=unseen))
    row = block_table(block).set_index("row").loc["talas + asam, pooling cls"]
    assert row["avg"] == pytest.approx((8 * 60 + 50) / 9)
    assert row["avg unseen"] == pytest.approx((7 * 60 + 20 + 30) / 9)
    assert row["sick"] == 60.0
    runs = runs_table(Study.open(study(ONE))).set_index(["run", "task", "split"])["score"]
    run = block.members[0].id
    assert runs[run, "avg", "test-unseen"] == round((7 * 60 + 20 + 30) / 9, 4)
    assert runs[run, "avg_in", "test-unseen"] == round((60 + 20 + 30) / 3, 4)
    assert runs[run, "avg_out", "test-unseen"] == runs[run, "avg_out", "test"] == 60.0
    assert runs[run, "wic", "test-unseen"] == 20.0
    assert (run, "sick", "test-unseen") not in runs.index


def test_one_seed_has_no_deviation_and_no_interval() -> None:
    block = only(recorded(study(ONE), lambda number: number in (0, 6)))
    row = block_table(block).set_index("row").loc["simcse + adamw"]
    assert (row["n"], row["difference"], row["missing"]) == (1, -10.0, "43 44")
    assert row[["avg sd", "difference low", "difference high"]].isna().all()


def test_what_is_not_on_record_is_listed_and_the_rest_is_there() -> None:
    found = recorded(study(ONE), lambda number: number in (3, 4, 5, 7))
    block = only(found)
    assert block.absent() == {"talas + asam, pooling cls": [42, 43, 44], "simcse + adamw": [42, 44]}
    table = block_table(block).set_index("row")
    assert list(table.index[3:]) == ["talas + asam, pooling cls", "talas + asam, pooling mean", "simcse + adamw"]
    assert table.loc["talas + asam, pooling cls", "n"] == 0
    assert table["difference"].isna().all()  # the baseline is not there
    assert [len(suites) for suites in found.lacking.values()] == [1] * 5
    nothing = Study.open(study({"other": {"title": "Other", "grid": {"seed": [1]}}}))
    assert block_table(nothing.blocks["other"][0])["n"].tolist() == [0]
    with pytest.raises(TalasError, match="no run on record"):
        studies.first_block(nothing.values)


PARTS = {
    "method_params": [
        {"weight_simcse": 0.0, "weight_lasd": 0.0},
        {"weight_lasd": 0.0},
        {"weight_simcse": 0.0},
        {},
        {"weight_simcse": 0.0, "weight_tamd": 0.0},
    ],
    "optimizer": ["adamw", "asam"],
    "seed": [42, 43],
}


def of_parts(p: Any, task: str) -> float:
    """10, TAMD +40, beside it LASD +2 (+4 on the second seed) and SimCSE -1, ASAM +0.5 and one more with SimCSE."""
    m = p.method_config
    found = 10.0 + 40 * (m.weight_tamd > 0) + (p.optimizer == "asam") * (0.5 + (m.weight_simcse > 0))
    return found + (m.weight_lasd > 0) * (2 if p.seed == 42 else 4) - (m.weight_simcse > 0)


def of_subsets(which: Callable[[int], bool] = lambda _: True) -> Block:
    values = study({"table2": {"title": "Parts", "grid": PARTS}})
    for number, cell in enumerate(cells(values)):
        if which(number):
            on_record.keep(values, made_up_run(cell, of_parts).id)
    return only(Study.open(values), "table2")


def test_effects_of_the_parts_by_hand() -> None:
    block = of_subsets()
    table = effects.effects(block)
    found = {(row["part"], row["beside"]): row for row in table[table["task"] == "avg"].to_dict("records")}
    lasd = found["LASD", effects.MEAN]
    assert (lasd["difference"], lasd["contrasts"], lasd["seeds"]) == (pytest.approx(3.0), 4, 2)
    # four of eight rows rise by 2 from seed to seed: residuals of 1/2, in all 4 over 7 degrees of freedom
    assert lasd["high"] - lasd["difference"] == pytest.approx(2.3646243 * math.sqrt(4 / 7 * 2 / (4 * 2)))
    alone = found["LASD", "TAMD, adamw"]
    assert alone["high"] - alone["difference"] == pytest.approx(12.7062047)  # one degree, sd sqrt 2, over sqrt 2
    by_task = table[(table["beside"] == effects.MEAN) & (table["part"] == "LASD")].set_index("task")
    assert by_task["difference"].to_dict() == pytest.approx(dict.fromkeys(["avg", *tabulation.tasks_of(block)], 3.0))
    assert found["SimCSE", "TAMD, adamw"]["difference"] == pytest.approx(-1)
    assert found["SimCSE", "TAMD + LASD, asam"]["difference"] == pytest.approx(0)
    assert found["SimCSE", effects.MEAN]["difference"] == pytest.approx(-0.5)
    assert found["ASAM", effects.MEAN]["difference"] == pytest.approx(1.0)
    assert found["ASAM", "LASD"]["difference"] == pytest.approx(0.5)
    assert found["TAMD", "LASD, adamw"]["difference"] == pytest.approx(40)
    assert ("TAMD", effects.MEAN) not in found
    said = effects.in_words(table)
    assert "2 seeds: LASD +3.00 (+2.11 to +3.89), SimCSE -0.50 (-1.39 to +0.39), ASAM +1.00" in said
    assert said.endswith("TAMD itself adds 40.00 to 40.00.")
    page = markdown.parts_table(table)
    assert "What each part adds" in page
    assert "| STS12 | +3.00 (+2.11 to +3.89) | -0.50" in page
    figure = charts.parts(table)
    (axes,) = figure.axes
    assert figure.get_suptitle() == "Beside TAMD, in the mean: LASD +3.00, SimCSE -0.50, ASAM +1.00"
    assert [tick.get_text() for tick in axes.get_yticklabels()][:2] == ["LASD, mean", "beside TAMD, adamw"]
    assert len(axes.get_yticklabels()) == 3 + 4 * 3


def test_simcse_as_a_method_is_no_subset_of_talas() -> None:
    """Its temperature is another one: only ASAM's effect on it can be told."""
    rows = {"method, method_params": [["simcse", {}], ["talas", {"weight_lasd": 0.0}], ["talas", {}]]}
    values = study({"table2": {"title": "Parts", "grid": rows | {"optimizer": ["adamw", "asam"]}}})
    for cell in cells(values):
        on_record.keep(values, made_up_run(cell, lambda p, _: 50.0 + (p.optimizer == "asam")).id)
    table = effects.effects(only(Study.open(values), "table2"))
    beside = table[table["beside"].str.contains("SimCSE as a method")]
    assert beside["part"].tolist() == ["ASAM"]
    assert beside["difference"].tolist() == [pytest.approx(1.0)]
    assert "TAMD" not in set(table["part"])


def test_effects_are_of_shared_seeds_and_of_tables_with_subsets_only() -> None:
    gone = (0, 7)  # TAMD, adamw, 42; SimCSE and TAMD, asam, 43
    table = effects.effects(of_subsets(lambda number: number not in gone))
    lasd = table[(table["part"] == "LASD") & (table["task"] == "avg")].set_index("beside")
    assert lasd.loc["TAMD, adamw", "difference"] == 4
    assert lasd.loc["TAMD + SimCSE, asam", "difference"] == 2
    assert effects.MEAN not in lasd.index  # no seed is in all contrasts
    assert effects.in_words(effects.effects(only(recorded(study({"table1": ONE["table1"]}))))) == ""
    one_part = {"title": "T", "grid": {"optimizer": ["sam", "asam"]}}
    assert effects.effects(only(recorded(study({"table9": one_part})), "table9")).empty


def test_suites_beside_stand_beside() -> None:
    both = {"title": "T", "grid": {"optimizer": ["asam"], "seed, beside": [[42, ["tweet-eval"]], [43, []]]}}
    table = block_table(only(recorded(study({"table1": both})))).set_index("row")
    assert table["tweet_eval"].to_dict() == {
        "teacher": 90.0,
        "untrained student, CLS pooling": 20.0,
        "untrained student, mean pooling": 30.0,
        "talas + asam": 60.0,
    }
    row = table.loc["talas + asam"]
    assert row["stsb"] == 60.5
    assert math.isnan(row["tweet_eval sd"])
    assert row["avg"] == pytest.approx(60.5 - 10 / 9)


def test_pairs_of_models_have_blocks_of_their_own() -> None:
    two = {"title": "T", "grid": {"teacher": ["tiny", "tiny-mpnet"], "optimizer": ["asam", "adamw"]}}
    blocks = recorded(study({"t": two})).blocks["t"]
    assert [block.heading for block in blocks] == ["t, tiny to tiny", "t, tiny-mpnet to tiny"]
    assert [list(block.asked_groups) for block in blocks] == [["talas + asam", "talas + adamw"]] * 2
    mixed = study({"t": {"title": "T", "grid": {"tasks": ["paper", "mini"]}}})
    with pytest.raises(TalasError, match="table t scores its runs on mini, paper: one suite a table"):
        _ = Study.open(mixed).blocks


def test_labels_say_what_differs_from_the_study_or_within_a_method() -> None:
    parts = [{"weight_simcse": 0.0, "weight_lasd": 0.0}, {}, {"num_anchor_layers": 1}]
    tables = {
        "parts": {"title": "P", "grid": {"method_params": parts}},
        "tuned": {
            "title": "T",
            "grid": {"method, lr, pooling": [["talas", 1.0e-4, "mean"], ["simcse", 2.0e-5, "cls"]]},
        },
        "rho": {"title": "R", "optimizer": "asam", "grid": {"rho, same_dropout": [[0.05, None], [0.5, True]]}},
        "epochs": {"title": "E", "grid": {"epochs": [3, 6]}},
    }
    found = Study.open(study(tables)).blocks
    labels = {name: list(blocks[0].asked_groups) for name, blocks in found.items()}
    assert labels == {
        "parts": [
            "talas + adamw, num_anchor_layers 2, without simcse and lasd",
            "talas + adamw, num_anchor_layers 2",
            "talas + adamw, num_anchor_layers 1",
        ],
        "tuned": ["talas + adamw, pooling mean, lr 0.0001", "simcse + adamw"],
        "rho": ["talas + asam, rho 0.05", "talas + asam, rho 0.5, same_dropout"],
        "epochs": ["talas + adamw, epochs 3", "talas + adamw, epochs 6"],
    }
    assert [blocks[0].baseline for blocks in found.values()] == [
        labels["parts"][0],  # no TALAS with ASAM there: the first
        labels["tuned"][0],
        "talas + asam, rho 0.05",
        labels["epochs"][0],
    ]


def test_runs_on_record_with_other_data_are_not_compared() -> None:
    values = study(ONE)
    recorded(values)
    file = sorted(result("runs").iterdir())[0]
    file.write_text(file.read_text().replace('"data": "', '"data": "f'))
    with pytest.raises(TalasError, match="on record with other data or another evaluation of paper"):
        block_table(only(Study.open(values)))


# ---- every run, tidy


def test_runs_csv_is_tidy_and_the_same_every_time(folders: Path) -> None:
    tables = ONE | {
        "tune": {
            "title": "Tuning",
            "tasks": "mini",
            "beside": ["stsb-dev"],
            "grid": {"optimizer": ["asam"], "pooling": ["cls", "mean"]},
        }
    }
    values = study(tables)
    runs = runs_table(recorded(values))
    wanted = "run table teacher student method preset optimizer rho seed epochs sentences recipe_version"
    assert list(runs.columns)[:18] == f"{wanted} task metric split score n train_s".split()
    assert not runs.duplicated(["run", "suite", "task", "split"]).any()
    first = runs[(runs["method"] == "talas") & (runs["pooling"] == "cls") & (runs["seed"] == 42)]
    assert set(first["table"]) == {"table1 tune"}
    assert first["run"].nunique() == 1
    assert list(first.loc[first["suite"] == "paper", "task"])[-3:] == ["avg_in", "avg_out", "avg"]
    assert list(first.loc[first["suite"] == "paper", "n"])[-3:] == [3, 6, 9]
    assert set(first["suite"]) == {"paper", "mini", "stsb-dev"}
    assert list(first.loc[first["suite"] == "stsb-dev", ["task", "split"]].itertuples(index=False, name=None)) == [
        ("stsb_dev", "dev")
    ]
    assert (first["rho"].iloc[0], first["epochs"].iloc[0], first["sentences"].iloc[0]) == (0.05, 3, 32)
    simcse = runs[runs["method"] == "simcse"]
    assert simcse["rho"].isna().all()
    assert set(simcse["table"]) == {"table1"}
    references = runs[runs["seed"].isna()]
    assert set(references["method"]) == {"teacher", "untrained-cls", "untrained-mean"}
    by_suite = references.groupby("suite")["table"].first().to_dict()
    assert by_suite == {"paper": "table1", "mini": "tune", "stsb-dev": "tune"}
    text = runs.to_csv(index=False)
    assert ",,42," in text  # no rho for AdamW
    shutil.rmtree(folders / "outputs")
    assert runs_table(Study.open(values)).to_csv(index=False) == text


def test_encoders_stand_in_their_tables() -> None:
    values = study({"table6": {"title": "T", "encoders": ["minilm-l6", "mpnet-base"], "grid": {"optimizer": ["asam"]}}})
    on_record.keep_encoder(values, "mpnet-base", scores("paper", lambda _: 70.0), identity("paper"))
    found = recorded(values)
    rows = runs_table(found)
    encoder = rows[rows["method"] == "encoder"]
    assert set(encoder["student"]) == {"mpnet-base"}
    assert set(encoder["table"]) == {"table6"}
    table = block_table(only(found, "table6")).set_index("row")
    assert table.loc["mpnet-base", "avg"] == 70.0
    assert math.isnan(table.loc["minilm-l6", "avg"])


# ---- tuning


def tuned(**changes: Any) -> pd.DataFrame:
    """A table of runs: two methods at two settings each, whose mini averages and development scores are given."""
    given = {
        ("talas", "asam", 2e-5, "cls"): (60.0, 70.0),
        ("talas", "asam", 1e-4, "mean"): (62.0, 68.0),
        ("cdm", "adamw", 2e-5, "cls"): (50.0, 50.0),
        ("cdm", "adamw", 1e-4, "mean"): (50.0, 51.0),
    } | changes.get("given", {})
    rows = []
    for (method, optimizer, lr, pooling), (mini, dev) in given.items():
        shared = {
            "run": f"{method}-{lr}-{pooling}",
            "table": "table1 tune",
            "method": method,
            "optimizer": optimizer,
            "lr": lr,
        }
        shared |= {"pooling": pooling, "teacher": "tiny", "seed": 42, "method_params": None}
        rows.append(shared | {"suite": "mini", "task": "movie_polarity", "split": "test", "score": 1.0})
        rows.append(shared | {"suite": "mini", "task": "avg", "split": "test", "score": mini})
        rows.append(shared | {"suite": "paper", "task": "avg", "split": "test", "score": 100 - dev})
        if dev is not None:
            rows.append(shared | {"suite": "stsb-dev", "task": "stsb_dev", "split": "dev", "score": dev})
            rows.append(shared | {"suite": "stsb-dev", "task": "stsb_dev", "split": "dev-unseen", "score": 0.0})
    return pd.DataFrame(rows)


def test_tuning_takes_the_best_mean_and_the_first_of_equal_ones() -> None:
    settings = choose(tuned())
    assert settings["criterion"].tolist() == [65.0, 65.0, 50.0, 50.5]
    chosen = settings[settings["chosen"]]
    assert list(chosen[["method", "lr", "pooling"]].itertuples(index=False, name=None)) == [
        ("talas", 2e-5, "cls"),
        ("cdm", 1e-4, "mean"),
    ]
    read_back = pd.read_csv(io.StringIO(tuned().to_csv(index=False)))
    pd.testing.assert_frame_equal(choose(read_back), settings, check_dtype=False)


def test_a_setting_without_all_scores_is_listed_and_not_chosen() -> None:
    runs = tuned()
    settings = choose(runs[~((runs["run"] == "cdm-0.0001-mean") & (runs["suite"] == "stsb-dev"))])
    assert settings["chosen"].tolist() == [True, False, True, False]
    assert math.isnan(settings["criterion"].iloc[3])
    assert len(choose(runs, table="other")) == 0


def test_what_was_chosen_as_a_table_for_the_preset() -> None:
    """The text, put behind a preset, gives its runs: method by method, at the setting chosen, with three seeds."""
    preset = "teacher: tiny\nstudent: tiny\ntasks: tiny\n\ntables:\n  tune:\n    title: Tuning\n"
    values = yaml.safe_load(preset + tuning.as_yaml(choose(tuned())))
    (table,) = [table for table in params.expand_tables(values) if table.name == "tuned"]
    runs = [(c["method"], c["optimizer"], c["teachers"], c["lr"], c["pooling"], c["seed"]) for c in table.cells]
    assert runs == [
        *(("talas", "asam", ["tiny"], 2e-5, "cls", seed) for seed in (42, 43, 44)),
        *(("cdm", "adamw", ["tiny"], 1e-4, "mean", seed) for seed in (42, 43, 44)),
    ]
    assert all(cell["min_lr"] is None for cell in table.cells)


def test_nothing_is_chosen_out_of_some_settings(capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"optimizer": ["asam"], "lr": [2.0e-5, 1.0e-4]}
    tune = {"title": "Tuning", "tasks": "mini", "beside": ["stsb-dev"], "min_lr": None, "grid": grid}
    values = study({"tune": tune})
    recorded(values, lambda number: number == 0)
    with pytest.raises(TalasError, match="1 of the 2 runs of table `tune` are not on record"):
        tuning.of(values)
    recorded(values)
    chosen = tuning.of(values)
    assert "[talas, {}, asam, [tiny], 2.0e-05, cls]" in chosen  # equal scores: the first
    with pytest.raises(TalasError, match="already"):
        tuning.of(study({"tune": tune, "tuned": tune}))
    with pytest.raises(TalasError, match="no table `tune`"):
        tuning.of(study(ONE))
    assert tuning.main(["smoke"]) == 2
    assert "no `tables`" in capsys.readouterr().err


def test_tuning_on_record() -> None:
    grid = {"optimizer": ["asam"], "lr": [2.0e-5, 1.0e-4], "pooling": ["cls", "mean"]}
    values = study({"tune": {"title": "Tuning", "tasks": "mini", "beside": ["stsb-dev"], "min_lr": None, "grid": grid}})
    partly = recorded(values, which=lambda number: number < 3)
    said = wording.tuning(choose(runs_table(partly)), partly.blocks["tune"])
    assert said.startswith("Nothing is chosen yet: 1 run lacks a score. Best of what is on record:\n\n- talas + asam")
    whole = recorded(values)
    settings = choose(runs_table(whole))
    (chosen,) = wording.tuning(settings, whole.blocks["tune"]).removeprefix("Chosen:\n\n").splitlines()
    assert chosen.startswith("- talas + asam: lr 2e-05, mean pooling")
    assert settings["mini"].tolist() == settings["stsb-dev"].tolist() == [60.0, 61.0, 60.0, 61.0]
    (place,) = np.flatnonzero(settings["chosen"])
    assert (settings["lr"][place], settings["pooling"][place]) == (2e-5, "mean")


# ---- the bootstrap, kept


def test_the_bootstrap_is_kept_and_survives_without_its_items(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 40)
    values = study(ONE)
    block = only(recorded(values, items=True))
    found = resampling.update(block, block.baseline)
    direct = spread.bootstrap_table(block, block.baseline, resamples=40)
    numbers = ["difference", "low", "high", "p"]
    pd.testing.assert_frame_equal(found, direct.assign(**direct[numbers].round(4)), check_dtype=False)
    file = result("bootstrap", "table1.csv")
    before = file.read_bytes()
    shutil.rmtree(folders / "outputs")
    monkeypatch.setattr(spread, "bootstrap_table", lambda *_, **__: pytest.fail("computed again"))
    again = resampling.update(only(Study.open(values)), block.baseline)
    pd.testing.assert_frame_equal(again, found, check_dtype=False)
    assert file.read_bytes() == before
    row = block_table(block, found).set_index("row").loc["simcse + adamw"]
    assert row["items low"] <= row["items high"] < 0
    assert row["items p"] < 0.1


def test_a_group_with_another_run_is_resampled_anew_and_the_others_are_not(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 20)
    values = study(ONE)
    block = only(recorded(values, lambda number: number != 8, items=True))  # SimCSE without its last seed
    resampling.update(block, block.baseline)
    asked: list[list[str]] = []
    original = spread.bootstrap_table
    monkeypatch.setattr(
        spread,
        "bootstrap_table",
        lambda c, b, groups, **k: asked.append(list(groups)) or original(c, b, groups=groups, **k),
    )
    whole = only(recorded(values, lambda number: number == 8, items=True))
    table = resampling.update(whole, whole.baseline).set_index(["group", "task"])
    assert asked == [["simcse + adamw"]]
    assert table.loc[("simcse + adamw", "avg"), "seeds"] == 3
    # items gone for the group that changed: it has no row, the other keeps its own
    shutil.rmtree(folders / "outputs")
    fewer = study({"table1": {**ONE["table1"], "grid": METHODS | {"seed": [42, 43, 44, 45]}}})
    on_record.keep(fewer, made_up_run(cells(fewer)[-1], lambda *_: 1.0, items=True).id)
    left = resampling.update(only(Study.open(fewer)), whole.baseline)
    assert set(left["group"]) == {"talas + asam, pooling mean"}


def test_without_items_a_table_has_no_intervals_over_items() -> None:
    block = only(recorded(study(ONE)))
    assert resampling.update(block, block.baseline).empty
    assert not result("bootstrap").exists()
    assert resampling.update(block, "nothing of this name").empty
    result("bootstrap").mkdir(parents=True)
    result("bootstrap", "table1.csv").write_text("torn")
    assert resampling.update(block, block.baseline).empty


def test_evaluation_tables_of_the_library_serve_blocks_as_well() -> None:
    block = only(recorded(study(ONE), unseen={"wic": (150, 20.0)}))
    assert len(compare.scores_table(block)) == 3 + 9
    assert compare.unseen_table(block).loc["teacher", "wic, unseen"] == 20.0
    assert compare.sharpness_table(block).empty
    assert compare.curves_table(block).empty
    assert plots.training_curves(compare.curves_table(block)).axes[0].get_title().startswith("No curves")
    means = compare.means_table(block)
    assert means.loc["talas + asam, pooling cls", "avg"] == pytest.approx(61 - 10 / 9)
    assert len(means) == 3 + 3
    assert compare.alarms(block) == {}
    assert "talas + asam, pooling mean" in compare.verdict(block)
    assert compare.summary(block, name="x")["runs"][0]["seconds"]["train"] == 90.0
    assert tabulation.tasks_of(block)[0] == "banking77"
