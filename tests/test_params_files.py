"""The files of params/: each loads, and a wrong one is named with file and line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from talas_lib import methods, params, paths
from talas_lib.errors import TalasError

LOADERS: dict[str, Any] = {
    "teachers": params.load_teacher,
    "students": params.load_student,
    "corpora": params.load_corpus_spec,
    "tasks": params.load_tasks,
    "optimizers": params.load_optimizer,
    "methods": params.load_method,
    "presets": params.load_preset,
}
FILES = sorted(path for kind in LOADERS for path in (paths.params_dir() / kind).glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ in a project of its own, current folder inside it."""
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, file: str, text: str) -> None:
    (project / "params" / file).write_text(text)


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_loads_and_says_why(file: Path) -> None:
    loaded = LOADERS[file.parent.name](file.stem)
    if file.parent.name not in ("methods", "presets"):
        assert loaded.name == file.stem
    text = file.read_text()
    assert text.startswith("#"), "the first line says what it is"
    assert "\t" not in text


@pytest.mark.parametrize(
    ("kind", "names"),
    {
        "teachers": ["bge-m3", "llm2vec", "minilm-l6", "mpnet-base", "qwen3-0.6b", "qwen3-4b", "tiny"],
        "students": ["bert-base", "minilm-l3", "minilm-l6", "minilm-l6-h384", "minilm-l6-h768", "tiny"],
        "corpora": ["mini", "paper15k", "talas15k", "tiny"],
        "optimizers": ["adamw", "asam", "asam-kwon", "sam"],
        "methods": ["simcse", "talas"],
        "presets": ["cpu-study", "paper-study", "quickstart", "sharpness", "smoke"],
    }.items(),
)
def test_the_promised_names_are_there(kind: str, names: list[str]) -> None:
    assert set(names) <= set(params.available(kind))


def test_how_the_teachers_are_read() -> None:
    """METHODS: Qwen3 last non-padding token, BGE-M3 CLS, no prompt, unit vectors, 256 tokens."""
    read = {
        n: params.load_teacher(n) for n in ("minilm-l6", "mpnet-base", "bge-m3", "qwen3-0.6b", "qwen3-4b", "llm2vec")
    }
    assert {n: t.pooling for n, t in read.items()} == {
        "minilm-l6": "mean",
        "mpnet-base": "mean",
        "bge-m3": "cls",
        "qwen3-0.6b": "last",
        "qwen3-4b": "last",
        "llm2vec": "mean",
    }
    assert {n: t.dim for n, t in read.items()} == {
        "minilm-l6": 384,
        "mpnet-base": 768,
        "bge-m3": 1024,
        "qwen3-0.6b": 1024,
        "qwen3-4b": 2560,
        "llm2vec": None,
    }
    assert {t.max_length for t in read.values()} == {256}
    assert {t.prompt for t in read.values()} == {""}
    assert all(t.normalize for t in read.values())
    assert read["llm2vec"].attention == "bidirectional"
    assert params.load_teacher("tiny-bidirectional").attention == "bidirectional"
    assert params.load_student("minilm-l3").layers == (0, 2, 4)


def test_the_released_asam_and_kwons_own() -> None:
    talas, kwon = params.load_optimizer("asam"), params.load_optimizer("asam-kwon")
    assert (talas.rho, talas.eta, talas.bias_mode) == (0.05, 0.0, "abs")
    assert (kwon.rho, kwon.eta, kwon.bias_mode) == (0.5, 0.01, "identity")
    assert params.load_optimizer("sam").rho == 0.05
    assert params.load_optimizer("adamw").settings == {}


def test_method_files_state_the_class_defaults() -> None:
    """The file documents each value; a default that changed in one place only would mislead."""
    for name in methods.available():
        stated = params.load_method(name)
        assert stated == methods.config_class(name)()
        assert set(stated.model_fields_set) == set(type(stated).model_fields), name


def test_method_params_lie_over_the_file() -> None:
    config: Any = params.load_method("talas", {"num_anchor_layers": 1, "lasd_pairs": 2, "weight_lasd": 2})
    assert (config.num_anchor_layers, config.lasd_pairs, config.weight_lasd) == (1, 2, 2.0)
    assert config.weight_tamd == 0.75


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            "source: tiny:bert\npoolling: mean\nmax_length: 64\n",
            ["line 2: unknown key 'poolling'", "Did you mean 'pooling'?"],
        ),
        ("source: tiny:bert\npooling: mean\n", ["the key 'max_length' is missing"]),
        ("source: tiny:bert\npooling: mean\nmax_length: 2e2\n", ["line 3: max_length is '2e2' (str)"]),
        ("source: tiny:bert\npooling: mean\nmax_length: yes\n", ["line 3: max_length is True (bool)"]),
        (
            "source: tiny:bert\npooling: max\nmax_length: 64\n",
            ["line 2: pooling is 'max'", "'cls', 'mean', 'last' or 'auto'"],
        ),
        (
            "source: tiny:bert\npooling: mean\nmax_length: 64\npooling: cls\n",
            ["line 4: the key 'pooling'", "line 2 already"],
        ),
        ("source: !!python/name:os.system x\npooling: mean\n", ["line 1: a tag"]),
        ("source: !!str tiny:bert\npooling: mean\n", ["line 1: a tag"]),
        ("source: &a tiny:bert\nprompt: *a\n", ["line 1: an anchor"]),
        (
            "name: other\nsource: tiny:bert\npooling: mean\nmax_length: 64\n",
            ["line 1: the file's name is the name, 'mine'"],
        ),
        (
            "source: minilm\npooling: mean\nmax_length: 64\n",
            ["line 1: 'minilm' is none of package:<asset>", "./minilm"],
        ),
        ("- a\n- b\n", ["holds list", "key: value"]),
        ("", ["holds NoneType"]),
        ("source: [\n", ["not readable as YAML", "line 2"]),
        ("no: 1\nsource: tiny:bert\n", ["line 1: the key 'no' is not text"]),
    ],
)
def test_a_wrong_teacher_file_is_named_with_its_line(project: Path, text: str, fragments: list[str]) -> None:
    write(project, "teachers/mine.yaml", text)
    with pytest.raises(TalasError) as caught:
        params.load_teacher("mine")
    assert "params/teachers/mine.yaml" in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_several_faults_come_at_once(project: Path) -> None:
    write(project, "teachers/mine.yaml", "source: tiny:bert\npoolling: mean\n")
    with pytest.raises(TalasError, match=r"'pooling' is missing.*'max_length' is missing.*unknown key 'poolling'"):
        params.load_teacher("mine")


@pytest.mark.parametrize(
    ("file", "text", "fragment"),
    [
        ("optimizers/mine.yaml", "kind: asam\nrho: 0.1\n", "optimizer kind asam needs eta, bias_mode"),
        ("optimizers/mine.yaml", "kind: adamw\nrho: 0.1\n", "optimizer kind adamw has no rho"),
        ("optimizers/mine.yaml", "kind: sam\nrho: 5e-2\n", "line 2: rho is '5e-2' (str), expected a valid number"),
        ("optimizers/mine.yaml", "kind: sam\nrho: 5e-2\n", "write 5.0e-2"),
        ("students/mine.yaml", "source: tiny:bert\nlayers: [2, 0]\nmax_length: 64\n", "must ascend"),
        ("students/mine.yaml", "source: tiny:bert\nlayers: [0, two]\nmax_length: 64\n", "layers.1 is 'two'"),
        ("corpora/mine.yaml", "kind: local\n", "a corpus of kind local needs path"),
        ("corpora/mine.yaml", "kind: tiny\npath: x\n", "a corpus of kind tiny takes no path"),
        ("corpora/mine.yaml", "kind: local\npath: x\nheld_out: mini\n", "takes no held_out"),
        ("corpora/mine.yaml", "kind: tiny\nseed: .nan\n", "line 2: seed is nan"),
    ],
)
def test_other_wrong_files(project: Path, file: str, text: str, fragment: str) -> None:
    write(project, file, text)
    with pytest.raises(TalasError) as caught:
        LOADERS[file.split("/")[0]]("mine")
    assert fragment in str(caught.value)
    assert f"params/{file}" in str(caught.value)


def test_a_wrong_task_is_found_inside_its_suite(project: Path) -> None:
    task = "  - {name: a, kind: pair, metric: spearman, builder: b, source: s}\n"
    write(project, "tasks/mine.yaml", f"protocol: paper\ntasks:\n{task}")
    with pytest.raises(TalasError, match="line 3: a pair task is scored by average_precision"):
        params.load_tasks("mine")
    good = task.replace("spearman", "average_precision")
    write(project, "tasks/mine.yaml", f"protocol: paper\ntasks:\n{good}{good}")
    with pytest.raises(TalasError, match="task names repeat: a"):
        params.load_tasks("mine")
    write(project, "tasks/mine.yaml", f"protocol: paper\ntasks:\n{good.replace('builder', 'bilder')}")
    with pytest.raises(TalasError, match=r"unknown key 'bilder'. Did you mean 'builder'?"):
        params.load_tasks("mine")


def test_a_wrong_preset_is_named_with_its_line(project: Path) -> None:
    write(project, "presets/mine.yaml", "teacher: tiny\nlr: 1e-4\n")
    with pytest.raises(TalasError, match=r"params/presets/mine.yaml, line 2: lr is '1e-4'.*write 1.0e-4"):
        params.load_preset("mine")
    write(project, "presets/mine.yaml", "teecher: tiny\n")
    with pytest.raises(TalasError, match=r"line 1: no notebook has a parameter 'teecher'. Did you mean 'teacher'?"):
        params.load_preset("mine")


def test_files_with_odd_names_are_no_values(project: Path) -> None:
    """Names go into folder names and run ids."""
    for odd in ("My Teacher", "a--b", "Upper", "_x"):
        write(project, f"teachers/{odd}.yaml", "source: tiny:bert\npooling: mean\nmax_length: 64\n")
        assert odd not in params.available("teachers")
        with pytest.raises(TalasError, match="small letters"):
            params.load_teacher(odd)


def test_a_users_own_file_is_a_corpus(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "My Sentences.csv").write_text("text\nhello\n")
    monkeypatch.chdir(project / "notebooks")
    spec = params.load_corpus_spec("My Sentences.csv")
    assert (spec.name, spec.kind, spec.path) == ("my-sentences", "file", str(project / "My Sentences.csv"))
    params.check_available(spec)
    with pytest.raises(TalasError, match=r"no file .*gone\.txt; correct the path"):
        params.check_available(params.load_corpus_spec("./gone.txt"))


def test_local_data_wants_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = params.load_corpus_spec("talas15k")
    monkeypatch.delenv("TALAS_DATA", raising=False)
    with pytest.raises(TalasError, match=r"set TALAS_DATA to the folder that holds corpus/talas15k.jsonl.gz"):
        params.check_available(spec)
    monkeypatch.setenv("TALAS_DATA", str(tmp_path))
    with pytest.raises(TalasError, match="should lie below TALAS_DATA"):
        params.check_available(spec)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "talas15k.jsonl.gz").write_bytes(b"x")
    params.check_available(spec)


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.load_teacher("tiny").max_length = 3  # type: ignore[misc]
