"""Whatever is put in: parameters, files of sentences, ragged caches and alignments, with inputs that hypothesis makes up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from talas_lib import alignment, params
from talas_lib.cache_files import distinct_texts, ragged_index, texts_sha256
from talas_lib.distribution import _filled
from talas_lib.errors import TalasError
from talas_lib.packed import Layout, TokenSequences
from talas_lib.params.vocabulary import VOCABULARY
from talas_lib.signal_files import Signal, SignalFile
from talas_lib.teacher_cache import build
from talas_lib.texts import read_rows, text_fields

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40)


def answer(make: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what is made, None), or (None, the message of the TalasError)."""
    try:
        return make(), None
    except TalasError as error:
        return None, str(error)


# ---- parameters


@pytest.mark.parametrize("name", list(VOCABULARY))
@given(value=ANYTHING)
@settings(QUICK, max_examples=25)
def test_a_parameter_is_checked_or_refused_with_its_value(name: str, value: Any) -> None:
    """No other exception; what passes has the declared type, lies in the range, and passes again unchanged."""
    parameter = VOCABULARY[name]
    checked, said = answer(lambda: parameter.check(value))
    if said is not None:
        assert name in said
        return
    types = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
    assert (checked is None and parameter.optional) or type(checked) is types[parameter.type]
    if isinstance(checked, float):
        assert math.isfinite(checked)
    again = parameter.check(checked)
    assert again == checked
    assert type(again) is type(checked)


SCHEDULES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "epochs": st.integers(1, 50),
        "batch_size": st.integers(1, 512),
        "lr": st.floats(1e-9, 1, allow_subnormal=False),
        "warmup": st.floats(0, 1),
        "weight_decay": st.floats(0, 1),
        "max_sentences": st.none() | st.integers(2, 10**9),
        "optimizer": st.sampled_from(["adamw", "asam", "sam"]),
        "nonfinite": st.sampled_from(["stop", "skip"]),
    },
)


@given(values=SCHEDULES)
@QUICK
def test_resolved_parameters_survive_json_and_keep_their_id(values: dict[str, Any]) -> None:
    base = {"teacher": "tiny", "student": "tiny", "corpus": "tiny"}
    p = params.resolve("03_train", base | values)
    again = params.from_dict(json.loads(json.dumps(p.to_dict())), json.loads(json.dumps(p.run_config())))
    assert again.run_id == p.run_id
    assert dict(again.values) == dict(p.values)
    assert params.resolve("03_train", base | values).run_id == p.run_id
    changed = base | values | {"seed": (values.get("seed", 42) + 1) % 2**32}
    assert params.resolve("03_train", changed).run_id != p.run_id


# ---- files of sentences


def written(kind: str, texts: list[str]) -> bytes:
    if kind == "txt":
        return "".join(f"{text}\n" for text in texts).encode()
    if kind == "jsonl":
        return "".join(json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) + "\n" for text in texts).encode()
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["text"], *([text] for text in texts)])
    return stream.getvalue().encode()


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
@given(texts=st.lists(TEXT, min_size=1, max_size=6), zipped=st.booleans())
@example(texts=["\ufeffmark", "a"], zipped=False)
@example(texts=["\u2028", "\x85", "a\x1cb", "\x00"], zipped=False)
@QUICK
def test_sentences_are_read_back_or_refused_by_line(kind: str, texts: list[str], zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / (f"a.{kind}.gz" if zipped else f"a.{kind}")
    content = written(kind, texts)
    file.write_bytes(gzip.compress(content) if zipped else content)
    blank = [number for number, text in enumerate(texts, 2 if kind == "csv" else 1) if not text.strip()]
    found, said = answer(lambda: text_fields(file, read_rows(file, ["text"]), "text"))
    if said is not None:
        assert blank or texts[0].startswith("\ufeff") or kind == "csv", said
        if blank and kind != "csv":
            assert "holds no records" in said or ("is empty" in said and str(blank[0]) in said)
        return
    if kind == "txt" and texts[0].startswith("\ufeff"):
        texts = [texts[0].removeprefix("\ufeff"), *texts[1:]]  # the mark of a file's beginning
    assert found == texts
    assert not blank


# ---- caches


RAGGED = st.lists(st.integers(0, 5), min_size=0, max_size=12)


@given(counts=RAGGED, seed=st.integers(0, 1000))
@QUICK
def test_a_ragged_index_is_the_ranges_one_after_the_other(counts: list[int], seed: int) -> None:
    starts = np.random.default_rng(seed).integers(0, 100, len(counts))
    expected = [i for start, count in zip(starts, counts, strict=True) for i in range(start, start + count)]
    assert ragged_index(starts, np.array(counts, np.int64)).tolist() == expected


@given(texts=st.lists(st.sampled_from(["a", "bb", "b", "", "ccc", "ç", "a "]) | TEXT, max_size=15))
@QUICK
def test_every_text_has_its_place_among_the_distinct_ones(texts: list[str]) -> None:
    distinct, place = distinct_texts(texts)
    assert [distinct[i] for i in place] == texts
    assert sorted(distinct) == sorted(set(texts))
    assert [len(text) for text in distinct] == sorted(len(text) for text in distinct)
    if len(texts) > 1:
        assert (texts_sha256(texts) == texts_sha256(texts[::-1])) == (texts == texts[::-1])


@given(texts=st.lists(TEXT, min_size=1, max_size=12), shard=st.integers(1, 5), seed=st.integers(0, 99))
@settings(QUICK, max_examples=20)
def test_a_cache_gives_every_row_what_was_computed_for_its_text(
    texts: list[str], shard: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def embed(some: Any) -> np.ndarray:
        return np.array([[len(t) + 1.0, sum(map(ord, t)) % 1009] for t in some], np.float32)

    cache = build(tmp_path_factory.mktemp("cache"), {"weights": "w"}, texts, embed, shard_size=shard)
    rows = np.random.default_rng(seed).integers(0, len(texts), 7)
    np.testing.assert_array_equal(cache.vectors(rows), embed([texts[row] for row in rows]))


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 11), max_size=4),
    killed=st.integers(0, 5),
    flipped=st.integers(0, 10**6),
    width=st.sampled_from([None, 1, 3]),
)
@settings(QUICK, max_examples=40)
def test_a_ragged_file_is_whole_or_says_what_is_missing(
    counts: list[int],
    cuts: list[int],
    killed: int,
    flipped: int,
    width: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Of any lengths in any shards: dead after some of them it goes on with the others, then it gives every value as it was
    written; a byte changed anywhere costs the shard it lies in."""
    signal = Signal("hidden" if width else "attention", -1)
    ends = np.cumsum(counts)
    bounds = np.unique([0, *(ends[cut] for cut in cuts if cut < len(ends)), ends[-1]]).astype(np.int64)
    shape = (int(ends[-1]), width) if width else (int(ends[-1]),)
    values = np.random.default_rng(len(counts)).normal(size=shape).astype(np.float16)
    folder = tmp_path_factory.mktemp("ragged")

    def fill(at_most: int) -> set[int]:
        file = SignalFile(folder, signal, bounds, width, "t")
        gone = file.missing()
        file.begin(gone)
        for shard in sorted(gone)[:at_most]:
            file.note(shard, file.put(shard, values[bounds[shard] : bounds[shard + 1]]), 0.0)
        return gone

    shards = len(bounds) - 1
    assert fill(killed) == set(range(shards))
    assert (SignalFile(folder, signal, bounds, width, "t").open() is None) == (killed < shards)
    assert fill(shards) == set(range(min(killed, shards), shards))
    found = SignalFile(folder, signal, bounds, width, "t").open()
    assert found is not None
    np.testing.assert_array_equal(found, values)
    file = folder / f"{signal.name}.npy"
    content = bytearray(file.read_bytes())
    place = len(content) - values.nbytes + flipped % values.nbytes
    content[place] ^= 1
    file.write_bytes(content)
    row = (place - (len(content) - values.nbytes)) // (2 * (width or 1))
    hurt = int(np.searchsorted(bounds, row, side="right")) - 1
    with pytest.raises(TalasError, match="damaged"):
        SignalFile(folder, signal, bounds, width, "t").open()
    assert fill(shards) == {hurt}
    assert SignalFile(folder, signal, bounds, width, "other").open() is None


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=10), width=st.integers(1, 3))
@QUICK
def test_packing_and_padding_are_inverse(lengths: list[int], width: int) -> None:
    tokens = TokenSequences.from_lists([list(range(n)) for n in lengths])
    layout = Layout.of(torch.from_numpy(tokens.lengths))
    values = torch.randn(sum(lengths), width)
    grid = layout.pad(values)
    assert grid.shape == (len(lengths), max(lengths), width)
    assert torch.equal(layout.unpad(grid), values)
    assert torch.equal(grid[~layout.valid], torch.zeros_like(grid[~layout.valid]))
    assert layout.valid.sum(1).tolist() == lengths


@given(sentences=st.integers(1, 23), count=st.integers(2, 5))
@QUICK
def test_parts_of_processes_interleave_to_the_whole(sentences: int, count: int) -> None:
    """Rows r, r + W, ... padded to equal length and laid out in turn are the batch again (see distribution._Gathered)."""
    rows, each = torch.arange(sentences), -(-sentences // count)
    parts = torch.cat([_filled(rows[r::count], each) for r in range(count)]).view(count, each)
    assert torch.equal(parts.transpose(0, 1).reshape(-1)[:sentences], rows)


# ---- alignment

PIECES = st.lists(st.sampled_from(["a", "b", "ab", "abc", "c", "ba", "ca"]), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", alignment.KINDS)
@given(teacher=st.lists(PIECES, min_size=1, max_size=3), seed=st.integers(0, 99))
@QUICK
def test_alignments_point_at_tokens_that_exist_and_never_cross(kind: str, teacher: list[list[str]], seed: int) -> None:
    """Of the same words cut in another way: every pair lies inside both sentences; pairs that keep the order do so."""
    rng = np.random.default_rng(seed)
    student = []
    for pieces in teacher:
        letters = "".join(pieces)
        cuts = np.flatnonzero(rng.random(len(letters) - 1) < 0.5) + 1 if len(letters) > 1 else []
        student.append(["".join(part) for part in np.split(np.array(list(letters)), cuts)])
    found = alignment.align(kind, teacher, student)
    assert found.shape[1] == 3
    for sentence, of_teacher, of_student in found.tolist():
        assert 0 <= of_teacher < len(teacher[sentence])
        assert 0 <= of_student < len(student[sentence])
    assert found[:, 0].tolist() == sorted(found[:, 0].tolist())
    for sentence in range(len(teacher)):
        here = found[found[:, 0] == sentence]
        if kind == "strict":  # equal texts at equal places of the sentence
            assert all(teacher[sentence][t] == student[sentence][s] for _, t, s in here.tolist())
        if kind in ("strict", "dtw"):
            ordered = here[np.lexsort((here[:, 2], here[:, 1]))]
            assert (np.diff(ordered[:, 1:], axis=0) >= 0).all()


@given(sentences=st.lists(PIECES, min_size=1, max_size=4))
@QUICK
def test_a_sentence_aligns_with_itself_token_by_token(sentences: list[list[str]]) -> None:
    for kind in ("strict", "dtw"):
        found = {tuple(row) for row in alignment.align(kind, sentences, sentences).tolist()}
        assert {(n, i, i) for n, pieces in enumerate(sentences) for i in range(len(pieces))} <= found
