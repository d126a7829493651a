"""Records of a study's runs: what they hold, what counts as missing, and which files are refused."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up_study import BASE, METHODS, cells, identity, made_up_run, resolved, result, scores, study

from talas_lib import params, paths, records, runs
from talas_lib.errors import TalasError
from talas_lib.study import on_record
from talas_lib.study.blocks import Study


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("TALAS_RESULTS", str(tmp_path / "results"))
    return tmp_path


ONE: dict[str, Any] = {"one": {"title": "One", "grid": {"optimizer": ["asam", "adamw"]}}}


def kept(values: dict[str, Any], number: int = 0, **of_run: Any) -> tuple[runs.Run, dict[str, Any]]:
    run = made_up_run(cells(values)[number], lambda p, task: 50.0 + p.seed / 100, **of_run)
    on_record.keep(values, run.id)
    return run, json.loads(result("runs", f"{run.id}.json").read_text())


# ---- what is kept


def test_a_record_is_small_and_holds_what_the_tables_need() -> None:
    values = study(ONE, beside=["tweet-eval"])
    run, record = kept(values, unseen={"wic": (150, 40.0)})
    assert (record["run"], record["recipe_version"]) == (run.id, params.RECIPE_VERSION)
    assert record["params"]["given"]["optimizer"] == "asam"
    assert record["params"]["run_config"] == run.manifest["run_config"]
    assert (record["train"]["steps"], record["train"]["sentences"], record["train"]["train_s"]) == (12, 32, 90.0)
    assert (record["train"]["first"]["loss"], record["train"]["last"]["loss"]) == (1.0, round(1 / 12, 6))
    assert record["train"]["collapse"] is None
    assert list(record["suites"]) == ["paper", "tweet-eval"]
    paper = record["suites"]["paper"]
    assert paper["tasks"]["wic"]["details"] == {"unseen_n": 150, "unseen_score": 40.0}
    assert paper["tasks"]["stsb"]["score"] == 50.42
    assert (paper["suite"]["version"], paper["suite"]["precision"]) == (records.EVALUATION_VERSION, "bf16")
    assert len(json.dumps(record, indent=2)) < 9000
    assert "outputs" not in json.dumps(record)  # no path of a machine


def test_references_are_kept_once_for_the_runs_that_share_them() -> None:
    values = study({"t": {"title": "T", "grid": {"optimizer": ["asam", "adamw"], "pooling": ["cls", "mean"]}}})
    names = [kept(values, number)[1]["suites"]["paper"]["references"] for number in range(4)]
    assert all(name == names[0] for name in names)
    files = sorted(result("references").iterdir())
    assert [file.stem for file in files] == sorted(names[0].values())
    assert [file.stem.rsplit("--", 1)[0] for file in files] == [
        "paper--teacher--tiny",
        "paper--untrained-cls--tiny",
        "paper--untrained-mean--tiny",
    ]
    teacher = on_record.read_reference("made-up", names[0]["teacher"])
    assert teacher is not None
    assert (teacher["reference"], teacher["model"], teacher["avg"]) == ("teacher", "tiny", 90.0)


def test_a_reference_is_written_again_only_for_another_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    values = study(ONE)
    kept(values)
    (file,) = result("references").glob("paper--teacher--*")
    file.write_text(file.read_text().replace("90.0", "91.0"))
    kept(values, 1)
    assert '"avg": 91.0' in file.read_text()
    monkeypatch.setattr(records, "EVALUATION_VERSION", records.EVALUATION_VERSION + 1)
    kept(values, 1)
    assert '"avg": 90.0' in file.read_text()


def test_suites_of_an_earlier_record_stay_when_the_run_was_made_again(folders: Path) -> None:
    values = study(ONE)
    run, before = kept(values)
    shutil.rmtree(folders / "outputs")
    again = made_up_run({**cells(values)[0], "tasks": "tweet-eval"}, lambda *_: 12.0)
    assert again.id == run.id
    on_record.keep(values, run.id)
    record = on_record.read_run("made-up", run.id)
    assert record is not None
    assert record["suites"]["paper"] == before["suites"]["paper"]
    assert record["suites"]["tweet-eval"]["avg"] == 12.0


def test_what_is_not_finished_or_of_another_recipe_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values = study(ONE)
    run = runs.open_run(resolved(cells(values)[0]))
    with pytest.raises(TalasError, match="nothing to keep yet: execute notebooks/03_train"):
        on_record.keep(values, run.id)
    with pytest.raises(TalasError, match="no run 'minilm"):
        on_record.keep(values, run.id.replace("tiny", "minilm", 1))
    made_up_run(cells(values)[0], lambda *_: 1.0)
    monkeypatch.setattr(params, "RECIPE_VERSION", params.RECIPE_VERSION + 1)
    with pytest.raises(TalasError, match="train it anew"):
        on_record.keep(values, run.id)
    with pytest.raises(TalasError, match="wants a `report`"):
        on_record.keep({**values, "report": None}, run.id)


# ---- what is missing


def test_missing_says_which_suites_of_which_runs() -> None:
    values = study(ONE, beside=["tweet-eval"])
    ids = [resolved(cell).run_id for cell in cells(values)]
    everything = ["paper", "tweet-eval"]
    assert on_record.missing(values) == [(ids[i], cells(values)[i], everything) for i in (0, 1)]
    kept(values)
    assert [(run_id, suites) for run_id, _, suites in on_record.missing(values)] == [(ids[1], everything)]
    kept(values, 1)
    assert on_record.missing(values) == []
    more = study(ONE, beside=["tweet-eval", "stsb-dev"])
    assert [suites for _, _, suites in on_record.missing(more)] == [["stsb-dev"]] * 2


def test_a_run_of_several_tables_is_wanted_once_with_the_suites_of_all() -> None:
    asam = {"optimizer": ["asam"]}
    tables = {
        "table1": {"title": "Methods", "grid": METHODS},
        "tune": {
            "title": "Tuning",
            "tasks": "mini",
            "beside": ["stsb-dev"],
            "grid": {**asam, "pooling": ["cls", "mean"]},
        },
    }
    found = on_record.missing(study(tables))
    assert [suites for _, _, suites in found] == [["paper", "mini", "stsb-dev"]] * 2 + [["paper"]]
    tables["table1"] = {**tables["table1"], "beside": ["tweet-eval"]}
    found = on_record.missing(study(tables))
    assert found[0][2] == ["paper", "tweet-eval", "mini", "stsb-dev"]


@pytest.mark.parametrize("what", ["recipe", "version", "precision", "tasks"])
def test_a_record_of_another_recipe_or_evaluation_counts_as_missing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = study(ONE)
    run, _ = kept(values)
    if what == "recipe":
        file = result("runs", f"{run.id}.json")
        file.write_text(
            file.read_text().replace(f'"recipe_version": {params.RECIPE_VERSION}', '"recipe_version": 0', 1)
        )
    elif what == "version":
        monkeypatch.setattr(records, "EVALUATION_VERSION", records.EVALUATION_VERSION + 1)
    elif what == "precision":
        values = study(ONE, eval_precision="fp32")
    else:
        spec = params.load_tasks("paper")
        fewer = spec.model_copy(update={"tasks": spec.tasks[:-1]})
        monkeypatch.setattr(params, "load_tasks", lambda _: fewer)  # as if a task had been taken out of its file
    assert run.id in [run_id for run_id, *_ in on_record.missing(values)]


DAMAGE = {
    "torn": lambda text: text[: len(text) // 2],
    "no mapping": lambda _: "[1, 2]",
    "of another run": lambda text: text.replace('"run": "tiny', '"run": "mini', 1),
    "a part gone": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "train"}),
    "a score gone": lambda text: text.replace('"score": 50.42,', "", 1),
    "a score that is none": lambda text: text.replace('"score": 50.42,', '"score": "high",', 1),
    "a task gone": lambda text: text.replace('"wic": {', '"wick": {', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_record_is_named_and_refused(damage: str) -> None:
    values = study(ONE)
    run, _ = kept(values)
    file = result("runs", f"{run.id}.json")
    changed = DAMAGE[damage](file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    for ask in (
        lambda: on_record.missing(values),
        lambda: Study.open(values),
        lambda: on_record.keep(values, run.id),
    ):
        with pytest.raises(TalasError, match=rf"{run.id}\.json is damaged .* delete it and make it again"):
            ask()


# ---- on a machine without the corpus


def test_runs_are_found_by_their_parameters_where_the_corpus_is_not_there(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folders / "data" / "corpus"
    data.mkdir(parents=True)
    lines = "".join(json.dumps({"text": f"sentence number {i}", "source": "a"}) + "\n" for i in range(40))
    (data / "talas15k.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setenv("TALAS_DATA", str(folders / "data"))
    values = study(ONE, corpus="talas15k")
    run, _ = kept(values)
    assert len(on_record.missing(values)) == 1
    monkeypatch.delenv("TALAS_DATA")
    with pytest.raises(TalasError, match="TALAS_DATA"):
        on_record.missing(values)
    found = Study.open(values)
    assert found.cells[0].run_id == run.id
    assert "unknown" in found.cells[1].run_id
    (block,) = found.blocks["one"]
    assert block.evaluation(0)["tasks"]["wic"]["score"] == 50.42
    assert block.absent() == {"talas + adamw": [42]}


# ---- the door


def test_the_door_keeps_a_run_and_answers_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = study(ONE)
    run = made_up_run(cells(values)[0], lambda *_: 1.0)
    monkeypatch.setattr(params, "load_preset", lambda _: values)
    assert on_record.main(["keep", "any", run.id]) == 0
    assert capsys.readouterr().out.strip() == str(result("runs", f"{run.id}.json"))
    assert on_record.main(["keep", "any", "nonsense"]) == 2
    assert "is no run id" in capsys.readouterr().err


def test_the_door_does_not_load_torch() -> None:
    code = (
        "import sys; from talas_lib.study import on_record; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=paths.root()).returncode == 0


def test_an_encoder_is_kept_in_the_form_of_a_reference() -> None:
    file = on_record.keep_encoder(study(ONE), "mpnet-base", scores("paper", lambda _: 70.0), identity("paper"))
    assert file == result("encoders", "mpnet-base.json")
    record = on_record.read_reference("made-up", "mpnet-base", "encoders")
    assert record is not None
    assert (record["reference"], record["model"], record["avg"]) == ("encoder", "mpnet-base", 70.0)
    assert on_record.is_current(record, "paper", BASE["eval_precision"])
    assert not on_record.is_current(record, "paper", "fp32")
