"""The teacher cache: right vectors, a key that sees every change, resumption by shard, and no damaged byte served."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from talas_lib import files, teacher_cache
from talas_lib.cache_files import distinct_texts
from talas_lib.errors import TalasError
from talas_lib.teacher_cache import TeacherCache, build, cache_key

TEXTS = [f"sentence number {i % 7} with {i % 5} words" for i in range(40)]
IDENTITY = {"weights": "w", "tokenizer": "t", "pooling": "mean", "prompt": "", "max_length": 16, "precision": "fp32"}


class Teacher:
    """Counts its calls; a text's vector is a function of its characters."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.fail_at = fail_at

    def __call__(self, texts):
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        return np.array([vector(t) for t in texts])


def vector(text: str) -> np.ndarray:
    return np.array([len(text), sum(map(ord, text)) % 101, 1.0], dtype=np.float32)


def test_vectors_in_corpus_order_each_text_once(tmp_path):
    teacher = Teacher()
    cache = build(tmp_path, IDENTITY, TEXTS, teacher, shard_size=8)
    assert sorted(t for call in teacher.calls for t in call) == sorted(set(TEXTS))
    rows = [3, 0, 39, 3]
    np.testing.assert_array_equal(cache.vectors(rows), [vector(TEXTS[i]) for i in rows])
    assert (len(cache), cache.dim, cache.meta["distinct"]) == (40, 3, len(set(TEXTS)))


def test_a_second_build_opens_the_first(tmp_path):
    build(tmp_path, IDENTITY, TEXTS, Teacher(), shard_size=8)
    again = Teacher()
    build(tmp_path, IDENTITY, TEXTS, again, shard_size=8)
    assert again.calls == []


@pytest.mark.parametrize("field", list(IDENTITY))
def test_every_part_of_the_identity_changes_the_key(field):
    assert cache_key(IDENTITY | {field: "other"}, TEXTS) != cache_key(IDENTITY, TEXTS)


def test_texts_and_their_order_change_the_key():
    key = cache_key(IDENTITY, TEXTS)
    assert cache_key(IDENTITY, TEXTS[::-1]) != key
    assert cache_key(IDENTITY, [*TEXTS[:-1], TEXTS[-1] + " "]) != key
    assert cache_key(IDENTITY, ["ab", "c"]) != cache_key(IDENTITY, ["a", "bc"])


def test_an_interrupted_build_goes_on_at_its_shard(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, IDENTITY, TEXTS, Teacher(fail_at=2), shard_size=8)
    folder = tmp_path / f"teacher-{cache_key(IDENTITY, TEXTS)}"
    with pytest.raises(TalasError, match="no finished teacher cache"):
        TeacherCache.open(folder)
    rest = Teacher()
    cache = build(tmp_path, IDENTITY, TEXTS, rest, shard_size=8)
    whole = Teacher()
    other = build(tmp_path / "undisturbed", IDENTITY, TEXTS, whole, shard_size=8)
    assert len(rest.calls) == len(whole.calls) - 2
    for a, b in zip(sorted(cache.folder.glob("*.npy")), sorted(other.folder.glob("*.npy")), strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("victim", ["shard-00001.npy", "place.npy"])
def test_a_flipped_byte_is_found_and_only_its_shard_made_again(tmp_path, victim):
    cache = build(tmp_path, IDENTITY, TEXTS, Teacher(), shard_size=8)
    file = cache.folder / victim
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TalasError, match=victim):
        TeacherCache.open(cache.folder)
    repair = Teacher()
    mended = build(tmp_path, IDENTITY, TEXTS, repair, shard_size=8)
    assert len(repair.calls) == (1 if victim.startswith("shard") else 0)
    np.testing.assert_array_equal(mended.vectors(range(40)), [vector(t) for t in TEXTS])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_useless_vectors_are_refused_by_text(tmp_path, bad):
    def teacher(texts):
        out = np.array([vector(t) for t in texts])
        out[[i for i, t in enumerate(texts) if t == TEXTS[5]]] = bad
        return out

    with pytest.raises(TalasError, match=TEXTS[5]):
        build(tmp_path, IDENTITY, TEXTS, teacher, shard_size=64)


def test_a_full_disk_leaves_no_finished_cache(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path, IDENTITY, TEXTS, Teacher(), shard_size=8)
    monkeypatch.undo()
    cache = build(tmp_path, IDENTITY, TEXTS, Teacher(), shard_size=8)
    np.testing.assert_array_equal(cache.vectors([1]), [vector(TEXTS[1])])


def test_distinct_texts_come_shortest_first():
    texts = [*TEXTS, "b", "a", "", "b"]
    distinct, place = distinct_texts(texts)
    assert distinct == sorted(set(texts), key=lambda t: (len(t), t))
    assert [distinct[i] for i in place] == texts
    assert distinct_texts([])[0] == []


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "OPEN_SHARDS", 2)
    cache = build(tmp_path, IDENTITY, TEXTS, Teacher(), shard_size=4)
    assert len(cache.meta["shards"]) == 9
    for rows in (range(40), [39, 0, 39], range(39, -1, -1)):
        np.testing.assert_array_equal(cache.vectors(rows), [vector(TEXTS[i]) for i in rows])
    assert len(cache._maps) == 2


def test_memory_beside_the_texts_is_a_few_bytes_a_text(tmp_path):
    """All the vectors would take 128 bytes a text, a table of all texts about as much."""

    def peak(count):
        texts = ["x" * (i % 50) + str(i) for i in range(count)]
        tracemalloc.start()
        build(tmp_path / str(count), IDENTITY, texts, lambda some: np.ones((len(some), 32), np.float32), shard_size=256)
        tracemalloc_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return tracemalloc_peak

    peak(100)  # what the first call imports
    assert (peak(20000) - peak(4000)) / 16000 < 60
