"""Texts as data: comparison, order, reading, and the synthetic sentences."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from talas_lib.errors import TalasError
from talas_lib.texts import (
    Row,
    comparison_key,
    content_sha256,
    distinct,
    hash_order,
    lines_of,
    number_fields,
    read_rows,
    text_fields,
)
from talas_lib.tiny_texts import SLOTS, TOPICS, tiny_sentences


def test_comparison_key_keeps_lower_cased_letters_and_digits() -> None:
    assert comparison_key("  It's 9 o'clock -- NOW!\n") == "its9oclocknow"
    assert comparison_key("Éa_b") == "éab"
    assert comparison_key("\ud800?!") == ""


def test_hash_order_depends_on_each_text_alone() -> None:
    words = [f"word {i}" for i in range(200)]
    order = hash_order(words, "salt")
    shuffled = random.Random(0).sample(words, len(words))
    assert hash_order(shuffled, "salt") == order
    assert order != words
    assert hash_order(words, "pepper") != order
    fewer = [word for word in words if word != order[3]]
    assert hash_order(fewer, "salt") == order[:3] + order[4:]
    assert hash_order(["b!", "B"], "s") == ["b!", "B"]  # equal in letters and digits: the order given


def test_distinct_keeps_the_first_and_drops_what_has_no_letters() -> None:
    assert distinct(["One two", "!!!", "one-two", "three"]) == ["One two", "three"]


def test_content_sha256_tells_texts_labels_and_order_apart() -> None:
    values = [["a", "b"], ["b", "a"], ["ab"], ["a", 1], ["a", "1"], ["é"], ["\ud800"]]
    assert len({content_sha256(value) for value in values}) == len(values)
    assert content_sha256(("a",)) == content_sha256(["a"])


def test_lines_of_names_a_few() -> None:
    rows = [Row(line, {}) for line in (3, 9, 12, 13, 14, 15, 99)]
    assert lines_of(rows[:1]) == "line 3"
    assert lines_of(rows) == "lines 3, 9, 12, 13, 14 and 2 more"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\r\ntwo \u2028 still two\nthree \x85 words".encode()),
        ("b.csv", '\ufefftext\none\n"two \u2028 still two"\n"three \x85 words"\n'.encode()),
        ("c.jsonl", '{"text": "one"}\n{"text": "two \u2028 still two"}\n{"text": "three \x85 words"}\n'.encode()),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_formats_give_the_same_rows(name: str, content: bytes, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / (name + ".gz" if zipped else name)
    file.write_bytes(gzip.compress(content) if zipped else content)
    rows = read_rows(file, ["text"])
    assert text_fields(file, rows, "text") == ["one", "two \u2028 still two", "three \x85 words"]
    assert [row.line for row in rows] == ([2, 3, 4] if name == "b.csv" else [1, 2, 3])


def test_a_quoted_line_break_in_csv_is_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('text,source\n"two\nlines",x\nplain,y\n')
    assert [(row.line, row.fields["text"]) for row in read_rows(file)] == [(3, "two\nlines"), (4, "plain")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{}", r"format '\.json' is not one of \.txt, \.csv, \.jsonl"),
        ("a.gz", b"", r"format '\(none\)'"),
        ("a.txt", b"", "holds no records"),
        ("a.txt", b"good\nd\xe9j\xe0 vu\n", r"line 2: byte 0xe9 is not UTF-8; .*iconv -f latin1"),
        ("a.csv", b'text\n"open\n', "the record from line 2 on: unexpected end of data"),
        ("a.csv", b"text,source\nonly one\n", "line 2: not 2 fields as in the header"),
        ("a.csv", b"text\none,two\n", "line 2: not 1 fields as in the header"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n', "line 2: not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1: not a JSON object"),
        ("a.txt.gz", b"plain", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-9], "not a whole gzip file"),
    ],
)
def test_unreadable_files_are_named_with_their_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(TalasError, match=message) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TalasError, match=r"gone\.txt cannot be read: No such file"):
        read_rows(tmp_path / "gone.txt")


def test_a_missing_column_lists_the_found_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id,txt\n1,a\n2,b\n")
    with pytest.raises(TalasError, match=r"no column 'text' in lines 2, 3; found id, txt\. Did you mean 'txt'\?"):
        read_rows(file, ["text"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a"}', '{"text": " "}', '{"text": ""}'], "lines 2, 3: 'text' is empty; remove"),
        (['{"text": 3}', '{"text": "a"}'], "line 1: 'text' is not a text"),
        (['{"text": "a"}', '{"text": "half \\ud83d"}'], "line 2: 'text' holds half of a surrogate pair"),
    ],
)
def test_unusable_texts_are_named_by_line(lines: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(TalasError, match=message):
        text_fields(file, read_rows(file), "text")


def test_a_whole_surrogate_pair_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "smile \\ud83d\\ude00"}')
    assert text_fields(file, read_rows(file), "text") == ["smile \U0001f600"]


def test_numbers_are_finite_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"score": 1}\n{"score": "2.5"}\n{"score": null}\n{"score": NaN}\n{"score": "high"}\n')
    rows = read_rows(file)
    assert number_fields(file, rows[:2], "score") == [1.0, 2.5]
    with pytest.raises(TalasError, match="lines 3, 4, 5: 'score' is not a number"):
        number_fields(file, rows, "score")


# ---- synthetic sentences


def test_tiny_sentences_are_distinct_nested_and_seeded() -> None:
    sentences = tiny_sentences(600, seed=5)
    texts = [sentence.text for sentence in sentences]
    assert len(set(texts)) == 600
    assert tiny_sentences(60, seed=5) == sentences[:60]
    assert tiny_sentences(60, seed=6) != sentences[:60]
    assert [sentence.topic for sentence in sentences[:12]] == [*TOPICS, *TOPICS]
    assert all(text[0].isupper() and text.endswith(".") and "{" not in text for text in texts)
    with pytest.raises(TalasError, match="5000 tiny sentences are too many"):
        tiny_sentences(5000, seed=0)


def test_words_tell_topics_apart() -> None:
    phrases = [phrase for slots in TOPICS.values() for slot in ("who", "what", "where") for phrase in slots[slot]]
    assert len(phrases) == len(set(phrases))


def test_a_changed_sentence_shares_the_other_slots() -> None:
    rng = random.Random(0)
    for sentence in tiny_sentences(20, seed=1):
        for different in range(len(SLOTS) + 1):
            other = sentence.changed(different, rng)
            assert other.topic == sentence.topic
            assert sum(a != b for a, b in zip(sentence.choice, other.choice, strict=True)) == different
            assert other.frame != sentence.frame
        assert sentence.reframed(rng).choice == sentence.choice
