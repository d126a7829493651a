"""Sentences kept out of training: which they are, that no copy of one is trained on, and that other runs stay as they were."""

from __future__ import annotations

import pytest
from small_run import write_csv

from talas_lib import params, records, sources, stages
from talas_lib.corpora import Corpus, hold_out
from talas_lib.errors import TalasError


def corpus(texts):
    return Corpus("own", tuple(texts), tuple(str(i % 3) for i in range(len(texts))))


@pytest.fixture
def whole(tiny_texts):
    return corpus(tiny_texts)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_about_the_share_is_held_out_and_nothing_is_lost(share, whole):
    kept = hold_out.training_part(whole, share)
    unseen = hold_out.unseen(whole, kept)
    assert len(whole) - len(kept) == pytest.approx(
        share * len(whole), abs=4 * (len(whole) * share * (1 - share)) ** 0.5
    )
    assert set(kept.texts) | set(unseen) == set(whole.texts)
    assert not set(kept.texts) & set(unseen)
    assert [whole.sources[whole.texts.index(t)] for t in kept.texts] == list(kept.sources)


def test_nothing_held_out_is_the_corpus_itself(whole):
    assert hold_out.training_part(whole, 0.0) is whole
    assert hold_out.unseen(whole, whole) == ()


def test_a_larger_share_holds_out_the_same_and_more(whole):
    small, large = (set(hold_out.training_part(whole, share).texts) for share in (0.1, 0.4))
    assert large < small


def test_a_text_is_held_out_whatever_else_is_in_the_corpus(whole):
    part = whole.rows(range(0, len(whole), 2))
    both = [set(hold_out.training_part(c, 0.3).texts) for c in (whole, part)]
    assert both[1] == both[0] & set(part.texts)


def test_copies_fall_on_one_side(tiny_texts):
    doubled = corpus([*tiny_texts, *(f"  {text.upper()}!!" for text in tiny_texts)])
    kept = hold_out.training_part(doubled, 0.3)
    assert len(kept) % 2 == 0
    assert not set(hold_out.unseen(doubled, kept)) & {t.strip().lower() for t in kept.texts}
    assert len(hold_out.unseen(doubled, kept)) == (len(doubled) - len(kept)) // 2  # each once


def test_texts_without_letters_are_never_counted_as_unseen():
    assert hold_out.unseen(corpus(["?!", "a", "b", "..."]), corpus(["b"])) == ("a",)


def test_too_large_a_share_for_a_small_corpus():
    unlucky = [text for text in map(str, range(99)) if hold_out.is_held_out(text, 0.5)][:2]
    with pytest.raises(TalasError, match=r"hold_out is 0.5, and of the 2 sentences of corpus own 0 would be left"):
        hold_out.training_part(corpus(unlucky), 0.5)


# ---- as a parameter


@pytest.fixture
def file(tmp_path, tiny_texts, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    return write_csv(tmp_path / "mine.csv", tiny_texts[:60])


def resolved(file, **values):
    return params.resolve("03_train", {"teacher": "tiny", "student": "tiny", "corpus": str(file), **values})


def test_a_run_without_it_is_the_run_it_was(file):
    before, with_zero = resolved(file), resolved(file, hold_out=0.0)
    assert "hold_out" not in before.run_config()["corpus"]
    assert before.run_id == with_zero.run_id
    assert records.cache_file(before) == records.cache_file(with_zero)


def test_it_is_part_of_what_a_run_is(file):
    ids = {resolved(file, hold_out=share).run_id for share in (0.0, 0.1, 0.2)}
    assert len(ids) == 3
    assert resolved(file, hold_out=0.1).run_config()["corpus"]["hold_out"] == 0.1
    assert len({records.cache_file(resolved(file, hold_out=share)) for share in (0.0, 0.2)}) == 2


def test_stages_train_on_what_is_left(file):
    p = resolved(file, hold_out=0.3)
    kept, whole = stages.load_corpus(p), sources.load_corpus(p.corpus_spec)
    assert kept.texts == hold_out.training_part(whole, 0.3).texts
    assert len(kept) < len(whole) == 60


def test_a_sample_is_drawn_before_the_share(file):
    p = resolved(file, hold_out=0.3, max_sentences=40)
    sample = sources.load_corpus(p.corpus_spec, max_sentences=40)
    assert stages.load_corpus(p).texts == hold_out.training_part(sample, 0.3).texts


@pytest.mark.parametrize("wrong", [-0.1, 0.6, "0.1"])
def test_a_share_out_of_range_is_refused(wrong, file):
    with pytest.raises(TalasError, match="hold_out"):
        resolved(file, hold_out=wrong)
