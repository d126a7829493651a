"""Corpora as parameters: columns of a file, parts of a built one, what of them makes a run another run, and ids that stay."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from talas_lib import display, params, paths, records
from talas_lib.errors import TalasError

TINY = {"teacher": "tiny", "student": "tiny", "corpus": "tiny"}


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    file = tmp_path / "posts.csv"
    file.write_text("body,summary,forum\nfirst one,one,a\nsecond one,two,b\n")
    return file


def resolved(notebook: str = "03_train", **values: Any) -> params.ResolvedParams:
    return params.resolve(notebook, TINY | values)


# ---- columns


@pytest.mark.parametrize("notebook", ["00_quickstart", "01_data", "02_cache_teacher", "03_train", "06_compare"])
def test_columns_are_chosen_wherever_a_corpus_is(notebook: str, posts: Path) -> None:
    p = params.resolve(notebook, {"corpus": str(posts), "text_column": "body", "source_column": "forum"})
    assert (p.corpus_spec.text_column, p.corpus_spec.source_column) == ("body", "forum")
    assert (p.text_column, p.origins["text_column"]) == ("body", "given")
    p.corpus_spec.model_validate(p.corpus_spec.model_dump())
    back = params.from_dict(json.loads(json.dumps(p.to_dict())))
    assert back == p
    assert "-p text_column body -p source_column forum" in display.next_command("03_train", **p.given_values())


def test_without_a_choice_the_corpus_files_own_columns_are_read(posts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params/corpora/mine.yaml").write_text("# mine\nkind: file\npath: posts.csv\ntext_column: summary\n")
    monkeypatch.chdir(tmp_path)
    own = resolved(corpus="mine")
    assert (own.text_column, own.corpus_spec.text_column) == (None, "summary")
    own.check_available()
    assert resolved(corpus="mine", text_column="body").corpus_spec.text_column == "body"
    assert resolved(corpus="mine", text_column="summary").run_id == own.run_id


def test_columns_are_part_of_the_run_and_the_path_is_not(posts: Path, tmp_path: Path) -> None:
    ids = {
        columns: resolved(corpus=str(posts), text_column=columns[0], source_column=columns[1]).run_id
        for columns in (("body", None), ("summary", None), ("body", "forum"))
    }
    assert len(set(ids.values())) == 3
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(posts, tmp_path / "elsewhere/posts.csv")
    assert resolved(corpus=str(copy), text_column="body").run_id == ids["body", None]
    assert resolved(corpus=str(posts), text_column="text").run_id == resolved(corpus=str(posts)).run_id
    data = {records.data_file(resolved("01_data", corpus=str(posts), text_column=name)) for name in ("body", "summary")}
    assert len(data) == 2


def test_columns_of_a_corpus_without_columns_are_not_used(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("one\ntwo\n")
    for corpus in ("tiny", "mini", "paper15k", str(plain)):
        p = resolved("02_cache_teacher", corpus=corpus, text_column="body", source_column="forum")
        assert p.corpus_spec == resolved("02_cache_teacher", corpus=corpus).corpus_spec
        assert {"text_column", "source_column"} <= set(p.unused)
        assert "is not read from columns" in p.summary()
    assert resolved(corpus=str(plain), text_column="body").run_id == resolved(corpus=str(plain)).run_id


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {},
            r"corpus 'posts': .*posts\.csv has no column 'text'\. It has body, summary, forum\. Choose one with `-p text_col",
        ),
        ({"text_column": "bdy"}, r"has no column 'bdy'\. Did you mean 'body'\? It has body, summary, forum"),
        (
            {"text_column": "body", "source_column": "origin"},
            r"no column 'origin'\. .*Choose one with `-p source_column \.\.\.`",
        ),
        ({"text_column": 3}, r"text_column is 3 .*-r text_column"),
        ({"text_column": ""}, "it is empty"),
    ],
    ids=["default", "slip", "source", "number", "empty"],
)
def test_a_wrong_column_is_answered_with_those_there_are(values: dict[str, Any], message: str, posts: Path) -> None:
    for notebook in ("01_data", "03_train"):
        with pytest.raises(TalasError, match=message):
            params.from_notebook(notebook, TINY | {"corpus": str(posts)} | values)


def test_the_first_record_is_enough_to_see_a_missing_column(tmp_path: Path) -> None:
    def message(name: str, content: bytes) -> str | None:
        (tmp_path / name).write_bytes(content)
        try:
            params.check_available(params.load_corpus_spec(str(tmp_path / name)))
        except TalasError as error:
            return str(error)
        return None

    assert "It has a, b" in str(message("a.csv.gz", gzip.compress("\ufeffa,b\nx,y\n".encode())))
    assert "It has body" in str(message("a.jsonl", b'{"body": "x"}\nnot read here\n'))
    assert "It has body" in str(message("a.jsonl.gz", gzip.compress(b'{"body": "x"}\n')))
    assert message("b.csv", b'"text",b\nx,y\n') is None
    assert message("b.jsonl", b'{"text": "x"}\n') is None
    assert message("b.txt", b"body\n") is None
    for broken in (b"", b"\xff\xfe", b"[1]\n"):  # named by whoever reads the whole file
        assert message("c.jsonl", broken) is None
    assert message("c.csv.gz", b"no gzip") is None


def test_a_preset_may_vary_columns(posts: Path) -> None:
    cells = params.expand_grid(TINY | {"corpus": str(posts), "grid": {"text_column": ["body", "summary"]}})
    assert [params.resolve("03_train", cell).corpus_spec.text_column for cell in cells] == ["body", "summary"]


# ---- a built corpus

PART = {"name": "moods", "kind": "texts", "count": 2}
HUB = {"id": "owner/moods", "revision": "abc"}


def built(*parts: dict[str, Any], **fields: Any) -> params.CorpusSpec:
    return params.CorpusSpec.model_validate({"name": "two", "kind": "built", "parts": list(parts), **fields})


def identity(spec: params.CorpusSpec) -> str:
    return params.config_hash(params.corpus_identity(spec))


def test_a_built_corpus_is_what_decides_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_DATA", str(tmp_path))
    for folder, text in (("moods", "a"), ("copy", "a"), ("others", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(json.dumps({"text": text}) + "\n")
    same = identity(built(PART))
    assert identity(built(PART | {"folder": "copy"})) == same  # by content, wherever it lies
    assert identity(built(PART | {"hub": HUB})) == same  # not used
    assert str(tmp_path) not in json.dumps(params.corpus_identity(built(PART)))
    on_hub = PART | {"split": "dev", "hub": HUB}
    changed = [
        built(PART | {"folder": "others"}),
        built(PART | {"count": 3}),
        built(PART | {"name": "others", "folder": "moods"}),
        built(PART | {"kind": "pairs"}),
        built(PART, seed=1),
        built(PART, held_out="tiny"),
        built(PART, PART | {"name": "copy"}),
        built(on_hub),
        built(on_hub | {"split": "test"}),
        built(on_hub | {"hub": HUB | {"revision": "abd"}}),
    ]
    assert len({same, *map(identity, changed)}) == 1 + len(changed)


def test_every_part_must_be_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        TalasError, match=r"corpus 'two', part moods: there is no file .*moods/train\.jsonl\.gz.*a `hub`"
    ):
        params.check_available(built(PART))
    with pytest.raises(TalasError, match=r"part moods"):
        params.corpus_identity(built(PART))
    offline = r"part moods: owner/moods is not in the local cache of data sets, and HF_HUB_OFFLINE is set; and there is no file"
    with pytest.raises(TalasError, match=offline):
        params.check_available(built(PART | {"hub": HUB}))
    (tmp_path / "hub/owner___moods").mkdir(parents=True)
    params.check_available(built(PART | {"hub": HUB}))
    (tmp_path / "moods").mkdir()
    (tmp_path / "moods/train.jsonl.gz").write_bytes(b"x")
    params.check_available(built(PART))


def test_the_papers_construction_is_written_down() -> None:
    spec = params.load_corpus_spec("paper15k")
    assert [(part.name, part.kind, part.count, part.split) for part in spec.parts] == [
        ("emotion", "texts", 5000, "train"),
        ("stsb", "pairs", 2500, "train"),
        ("wic", "pairs", 2500, "train"),
    ]
    assert sum(part.count * (2 if part.kind == "pairs" else 1) for part in spec.parts) == 15_000
    assert spec.held_out is None
    assert all(part.hub is not None and len(part.hub.revision or "") == 40 for part in spec.parts)
    suite = {task.name: task.options.get("hub") for task in params.load_tasks("paper").tasks}
    for name in ("emotion", "stsb"):  # the copies that the tasks are scored on
        part = next(part for part in spec.parts if part.name == name)
        assert part.hub is not None
        assert part.hub.model_dump(exclude_none=True, exclude_defaults=True) == suite[name]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("kind: built\n", "a corpus of kind built needs parts"),
        ("kind: tiny\nparts: [{name: a, kind: texts, count: 1}]\n", "a corpus of kind tiny takes no parts"),
        ("kind: built\nsentences: 5\nparts: [{name: a, kind: texts, count: 1}]\n", "takes no sentences"),
        ("kind: built\npath: x\nparts: [{name: a, kind: texts, count: 1}]\n", "takes no path"),
        ("kind: built\nparts: [{name: a, kind: texts, count: 1}, {name: a, kind: texts, count: 1}]\n", "repeat: a, a"),
        ("kind: built\nparts:\n  - {name: a, kind: texts, count: 0}\n", "line 3: parts.0.count is 0"),
        ("kind: built\nparts:\n  - {name: a, kind: text, count: 1}\n", "line 3: parts.0.kind is 'text'"),
        ("kind: built\nparts:\n  - {name: a, kind: texts, cuont: 1}\n", "unknown key 'cuont'. Did you mean 'count'?"),
        (
            "kind: built\nparts:\n  - {name: a, kind: pairs, count: 1, hub: {id: o/a, columns: {text: t}}}\n",
            "columns of a part of pairs name text1, text2, not text",
        ),
        (
            "kind: built\nparts:\n  - {name: a, kind: pairs, count: 1, hub: {id: o/a, revison: b}}\n",
            "unknown key 'revison'. Did you mean 'revision'?",
        ),
    ],
)
def test_a_wrong_built_corpus_is_named(
    text: str, fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params/corpora").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params/corpora/mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TalasError) as caught:
        params.load_corpus_spec("mine")
    assert fragment in str(caught.value)
    assert "params/corpora/mine.yaml" in str(caught.value)


# ---- runs that exist keep their ids

STUDY = {
    "teachers": ["mpnet-base"],
    "student": "minilm-l3",
    "corpus": "talas15k",
    "max_sentences": 4920,
    "method": "talas",
    "optimizer": "adamw",
    "pooling": "cls",
    "seed": 42,
    "epochs": 3,
    "batch_size": 32,
    "lr": 2.0e-5,
    "min_lr": 2.0e-6,
    "warmup": 0.06,
    "weight_decay": 0.01,
    "precision": "bf16",
}
KNOWN = {
    "quickstart": (
        {"teacher": "minilm-l6", "pooling": "mean", "epochs": 2, "lr": 1.0e-4},
        "ba2df1726198dcde5eb31164ef50e915f7b524c10d8b5af87ca14a048dc36649",
    ),
    "smoke": (
        TINY | {"epochs": 1, "batch_size": 8, "lr": 1.0e-3},
        "76769300aac774da93db5a10e56131b6e05ba96b1f3f07ea764142d472ae0588",
    ),
    "vote": (
        {
            "teachers": ["mpnet-base", "minilm-l6"],
            "method": "majority_vote",
            "optimizer": "adamw",
            "max_sentences": 2000,
        },
        "6086381142812cd29ea4186d08fdefb9719e00308ab98cb883485bdd4b175f09",
    ),
    "study": (STUDY, "88dd5f46b4029d9093434b287c9f3f1d64cb928635fe97f38ce50d23445582ce"),
    "own file": (
        TINY | {"corpus": "FILE", "optimizer": "sam"},
        "9301c4093404eb3d4bd2300b5abd100d04fd62296181c8ab3fe575cd8cb6fb7e",
    ),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_ids_of_known_configurations_stay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken before columns and built corpora were added. Another hash orphans finished runs: if the training mathematics has
    changed, raise RECIPE_VERSION and write the new hashes down; if not, find what slipped into run_config.
    """
    monkeypatch.delenv("TALAS_ASSETS", raising=False)
    monkeypatch.setenv("TALAS_DATA", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/talas15k.jsonl.gz").write_bytes(b"rows")
    (tmp_path / "mine.csv").write_bytes(b"text,source\nhello,a\nworld,b\n")
    values, known = KNOWN[name]
    values = {key: str(tmp_path / "mine.csv") if value == "FILE" else value for key, value in values.items()}
    assert params.config_hash(params.resolve("03_train", values).run_config()) == known
