"""What users get wrong, at every door: generated from the schemas, and by hand for the rest. Each is answered before a model
loads, with the value and the way out, and leaves no file behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel

from talas_lib import methods, params, paths, sources
from talas_lib.errors import TalasError
from talas_lib.params.specs import CorpusSpec, OptimizerSpec, StudentSpec, TaskSpec, TaskSuiteSpec, TeacherSpec
from talas_lib.params.vocabulary import VOCABULARY, Parameter

# ---- notebook parameters, from the vocabulary

WRONG_TYPES: dict[str, list[Any]] = {
    "str": [3, 0.5, True, ["x"], {"x": 1}, "", "  "],
    "int": ["three", "3", "", 2.5, True, [3], {"x": 3}],
    "float": ["half", "0.5", "1e-4", "", True, [0.5], {"x": 1.0}],
    "bool": ["yes", "True", 1, 0.0, [], {}],
    "list": ["x", 3, True, {"x": 1}, [0.5], [True], [["x"]]],
    "dict": ["x", 3, True, ["x"]],
}
WRONG_ENTRIES: dict[str, list[Any]] = {"str": [[3], ["x", ""]], "int": [["x"], ["3"], [-1]]}


def out_of_range(parameter: Parameter) -> Iterator[Any]:
    if parameter.type in ("int", "float"):
        yield from (float("inf"), float("nan")) if parameter.type == "float" else ()
        step = 1 if parameter.type == "int" else 1e-3
        if parameter.low is not None:
            yield parameter.low - step
        if parameter.above is not None:
            yield from (parameter.above, parameter.above - step)
        if parameter.high is not None:
            yield parameter.high + step
    if parameter.choices:
        yield from ("nonsense", parameter.choices[0].upper(), parameter.choices[0] + "x")
    if parameter.folder:
        yield from ("../elsewhere", "/absolute", "a/b", "..", ".hidden", "cache", "a\\b", "a\x00b")


def misspelt(name: str, rng: random.Random) -> str:
    """One letter dropped, doubled or swapped, to something that is no other name."""
    while True:
        i = rng.randrange(len(name))
        changed = rng.choice([name[:i] + name[i + 1 :], name[:i] + name[i] + name[i:], name[:i] + "q" + name[i + 1 :]])
        if changed not in VOCABULARY and changed.isidentifier():
            return changed


def notebook_of(name: str) -> str:
    return next(notebook for notebook in params.notebook_names() if name in params.notebook_schema(notebook).names)


def bad_values() -> list[tuple[str, str, Any]]:
    """(notebook, name, value) for every parameter."""
    found = []
    for parameter in VOCABULARY.values():
        wrong = [*WRONG_TYPES[parameter.type], *out_of_range(parameter), *([] if parameter.optional else [None])]
        wrong += WRONG_ENTRIES[parameter.entries] if parameter.type == "list" else []
        found += [(notebook_of(parameter.name), parameter.name, value) for value in wrong]
    return found


def complaint(notebook: str, values: dict[str, Any]) -> str:
    with pytest.raises(TalasError) as caught:
        params.resolve(notebook, values)
    return str(caught.value)


def test_every_parameter_refuses_wrong_types_and_values_out_of_range() -> None:
    cases = bad_values()
    assert len(cases) > 300
    for notebook, name, value in cases:
        said = complaint(notebook, {name: value})
        what = f"{name}={value!r}: {said}"
        assert name in said, what
        shown = value[-1] if isinstance(value, list) and VOCABULARY[name].type == "list" and value else value
        assert repr(shown) in said or repr(value) in said or repr(float(value)) in said, what
        assert any(way in said for way in ("Accepted", "expected", "write", "leave it out", "such as")), what


def test_every_misspelt_name_is_answered_with_the_right_one() -> None:
    rng = random.Random(1)
    for name in VOCABULARY:
        for _ in range(3):
            wrong = misspelt(name, rng)
            said = complaint(notebook_of(name), {wrong: 1})
            assert f"no parameter '{wrong}'" in said
            assert len(name) < 4 or "Did you mean" in said, said


FIRST_CELLS = """
import json, os, sys
from pathlib import Path
import nbformat
from talas_lib import params
from talas_lib.errors import TalasError

missed = []
cells = {}
for notebook, lines in json.loads(sys.stdin.read()):
    if notebook not in cells:
        book = nbformat.read(f"notebooks/{notebook}.ipynb", as_version=4)
        code = [c.source for c in book.cells if c.cell_type == "code"]
        working = next(c for c in code if "from_notebook" in c)
        cells[notebook] = params.parameters_cell(notebook), working
    own, working = cells[notebook]
    injected = "# Parameters\\n" + lines
    scope = {"In": ["", own, injected, working], "__name__": "__main__"}
    try:
        for cell in (own, injected, working):
            exec(cell, scope)
        missed.append([notebook, lines, "accepted"])
    except TalasError:
        pass
    except BaseException as error:
        missed.append([notebook, lines, repr(error)])
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps({"missed": missed, "heavy": heavy, "files": os.path.exists(os.environ["TALAS_OUTPUTS"])}))
"""


def test_the_first_working_cell_of_every_notebook_refuses_all_of_them(tmp_path: Path) -> None:
    """As papermill would inject them, in one process: all are refused, torch is not loaded, and no folder is made."""
    rng = random.Random(2)
    cases = [
        (notebook, f"{name} = {value!r}")
        for notebook, name, value in bad_values()
        if not (
            (isinstance(value, float) and abs(value) == float("inf")) or value != value
        )  # papermill writes float('nan')
    ]
    cases += [(notebook_of(name), f"{misspelt(name, rng)} = 1") for name in VOCABULARY]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CELLS],
        input=json.dumps(cases),
        cwd=paths.root(),
        env=os.environ | {"TALAS_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"missed": [], "heavy": [], "files": False}


# ---- files of params/, from their models

FILES: list[tuple[str, str, type[BaseModel]]] = [
    ("teachers", "tiny", TeacherSpec),
    ("students", "tiny", StudentSpec),
    ("corpora", "tiny", CorpusSpec),
    ("optimizers", "asam", OptimizerSpec),
    ("tasks", "tiny", TaskSuiteSpec),
    *(("methods", name, methods.config_class(name)) for name in methods.available()),
]
LOAD: dict[str, Any] = {
    "teachers": params.load_teacher,
    "students": params.load_student,
    "corpora": params.load_corpus_spec,
    "optimizers": params.load_optimizer,
    "tasks": params.load_tasks,
    "methods": params.load_method,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ in a project of its own, current folder inside it, outputs not there."""
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def members(annotation: Any) -> list[Any]:
    """The types a field accepts, unions and annotations taken apart."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(annotation) for m in members(arg)]
    if origin is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    return [annotation]


def wrong_for(annotation: Any) -> list[Any]:
    """Values of YAML that no type of the annotation takes."""
    kinds = {typing.get_origin(m) or m for m in members(annotation)}
    texts = {str} & kinds
    found: list[Any] = [] if texts else ["nonsense"]
    found += [] if kinds & {list, tuple, set, frozenset} or Any in kinds else [["x"]]
    found += [] if kinds & {dict, Any} or any(hasattr(k, "model_fields") for k in kinds) else [{"x": 1}]
    found += [] if kinds & {int, float} else [7]
    found += [] if bool in kinds else [True]
    found += [] if float in kinds else [0.25]
    return found if Literal not in kinds else [*found, "nonsense"]


def beyond(field: Any) -> list[Any]:
    """Values past the bounds a field states."""
    found = []
    for bound in field.metadata:
        for attribute, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if getattr(bound, attribute, None) is not None:
                found.append(getattr(bound, attribute) + step)
    return found


@pytest.mark.parametrize(("kind", "name", "model"), FILES, ids=lambda part: part if isinstance(part, str) else "")
def test_every_key_of_a_file_refuses_what_is_not_meant_for_it(
    kind: str, name: str, model: type[BaseModel], project: Path
) -> None:
    """Wrong type, out of range, misspelt; the file, the line, the key and the value are in the message."""
    file = project / "params" / kind / f"{name}.yaml"
    written = yaml.safe_load(file.read_text())
    rng, count = random.Random(3), 0
    for key, field in model.model_fields.items():
        if key == "name":
            continue
        for value in [*wrong_for(field.annotation), *beyond(field)]:
            said = refused(kind, name, file, written | {key: value})
            assert f"params/{kind}/{name}.yaml, line" in said, said
            assert key in said, said
            assert repr(value) in said or "x" in said, said
            count += 1
        wrong = misspelt(key, rng)
        if wrong not in model.model_fields:
            said = refused(
                kind, name, file, {k: v for k, v in written.items() if k != key} | {wrong: written.get(key, 1)}
            )
            assert f"unknown key '{wrong}'" in said or "missing" in said, said
            count += 1
    assert count >= len(model.model_fields)
    assert not (project / "outputs").exists()


def refused(kind: str, name: str, file: Path, values: dict[str, Any]) -> str:
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(TalasError) as caught:
        LOAD[kind](name)
    return str(caught.value)


def test_every_key_of_a_task_refuses_what_is_not_meant_for_it(project: Path) -> None:
    file = project / "params" / "tasks" / "tiny.yaml"
    written = yaml.safe_load(file.read_text())
    for key, field in TaskSpec.model_fields.items():
        for value in wrong_for(field.annotation):
            changed = {**written, "tasks": [{**written["tasks"][0], key: value}, *written["tasks"][1:]]}
            said = refused("tasks", "tiny", file, changed)
            assert key in said, said
            assert "params/tasks/tiny.yaml, line" in said, said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: !!python/object/apply:os.system ['touch hacked']", "line 1: a tag (!...) is not accepted"),
        ("teacher: !include other.yaml", "a tag (!...) is not accepted"),
        ("a: &a [x]\nb: *a", "an anchor (&...) is not accepted"),
        ("lr: 1.0e-4\nlr: 2.0e-4", "the key 'lr' was given on line 1 already"),
        ("- lr\n- 3", "expected `key: value` lines"),
        ("lr: [1.0e-4", "is not readable as YAML"),
        ("lr: 1.0e-4\n\tepochs: 3", "is not readable as YAML"),
        ("no: 3", "the key 'no' is not text"),
        ("report: ../../elsewhere", "report is '../../elsewhere'"),
        ("\x00", "is not readable as YAML"),
        ("a: " + "[" * 100_000, "is not readable as YAML"),
    ],
)
def test_yaml_is_data_alone(text: str, message: str, project: Path) -> None:
    (project / "params" / "presets" / "mine.yaml").write_text(text)
    with pytest.raises(TalasError) as caught:
        params.load_preset("mine")
    assert message in str(caught.value)
    assert "params/presets/mine.yaml" in str(caught.value)
    assert not (project / "hacked").exists()


def test_a_preset_that_is_not_utf8_is_named(project: Path) -> None:
    (project / "params" / "presets" / "mine.yaml").write_bytes(b"report: caf\xe9")
    with pytest.raises(TalasError, match=r"mine\.yaml is not readable"):
        params.load_preset("mine")


@pytest.mark.parametrize(
    "name", ["../presets/smoke", "/etc/passwd", "smoke.yaml", "SMOKE", "", "smoke/", "..", "a\x00b"]
)
def test_presets_are_names_and_no_paths(name: str) -> None:
    with pytest.raises(TalasError, match="unknown preset"):
        params.load_preset(name)


@pytest.mark.parametrize("kind", ["teachers", "students", "corpora", "optimizers", "tasks", "methods"])
@pytest.mark.parametrize("extra", ["!!python/object/apply:os.system ['touch hacked']", "!!binary eA==", "&x y", "[*x]"])
def test_no_file_of_params_takes_tags_or_anchors(kind: str, extra: str, project: Path) -> None:
    name = next(name for of, name, _ in FILES if of == kind)
    file = project / "params" / kind / f"{name}.yaml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, f"extra: {extra}"]))
    with pytest.raises(TalasError) as caught:
        LOAD[kind](name)
    assert f"params/{kind}/{name}.yaml, line {len(lines) + 1}: a" in str(caught.value)
    assert not (project / "hacked").exists()


@pytest.mark.parametrize("door", ["-f", "-y"])
def test_papermill_takes_no_code_in_yaml(door: str, tmp_path: Path) -> None:
    """It reads its arguments itself, before there is a kernel: such a tag ends the call."""
    text = f"lr: !!python/object/apply:os.system ['touch {tmp_path}/hacked']"
    (tmp_path / "values.yaml").write_text(text)
    given = str(tmp_path / "values.yaml") if door == "-f" else text
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "notebooks/03_train.ipynb", str(tmp_path / "out.ipynb"), door, given],
        cwd=paths.root(),
        env=os.environ | {"TALAS_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode != 0
    assert "could not determine a constructor for the tag" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["values.yaml"]


# ---- names that are paths

CLIMBING = ["../presets/smoke", "../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "~", "a\\b", "a\x00b", "tiny.yaml"]
NAMES = [("optimizer", "optimizer"), ("method", "method"), ("tasks", "task suite"), ("student", "student")]


@pytest.mark.parametrize("value", CLIMBING)
@pytest.mark.parametrize(("name", "what"), NAMES)
def test_names_of_files_are_no_paths(
    name: str, what: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    assert f"unknown {what} {value!r}" in complaint(notebook_of(name), {name: value})
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("value", CLIMBING)
@pytest.mark.parametrize("name", ["teacher", "corpus"])
def test_paths_lead_to_model_folders_and_text_tables_only(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a path is meant, another kind of file is refused by its name."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    with pytest.raises(TalasError) as caught:
        params.resolve("03_train", {name: value}).check_available()
    said = str(caught.value)
    assert repr(value) in said or value in said or str(paths.locate(value)) in said, said
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("value", [*CLIMBING, "tiny\n"])
def test_suites_beside_and_tables_have_names_and_no_paths(value: str, project: Path) -> None:
    if value != "tiny\n":  # read without the blanks around it
        assert f"unknown task suite {value!r}" in complaint("06_compare", {"beside": [value]})
    preset = yaml.safe_load((project / "params" / "presets" / "smoke.yaml").read_text())
    tables = {value: {"title": "x", "grid": preset.pop("grid")}}
    (project / "params" / "presets" / "mine.yaml").write_text(yaml.safe_dump(preset | {"tables": tables}))
    if value == "tiny.yaml":
        params.load_preset("mine")  # a name with a dot in it
        return
    with pytest.raises(TalasError, match="names no table") as caught:
        params.load_preset("mine")
    assert repr(value) in str(caught.value)


# ---- model folders


@pytest.fixture
def model(tmp_path: Path, tiny_encoder_folder: Any) -> Path:
    """A whole model folder, to be spoilt."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder_folder("bert"), folder)
    return folder


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


def with_code(folder: Path) -> None:
    """A model class of its own, which would leave a file where it was imported."""
    (folder / "mine.py").write_text("open('executed', 'w').close()\nclass Mine: pass\n")
    change_config(folder, model_type="mine", auto_map={"AutoModel": "mine.Mine", "AutoConfig": "mine.Mine"})


def with_module(folder: Path) -> None:
    """A module of sentence-transformers that is code of the folder."""
    (folder / "mine.py").write_text("open('executed', 'w').close()\nclass Mine: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Mine", "type": "mine.Mine"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Mine").mkdir()
    (folder / "2_Mine" / "config.json").write_text("{}")


def outside(folder: Path) -> None:
    """Module 0 lies outside of the folder."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(folder, folder.parent / "elsewhere")


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def adapter(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text("{}")


EARLY: dict[str, tuple[Any, list[str]]] = {  # what is answered before torch is there
    "not there": (shutil.rmtree, ["no folder"]),
    "empty": (lambda f: [p.unlink() for p in f.iterdir() if p.is_file()], ["no config.json"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no weights"]),
    "pickled weights": (pickled, ["pytorch_model.bin", "pickle", "save_pretrained"]),
    "an adapter": (adapter, ["adapter", "merge it"]),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "JSON"]),
    "modules are no JSON": (lambda f: (f / "modules.json").write_text("[{"), ["modules.json", "JSON"]),
    "modules outside": (outside, ["modules.json", "'../elsewhere'"]),
    "an encoder and decoder": (
        lambda f: change_config(f, model_type="t5", architectures=["T5Model"], is_encoder_decoder=True),
        ["'t5'"],
    ),
    "no tokenizer": (
        lambda f: [(f / n).unlink(missing_ok=True) for n in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")],
        ["no tokenizer", "tokenizer.json"],
    ),
    "no model type": (lambda f: change_config(f, model_type=None), ["model_type"]),
}
LATE: dict[str, tuple[Any, list[str]]] = {  # what shows when it is opened
    "code of its own": (with_code, ["'mine'", "code"]),
    "an image model": (lambda f: change_config(f, model_type="vit", architectures=["ViTModel"]), ["'vit'"]),
    "half of the weights": (cut, ["model.safetensors"]),
    "a damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), ["tokenizer"]),
    "weights of other sizes": (lambda f: change_config(f, hidden_size=64), ["model.safetensors", "size"]),
    "a module of its own": (with_module, ["Mine"]),
}


@pytest.mark.parametrize("case", EARLY)
def test_folders_that_are_no_teacher_are_refused_at_once(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    spoil, words = EARLY[case]
    spoil(model)
    with pytest.raises(TalasError) as caught:
        params.resolve("03_train", {"teacher": str(model)}).check_available()
    said = str(caught.value)
    assert str(model) in said
    assert all(word in said for word in words), said
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("case", LATE)
def test_folders_that_cannot_be_opened_are_named_and_leave_no_cache(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from talas_lib import stages

    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    spoil, words = LATE[case]
    spoil(model)
    p = params.resolve("03_train", {"teacher": str(model), "student": "tiny", "corpus": "tiny", "device": "cpu"})
    p.check_available()
    with pytest.raises(TalasError) as caught:
        stages.cache_teacher(p, stages.load_corpus(p))
    said = str(caught.value)
    assert str(model) in said
    assert all(word in said for word in words), said
    assert not list((tmp_path / "outputs").rglob("*.npy"))
    assert not (tmp_path / "executed").exists()


def test_pickled_weights_beside_safetensors_are_never_read(model: Path, tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    before = sources.load_teacher(params.load_teacher(str(model))).encode(["a boat"])
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    after = sources.load_teacher(params.load_teacher(str(model))).encode(["a boat"])
    assert (before == after).all()
    assert not (tmp_path / "executed").exists()


# ---- corpora

TEXTS: dict[str, tuple[str, bytes, list[str]]] = {
    "empty file": ("a.txt", b"", ["holds no records"]),
    "blank lines": ("a.txt", b"one\n\n \t\ntwo\n", ["lines 2, 3", "is empty", "grep -v"]),
    "another encoding": ("a.txt", "one\nzw\u00f6lf\n".encode("latin1"), ["line 2", "not UTF-8", "iconv"]),
    "UTF-16": ("a.txt", "one\ntwo\n".encode("utf-16"), ["line 1", "not UTF-8"]),
    "binary": ("a.txt", bytes(range(256)), ["not UTF-8"]),
    "no such column": ("a.csv", b"sentence,source\none,x\n", ["no column 'text'", "sentence"]),
    "open quote": ("a.csv", b'text\n"one\n', ["the record from line 2"]),
    "too many fields": ("a.csv", b"text\none,two\n", ["line 2", "1 fields"]),
    "header alone": ("a.csv", b"text\n", ["holds no records"]),
    "no JSON": ("a.jsonl", b'{"text": "one"}\n{text: "two"}\n', ["line 2", "not JSON"]),
    "a list of texts": ("a.jsonl", b'["one", "two"]\n', ["line 1", "not a JSON object"]),
    "a number": ("a.jsonl", b'{"text": 1}\n', ["line 1", "not a text"]),
    "null": ("a.jsonl", b'{"text": "one"}\n{"text": null}\n', ["line 2", "not a text"]),
    "half a surrogate": ("a.jsonl", b'{"text": "one"}\n{"text": "\\ud83d"}\n', ["line 2", "surrogate"]),
    "deep JSON": ("a.jsonl", b"[" * 100_000 + b"\n", ["line 1", "not JSON"]),
    "no gzip": ("a.txt.gz", b"one\n", ["not a whole gzip file"]),
    "another format": ("a.parquet", b"PAR1", ["format", ".jsonl"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_files_of_sentences_are_refused_by_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    name, content, words = TEXTS[case]
    file = tmp_path / "data" / name
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(TalasError) as caught:
        sources.load_corpus(params.resolve("01_data", {"corpus": str(file)}).corpus_spec)
    said = str(caught.value)
    assert name.split(".")[0] in said
    assert all(word in said for word in words), said
    assert not (tmp_path / "outputs").exists()


def test_a_corpus_that_is_a_folder_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "folder.txt", tmp_path / "gone.csv"):
        with pytest.raises(TalasError, match=f"no file {path}"):
            params.resolve("03_train", {"corpus": str(path)}).check_available()


# ---- run ids


@pytest.mark.parametrize(
    "run",
    ["../../etc/passwd", "/etc/passwd", "..", ".", "", "cache", "~", "a--b--c--d--s1--0123456g", "latest/../x", "a\x00b",
     "tiny--tiny--talas--asam--s42--01234567/../../x", "tiny--tiny--talas--asam--s42--01234567\n", "Latest"],
)  # fmt: skip
def test_run_ids_are_no_paths(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from talas_lib import runs

    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    with pytest.raises(TalasError, match="no run id") as caught:
        runs.find_run(run)
    assert "latest" in str(caught.value)
    assert not (tmp_path / "outputs").exists()
