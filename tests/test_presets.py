"""The committed presets: what their cells are, and that each cell of a study runs, with tiny stand-ins of the same classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from talas_lib import assess, params, paths, stages, tiny
from talas_lib.graph import estimates, plan
from talas_lib.tiny_texts import tiny_sentences

STUDIES = ("cpu-study", "paper-study")
# a small random model of the same architecture, with the same pooling and padding side
TEACHERS = {
    "qwen3-0.6b": "tiny-qwen3",
    "qwen3-4b": "tiny-qwen3",
    "bge-m3": "tiny-xlmr",
    "mpnet-base": "tiny-mpnet",
    "minilm-l6": "tiny",
}
BLOCKS = {"minilm-l3": 3, "minilm-l6": 6, "minilm-l6-h384": 6, "minilm-l6-h768": 6, "bert-base": 12}
PAIRS = {("qwen3-0.6b", "minilm-l6-h384"), ("bge-m3", "minilm-l6-h768"), ("qwen3-4b", "bert-base")}
QUICK = {"corpus": "tiny", "max_sentences": 16, "epochs": 1, "batch_size": 8, "device": "cpu", "probe_every": 1}


def cells(study: str, table: str) -> list[dict[str, Any]]:
    (found,) = (t for t in params.expand_tables(params.load_preset(study)) if t.name == table)
    return list(found.cells)


# ---- what the cells are


@pytest.mark.parametrize(("study", "runs"), {"cpu-study": 175, "paper-study": 225}.items())
def test_the_distinct_runs_of_a_study(study: str, runs: int) -> None:
    of = plan.make(study)
    assert len(of.runs) == runs
    assert of.report == study
    assert not any(run.sharpness for run in of.runs)
    assert {table.paper for table in of.tables} >= {f"table{n}" for n in (1, 2, 6, 7, 8, 9)}


def test_the_papers_study_is_the_papers_protocol() -> None:
    of = plan.make("paper-study")
    assert {(run.p.teacher, run.p.student) for run in of.runs} == PAIRS
    for run in of.runs:
        p = run.p
        assert (p.epochs, p.batch_size, p.lr, p.min_lr, p.warmup, p.weight_decay) == (5, 32, 2.0e-5, 2.0e-6, 0.06, 0.01)
        assert (p.pooling, p.max_length, p.corpus, p.precision) == ("cls", 256, "talas15k", "fp32")
        assert run.suites[0] == "paper"
        assert (p.optimizer_spec.rho or 0.05) == 0.05
    talas = next(run.p for run in of.runs if run.p.method == "talas")
    assert talas.method_config.model_dump()["weight_tamd"] == 0.75


def test_the_papers_tables_have_the_papers_rows() -> None:
    methods = Counter((c["method"], c["optimizer"]) for c in cells("paper-study", "table1"))
    baselines = ("simcse", "cdm", "dskd", "jasper_stella", "distillcse", "emo")
    assert methods == dict.fromkeys([*((m, "adamw") for m in baselines), ("talas", "asam")], 3 * 3)
    anchors, pairs = (
        {(c["student"], c["method_params"][name]) for c in cells("paper-study", table)}
        for table, name in (("table7", "num_anchor_layers"), ("table8", "lasd_pairs"))
    )
    assert anchors == {("minilm-l6-h384", k) for k in (1, 2, 3, 6)} | {("bert-base", k) for k in (1, 2, 4, 6, 9, 12)}
    assert pairs == {("minilm-l6-h384", k) for k in (2, 3, "all")} | {("bert-base", k) for k in (2, 4, 6, 9, "all")}
    assert {c["optimizer"] for c in cells("paper-study", "table9")} == {"sam", "asam", "disam"}


@pytest.mark.parametrize("study", STUDIES)
def test_the_loss_table_has_every_subset_with_and_without_asam(study: str) -> None:
    names = ("weight_simcse", "weight_tamd", "weight_lasd")
    found = set()
    for cell in cells(study, "table2"):
        config = params.load_method(cell["method"], cell["method_params"]).model_dump()
        parts = (
            {"simcse"}
            if cell["method"] == "simcse"
            else {name.removeprefix("weight_") for name in names if config[name]}
        )
        found.add((frozenset(parts), cell["optimizer"], cell["seed"], cell.get("student", "minilm-l3")))
    students = 1 if study == "cpu-study" else 3
    assert len(found) == len(cells(study, "table2")) == 7 * 2 * 3 * students


def test_the_cpu_study_varies_what_its_tables_say() -> None:
    of = plan.make("cpu-study")
    fixed = {(run.p.teacher_specs[0].name, run.p.max_sentences, run.p.batch_size, run.p.precision) for run in of.runs}
    assert fixed == {("mpnet-base", 4_920, 32, "bf16")}
    assert all(run.p.min_lr == pytest.approx(0.1 * run.p.lr) for run in of.runs)
    tune = [run for run in of.runs if "tune" in run.tables]
    assert len(tune) == 11 * 3 * 2
    assert {run.p.seed for run in tune} == {42}
    assert all({"mini", "stsb-dev"} <= set(run.suites) for run in tune)
    assert sum("paper" in run.suites for run in tune) == 12 + 11  # shared with table1, and what was chosen
    assert {run.p.epochs for run in of.runs if "asam-controls" in run.tables} == {3, 6}
    tweet = [run for run in of.runs if "tweet-eval" in run.suites]
    assert {run.p.seed for run in tweet} == {42}
    assert len(tweet) == 13
    (deeper,) = {run.p.student for run in of.runs} - {"minilm-l3"}
    assert deeper == "minilm-l6"


def test_the_tuned_table_is_what_the_tuning_on_record_chose() -> None:
    chosen = pd.read_csv(paths.root() / "results/cpu-study/tables/choice.csv")
    on_record = {(row["method"], row["teacher"], row["lr"], row["pooling"]) for row in chosen.to_dict("records")}
    tuned = [run.p for run in plan.make("cpu-study").runs if "tuned" in run.tables]
    assert {(p.method, p.teacher_names, p.lr, p.pooling) for p in tuned} == on_record
    assert len(tuned) == 3 * len(on_record) == 33


def test_choosing_looks_at_no_test_split() -> None:
    (task,) = params.load_tasks("stsb-dev").tasks
    assert task.options == {"folder": "stsb", "split": "dev"}
    tested = {task.options["folder"]: task.options.get("split", "test") for task in params.load_tasks("paper").tasks}
    assert tested["stsb"] == "test"


def test_the_encoders_of_the_papers_table6_are_read_as_their_names_say() -> None:
    of = plan.make("paper-study")
    pooling = {encoder.name: params.load_teacher(encoder.name).pooling for encoder in of.encoders}
    assert pooling == {
        "unsup-simcse": "cls",
        "sup-simcse": "cls",
        "sbert-nli-mean": "mean",
        "sbert-nli-stsb-mean": "mean",
        "sbert-nli-cls": "cls",
    }
    assert {encoder.name for encoder in plan.make("cpu-study").encoders} == {"minilm-l6", "mpnet-base"}


@pytest.mark.data
def test_runs_of_the_cpu_study_keep_the_ids_they_were_made_under() -> None:
    ids = {run.run_id for run in plan.make("cpu-study").runs}
    assert {
        "minilm-l3--mpnet-base--talas--asam--s42--1d2d5a8d",  # CLS pooling
        "minilm-l3--mpnet-base--talas--asam--s42--4e796aac",  # mean pooling
        "minilm-l3--mpnet-base--talas--adamw--s42--fe2db9aa",
        "minilm-l3--mpnet-base--simcse--adamw--s42--2fa86296",
        "minilm-l3--mpnet-base--jasper_stella--adamw--s42--20f9301a",
        "minilm-l3--mpnet-base--emo--adamw--s42--7ed8d08f",
        "minilm-l3--mpnet-base--static--adamw--s42--f5ad6032",
        "minilm-l3--mpnet-base+minilm-l6--majority_vote--adamw--s42--229c9464",
    } <= ids


# ---- every cell, run to its end with stand-ins


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny students with as many blocks as those they stand for."""
    texts = [sentence.text for sentence in tiny_sentences(300, seed=0)]
    built: dict[int, Path] = {}
    for blocks in set(BLOCKS.values()):
        built[blocks] = tiny.build("bert", tmp_path_factory.mktemp(f"bert-{blocks}"), texts, layers=blocks)
    return {name: str(built[blocks]) for name, blocks in BLOCKS.items()}


@pytest.fixture(scope="module", autouse=True)
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield


def stand_in(cell: dict[str, Any], students: dict[str, str]) -> dict[str, Any]:
    """The cell with tiny models of the same architectures, a few sentences and one epoch."""
    small = {name: value for name, value in cell.items() if name not in ("tasks", "beside", "report")} | QUICK
    if cell.get("teachers"):
        small["teachers"] = [TEACHERS[name] for name in cell["teachers"]]
    else:
        small["teacher"] = TEACHERS[cell["teacher"]]
    student = small.pop("student")
    layers = params.load_student(student).layers
    assert layers is None or len(layers) == BLOCKS[student]  # the stand-in is built as deep and not cut down
    return small | {"student": "tiny", "student_source": students[student]}


def distinct(study: str) -> list[Any]:
    """A cell for every run of a study that differs in more than its seed, named by what makes it differ."""
    found: dict[str, dict[str, Any]] = {}
    for run in plan.make(study).runs:
        p = run.p
        name = f"{p.student}-{p.method}-{p.optimizer}-{p.pooling}-lr{p.lr}-{p.epochs}-{p.rho}-{p.same_dropout}-{p.method_params}"
        found.setdefault(name, run.cell)
    return [pytest.param(cell, id=f"{study}-{name}") for name, cell in found.items()]


def one_a_method() -> list[Any]:
    """The first run of each method of the paper's study, and of each optimizer."""
    found: dict[tuple[str, str], Any] = {}
    for case in distinct("paper-study"):
        (cell,) = case.values
        found.setdefault((cell["method"], cell["optimizer"]), case)
    return list(found.values())


# what methods rightly say of random teachers and of students that learn nothing
TINY = pytest.mark.filterwarnings("ignore:DistillCSE:UserWarning")


def check_cell(cell: dict[str, Any], students: dict[str, str]) -> None:
    p = params.resolve("03_train", stand_in(cell, students))
    corpus = stages.load_corpus(p)
    stages.cache_tokens(p, corpus)
    run = stages.train_run(p)
    record = run.read_record("train")
    assert record is not None
    assert record["steps"] == estimates.run_steps(p, len(corpus.texts))
    assert record["pooling"] == ("mean" if p.method == "static" else p.pooling)
    assert record["loaded_cosine"] > 0.9999
    rows = run.read_metrics()
    assert p.method == "static" or all(abs(row["loss"]) < 1e4 for row in rows)  # NaN is not less
    scored = assess.evaluate_run(run, params.load_tasks("tiny"))
    assert set(scored["references"]) == {"teacher", "untrained_cls", "untrained_mean"}


@TINY
@pytest.mark.parametrize("cell", one_a_method())
def test_a_cell_of_every_method_runs_with_stand_ins(cell: dict[str, Any], students: dict[str, str]) -> None:
    check_cell(cell, students)


@pytest.mark.slow
@TINY
@pytest.mark.parametrize("cell", [case for study in STUDIES for case in distinct(study)])
def test_every_cell_runs_with_stand_ins(cell: dict[str, Any], students: dict[str, str]) -> None:
    check_cell(cell, students)
