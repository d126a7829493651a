"""The resolved object: precedence, what identifies a run, what does not, and grids."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from talas_lib import params, runs
from talas_lib.errors import TalasError
from talas_lib.params import recipe

TINY = {"teacher": "tiny", "student": "tiny", "corpus": "tiny", "tasks": "tiny"}


def train(**values: Any) -> params.ResolvedParams:
    base = {name: value for name, value in TINY.items() if name != "teacher" or "teachers" not in values}
    return params.resolve("03_train", base | values)


# ---- precedence


def test_default_then_file_then_given() -> None:
    p = train()
    assert (p.epochs, p.origins["epochs"]) == (5, "default")
    assert (p.rho, p.origins["rho"]) == (0.05, "optimizers/asam")
    assert (p.pooling, p.origins["pooling"]) == ("cls", "students/tiny")
    assert (p.min_lr, p.origins["min_lr"]) == (2.0e-6, "lr")
    q = train(rho=2, pooling="mean", min_lr=0, max_length=32, same_dropout=True, eta=0.01)
    assert (q.rho, q.optimizer_spec.rho, q.origins["rho"]) == (2.0, 2.0, "given")
    assert (q.pooling, q.student_spec.pooling) == ("mean", "mean")
    assert q.teacher_spec.pooling == "mean"  # the teacher's own; `pooling` is the student's
    assert q.min_lr == 0.0
    assert (q.student_spec.max_length, q.teacher_spec.max_length) == (32, 32)
    assert q.optimizer_spec.same_dropout is True
    assert q.optimizer_spec.eta == 0.01


def test_without_a_max_length_each_model_keeps_its_own() -> None:
    p = params.resolve("03_train", {"teacher": "minilm-l6", "student": "tiny"})
    assert p.max_length is None
    assert (p.teacher_spec.max_length, p.student_spec.max_length) == (256, 64)


def test_min_lr_is_a_tenth_without_rounding_noise() -> None:
    """0.1 * 3e-4 is 3.0000000000000004e-05: the same schedule would get another id."""
    assert train(lr=2.0e-5).run_id == train(lr=2.0e-5, min_lr=2.0e-6).run_id
    assert train(lr=3.0e-4).run_id == train(lr=3.0e-4, min_lr=3.0e-5).run_id


def test_the_object_is_frozen() -> None:
    p = train()
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.notebook = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        p.values["lr"] = 1.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.lr = 1.0
    p.method_params["temperature"] = 1.0  # a copy
    assert p.method_params == {}
    config = p.run_config()
    config["lr"] = 1.0
    assert p.run_config()["lr"] == 2.0e-5


def test_defaults_are_not_shared_between_objects() -> None:
    given = {"num_anchor_layers": 1}
    p = train(method_params=given)
    given["num_anchor_layers"] = 3
    assert p.method_params == {"num_anchor_layers": 1}


def test_attributes_that_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="03_train has no parameter 'run'"):
        _ = train().run
    with pytest.raises(AttributeError, match="Did you mean 'epochs'"):
        _ = train().epocs
    with pytest.raises(TalasError, match="04_evaluate has no parameter 'teacher'"):
        _ = params.resolve("04_evaluate", {}).teacher_spec
    with pytest.raises(TalasError, match="01_data trains nothing: it has no teacher"):
        params.resolve("01_data", {}).run_config()


def test_the_summary_names_values_origins_and_specs() -> None:
    text = train(lr=1e-4, rho=0.5, grid={}).summary()
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["lr"].split() == ["lr", "0.0001", "given"]
    assert lines["min_lr"].split() == ["min_lr", "1.0e-5", "from", "lr"]
    assert lines["eta"].split() == ["eta", "0.0", "params/optimizers/asam.yaml"]
    assert lines["epochs"].split() == ["epochs", "5", "default"]
    assert "not used: not a parameter of 03_train" in lines["grid"]
    assert "teacher: tiny, random bert, mean pooling, 64 tokens" in text
    assert "optimizer: asam, rho 0.5, eta 0.0" in text


@pytest.mark.parametrize("notebook", params.notebook_names())
def test_every_notebook_summarises_and_survives_json(notebook: str) -> None:
    p = params.resolve(notebook, {})
    assert p.summary()
    back = params.from_dict(json.loads(json.dumps(p.to_dict())))
    assert back == p
    assert back.summary() == p.summary()


def test_read_back_it_keeps_the_recorded_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Params files and the recipe may have changed since the run was made."""
    p = train()
    saved = json.loads(json.dumps({"params": p.to_dict(), "run_config": p.run_config()}))
    monkeypatch.setattr(recipe, "RECIPE_VERSION", 99)
    assert train().run_id != p.run_id
    assert params.from_dict(saved["params"], saved["run_config"]).run_id == p.run_id


# ---- identity


def test_the_run_id_is_readable_and_safe() -> None:
    p = params.resolve("03_train", {"teacher": "minilm-l6", "method": "simcse", "optimizer": "asam-kwon", "seed": 7})
    names, digest = p.run_id.rsplit("--", 1)
    assert names == "minilm-l3--minilm-l6--simcse--asam-kwon--s7"
    assert len(digest) == 8
    assert digest == params.config_hash(p.run_config())[:8]
    assert set(p.run_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")


def test_the_hash_of_a_known_configuration() -> None:
    """sha256 of {"a":[1,2.5,null],"b":{"c":true}}, keys in either order: ids of old runs depend on it."""
    one = params.config_hash({"a": [1, 2.5, None], "b": {"c": True}})
    assert one == params.config_hash({"b": {"c": True}, "a": [1, 2.5, None]})
    assert one != params.config_hash({"a": [2.5, 1, None], "b": {"c": True}})
    assert one == "01bc6dbe7d8645133c03ac4f8a6a4059435199467e7ce0f8f5a99004daaaf735"


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "tiny-xlmr"},
        {"teachers": ["tiny-xlmr"]},
        {"student": "minilm-l3"},
        {"corpus": "mini"},
        {"max_sentences": 10},
        {"hold_out": 0.1},
        {"method": "simcse"},
        {"method_params": {"num_anchor_layers": 1}},
        {"optimizer": "sam"},
        {"rho": 0.5},
        {"eta": 0.01},
        {"same_dropout": True},
        {"perturb_heads": False},
        {"pooling": "mean"},
        {"seed": 43},
        {"epochs": 4},
        {"batch_size": 16},
        {"lr": 1.0e-4},
        {"min_lr": 0.0},
        {"warmup": 0.1},
        {"weight_decay": 0.0},
        {"max_length": 32},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_training_changes_the_id(change: dict[str, Any]) -> None:
    assert train(**change).run_id != train().run_id


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cpu"},
        {"checkpoint_every": 1},
        {"probe_every": 0},
        {"nonfinite": "skip"},
        {"keep_epochs": [1]},
        {"sharpness_batches": 2},
        {"report": "x"},
        {"grid": {"seed": [1]}},
        {"tasks": "mini"},
        {"rho": 0.05},  # as in the file
        {"pooling": "cls"},
        {"max_length": 64},
        {"method_params": {"temperature": 0.1}},
        {"teachers": ["tiny"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_change_training_does_not(change: dict[str, Any]) -> None:
    assert train(**change).run_id == train().run_id


def test_every_notebook_name_is_sorted_into_one_of_the_two() -> None:
    """A parameter added later must be decided on: does it change training?"""
    neutral = {
        "device",
        "checkpoint_every",
        "probe_every",
        "nonfinite",
        "teacher_source",
        "student_source",
        "keep_epochs",
    }
    of_a_table = {"text_column", "source_column"}  # tested in test_params_corpora.py
    changing = set(params.resolve("03_train", {}).values) - neutral - of_a_table
    tested = {next(iter(m)) for m in test_what_changes_training_changes_the_id.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert tested == changing


def test_the_held_out_suite_is_part_of_a_built_corpus() -> None:
    """Its test texts are left out, so another suite means other training sentences."""
    mini = params.load_corpus_spec("mini")
    assert mini.held_out == "mini"
    found = {
        suite: params.config_hash(params.corpus_identity(mini.model_copy(update={"held_out": suite})))
        for suite in ("mini", "tiny", None)
    }
    assert len(set(found.values())) == 3


def test_a_method_without_teacher_is_the_same_training_for_any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = train(method="simcse"), train(method="simcse", teacher="tiny-xlmr")
    assert one.run_config() == two.run_config()
    assert one.run_config()["teacher"] is None


def test_order_of_values_and_ints_for_floats_do_not_matter() -> None:
    one = params.resolve("03_train", {"lr": 1, "seed": 3, "rho": 1})
    two = params.resolve("03_train", {"rho": 1.0, "seed": 3, "lr": 1.0})
    assert one.run_id == two.run_id


def test_paths_do_not_matter_but_contents_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str, weights: str = "w", text: str = "text\nhello\nworld\n") -> params.ResolvedParams:
        home = tmp_path / folder
        home.mkdir()
        for name, content in {
            "config.json": '{"model_type": "bert"}',
            "tokenizer.json": "{}",
            "model.safetensors": weights,
            "mine.csv": text,
        }.items():
            (home / name).write_text(content)
        return train(teacher_source=str(home), student_source=str(home), corpus=str(home / "mine.csv"))

    here, there = run("a"), run("b")
    assert here.run_id == there.run_id
    assert str(tmp_path) not in json.dumps(here.run_config())
    assert run("c", weights="v").run_id != here.run_id
    assert run("d", text="text\nhello\nthere\n").run_id != here.run_id
    data = tmp_path / "data" / "corpus"
    data.mkdir(parents=True)
    (data / "talas15k.jsonl.gz").write_bytes(b"rows")
    monkeypatch.setenv("TALAS_DATA", str(tmp_path / "data"))
    assert str(tmp_path) not in json.dumps(train(corpus="talas15k").run_config())


def test_a_new_recipe_is_a_new_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = train().run_id
    assert train().run_config()["recipe_version"] == params.RECIPE_VERSION
    monkeypatch.setattr(recipe, "RECIPE_VERSION", params.RECIPE_VERSION + 1)
    assert train().run_id != before


def test_the_short_notebook_agrees_with_the_training_notebook() -> None:
    """00 leaves out parameters that then count with their defaults."""
    quick = params.resolve("00_quickstart", TINY)
    same = train(epochs=quick.epochs, lr=quick.lr, max_sentences=quick.max_sentences)
    assert quick.run_id == same.run_id == params.resolve("03_train", dict(quick.given)).run_id
    several = {"teachers": ["tiny", "tiny-xlmr"], "method": "majority_vote", "student": "tiny", "corpus": "tiny"}
    quick = params.resolve("00_quickstart", several)
    assert params.resolve("03_train", dict(quick.given)).run_id == quick.run_id


# ---- several teachers

PAIR = ["tiny", "tiny-xlmr"]
READING = {"model", "pooling", "padding_side", "prompt", "max_length", "attention", "normalize"}


def several(*names: str, **values: Any) -> params.ResolvedParams:
    return train(teachers=list(names), method="majority_vote", **values)


def test_several_teachers_are_one_run_with_all_of_them_in_order() -> None:
    p = several(*PAIR)
    assert [spec.name for spec in p.teacher_specs] == PAIR
    assert (p.teacher, p.teacher_spec, p.teacher_names) == ("tiny", p.teacher_specs[0], "tiny+tiny-xlmr")
    assert p.run_id.startswith("tiny--tiny+tiny-xlmr--majority_vote--")
    assert runs.check_run_id(p.run_id) == p.run_id
    config = p.run_config()
    assert [teacher["model"]["arch"] for teacher in config["teachers"]] == ["bert", "xlm-r"]
    assert "teacher" not in config
    assert several(*reversed(PAIR)).run_id != p.run_id
    assert several(*PAIR, max_length=16).teacher_specs[1].max_length == 16


def test_one_teacher_in_a_list_is_the_run_of_that_teacher() -> None:
    """Ids of runs from before there was a list of teachers stay as they were."""
    one, same = train(teacher="tiny-xlmr"), train(teachers=["tiny-xlmr"])
    assert one.run_id == same.run_id == train(teacher="tiny-xlmr", teachers=[]).run_id
    assert one.run_config() == same.run_config()
    assert set(one.run_config()["teacher"]) == READING
    assert (same.teacher, same.origins["teacher"]) == ("tiny-xlmr", "teachers")
    assert same.given_values()["teachers"] == ["tiny-xlmr"]
    assert "teacher" not in same.given_values()


def test_several_teachers_survive_json_and_the_summary() -> None:
    p = several(*PAIR)
    back = params.from_dict(json.loads(json.dumps(p.to_dict())))
    assert back == p
    assert back.run_id == p.run_id
    lines = p.summary().splitlines()
    assert sum(line.startswith("teacher: ") for line in lines) == 2
    assert any(line.split() == ["teacher", "tiny", "from", "teachers"] for line in lines)


def test_parameters_recorded_before_there_were_several_teachers() -> None:
    saved = json.loads(json.dumps(train().to_dict()))
    for part in ("values", "given", "origins"):
        del saved[part]["teachers"]
    back = params.from_dict(saved)
    assert (back.teachers, back.teacher_specs) == ([], train().teacher_specs)
    assert back.run_id == train().run_id


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"teacher": "tiny", "teachers": PAIR}, ["teacher is 'tiny'", "give one of the two", "-y 'teachers"]),
        ({"teacher_source": "./x", "teachers": PAIR}, ["teacher_source is './x'", "into the list itself"]),
        ({"teachers": ["tiny", "tiny-xlmr", "tiny"]}, ["'tiny' is in it twice"]),
        ({"teacher": "tiny"}, ["'majority_vote' learns from 2 or more teachers, here are 1 (tiny)", "-y 'teachers"]),
        ({"teachers": PAIR, "method": "talas"}, ["'talas' learns from 1 teacher, here are 2", "majority_vote"]),
    ],
    ids=["both", "source", "twice", "too-few", "too-many"],
)
@pytest.mark.parametrize("notebook", ["02_cache_teacher", "03_train", "06_compare"])
def test_teachers_that_do_not_fit_are_refused(notebook: str, values: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(TalasError) as caught:
        params.resolve(notebook, {"method": "majority_vote", "corpus": "tiny"} | values)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_vectors_of_several_teachers_can_be_cached_whatever_trains_on_them() -> None:
    assert len(params.resolve("02_cache_teacher", {"teachers": PAIR}).teacher_specs) == 2
    without = params.resolve("02_cache_teacher", {"teachers": PAIR, "method": "simcse"})
    assert not without.needs_teacher
    assert len(without.teacher_specs) == 2


def test_every_teacher_of_several_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    several(*PAIR).check_available()
    with pytest.raises(TalasError, match="teacher 'qwen3-4b'"):
        several("tiny", "qwen3-4b").check_available()


def test_a_grid_over_teachers() -> None:
    grid = {"method, teachers": [["talas", ["tiny"]], ["majority_vote", PAIR]]}
    cells = params.expand_grid({"student": "tiny", "corpus": "tiny", "grid": grid})
    assert [params.resolve("03_train", cell).teacher_names for cell in cells] == ["tiny", "tiny+tiny-xlmr"]
    varied = {"method": "majority_vote", "teachers": PAIR, "grid": {"teachers": [PAIR, PAIR[::-1]]}}
    cells = params.expand_grid(params.resolve("06_compare", varied).given_values())
    assert [cell["teachers"] for cell in cells] == [PAIR, PAIR[::-1]]


def test_a_folder_may_be_among_several_teachers(tiny_encoder_folder: Any) -> None:
    folder = str(tiny_encoder_folder("qwen3"))
    p = several("tiny", folder)
    p.check_available()
    assert p.run_config()["teachers"][1]["model"]["kind"] == "local"
    assert folder not in json.dumps(p.run_config())
    assert runs.check_run_id(p.run_id) == p.run_id
    with pytest.raises(TalasError, match="is in it twice"):
        several(folder, folder + "/")


# ---- presets and grids


@pytest.mark.parametrize("name", params.available("presets"))
def test_every_preset_resolves_in_every_notebook(name: str) -> None:
    values = params.load_preset(name)
    assert values["report"] == name
    cells = params.expand_grid(values)
    identities = {json.dumps({k: str(v) for k, v in cell.items()}): cell for cell in cells}
    assert len(identities) == len(cells) >= 2 or "tables" in values  # tables may share cells
    some = list(identities.values())[:: max(1, len(identities) // 20)]  # test_presets resolves all of them for training
    for notebook in params.notebook_names():
        for cell in some:
            p = params.resolve(notebook, cell)
            assert set(p.unused) <= set(values) | set(cell) | {"rho"}


def test_the_quickstart_compares_two_optimizers_on_the_embedded_default() -> None:
    asam, adamw = (params.resolve("03_train", c) for c in params.expand_grid(params.load_preset("quickstart")))
    assert asam.run_id.startswith("minilm-l3--minilm-l6--talas--asam--s42--")
    assert adamw.run_id.startswith("minilm-l3--minilm-l6--talas--adamw--s42--")
    for p in (asam, adamw):
        assert (p.pooling, p.epochs, p.lr, p.corpus) == ("mean", 2, 1.0e-4, "mini")
        p.check_available()  # with HF_HUB_OFFLINE: needs no hub


def test_the_grid_is_a_product_last_key_fastest() -> None:
    cells = params.expand_grid({"lr": 1.0, "grid": {"optimizer": ["asam", "adamw"], "seed": [1, 2]}})
    assert cells == [
        {"lr": 1.0, "optimizer": "asam", "seed": 1},
        {"lr": 1.0, "optimizer": "asam", "seed": 2},
        {"lr": 1.0, "optimizer": "adamw", "seed": 1},
        {"lr": 1.0, "optimizer": "adamw", "seed": 2},
    ]
    assert params.expand_grid({"lr": 1.0}) == [{"lr": 1.0}]


def test_names_that_vary_together() -> None:
    cells = params.expand_grid({"grid": {"teacher, student": [["a", "b"], ["c", "d"]], "seed": [1]}})
    assert cells == [{"teacher": "a", "student": "b", "seed": 1}, {"teacher": "c", "student": "d", "seed": 1}]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"sede": [1]}, "no parameter 'sede' to vary. Did you mean 'seed'"),
        ({"grid": [1]}, "no parameter 'grid'"),
        ({"seed": 1}, r"seed is 1, expected a list of values, such as seed: \[42\]"),
        ({"seed": []}, "expected a list"),
        ({"seed": ["1"]}, "seed is '1'"),
        ({"lr": ["1e-4"]}, "write 1.0e-4"),
        ({"teacher, student": [["a"]]}, "expected a list of 2 values"),
        ({"teachers": ["a", "b"]}, r"expected a list of lists, such as teachers: \[\[one, two\], \[one\]\]"),
        ({"teachers": [["a", 1]]}, "teachers has the entry 1"),
        ("optimizer", "expected a mapping"),
    ],
)
def test_a_grid_that_cannot_be_used(grid: Any, message: str) -> None:
    with pytest.raises(TalasError, match=message):
        params.expand_grid({"grid": grid})


def test_what_06_was_given_gives_back_the_runs_of_03() -> None:
    """Values filled in from the optimizer's file must not leak into the other cells of the grid."""
    preset = params.load_preset("smoke") | {"grid": {"optimizer": ["asam", "asam-kwon", "adamw"]}}
    p = params.resolve("06_compare", preset)
    via_06 = [params.resolve("03_train", c).run_id for c in params.expand_grid(p.given_values())]
    assert via_06 == [params.resolve("03_train", c).run_id for c in params.expand_grid(preset)]
    assert "rho" not in p.given_values()


def test_a_folder_of_the_users_is_a_teacher(tmp_path, tiny_encoder_folder):
    """`-p teacher ./my_teacher`: named after the folder, pooled as it declares, a run of its own by content."""
    import shutil

    folder = tmp_path / "My Teacher_v2"
    shutil.copytree(tiny_encoder_folder("qwen3"), folder)
    values = {"teacher": str(folder), "student": "tiny", "corpus": "tiny"}
    p = params.resolve("03_train", values)
    p.check_available()
    assert (p.teacher_spec.name, p.teacher_spec.pooling, p.teacher_spec.dim) == ("my-teacher-v2", "auto", None)
    assert p.run_id.startswith("tiny--my-teacher-v2--talas--")
    shutil.copytree(tiny_encoder_folder("bert"), tmp_path / "other" / "My Teacher_v2")
    other = params.resolve("03_train", values | {"teacher": str(tmp_path / "other" / "My Teacher_v2")})
    assert other.run_id != p.run_id
    with pytest.raises(TalasError, match=r"no folder .*nowhere"):
        params.resolve("03_train", values | {"teacher": str(tmp_path / "nowhere")}).check_available()
