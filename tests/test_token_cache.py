"""The token cache: the teacher's own states in fp16, signals shared between methods, resumption, damage, and a full disk."""

from __future__ import annotations

import errno
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

from talas_lib import alignment_cache, signal_files, tiny, token_cache
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.methods.base import Needs
from talas_lib.packed import Layout, TokenSequences
from talas_lib.signal_files import SignalFile
from talas_lib.token_cache import TokenCache, build, cache_folder, estimate
from talas_lib.tokenization import TextTokenizer
from talas_lib.training_data import TrainingData

ARCHS = list(tiny.POOLING)
IDENTITY = {"weights": "w", "tokenizer": "t", "pooling": "mean", "max_length": 64, "precision": "fp32"}
HIDDEN = Needs(teacher_tokens=(-1,))
BOTH = Needs(teacher_tokens=(-1, -2), teacher_attention=(-1,))
SHARD = 30_000  # about seven sentences


@pytest.fixture
def teacher(tiny_encoder_folder):
    """A function from an architecture to its tiny encoder."""

    def load(arch="bert", **options):
        attention = "bidirectional" if arch.endswith("bidirectional") else "native"
        options = {"pooling": tiny.POOLING[arch], "attention": attention, "max_length": 64} | options
        return Encoder.load(tiny_encoder_folder(arch), **options)

    return load


@pytest.fixture
def texts(tiny_texts):
    """41 texts, 39 of them different, of very different lengths."""
    return [*tiny_texts[:36], "a", "an old song " * 6, tiny_texts[2], "a", tiny_texts[50]]


class Counting:
    """Loads a teacher and counts loads and the sentences that it encodes; may break at the start of a call."""

    def __init__(self, encoder, fail_at=None):
        self.encoder, self.loads, self.calls, self.sentences, self.blocks = encoder, 0, 0, 0, set()
        self.fail_at, self.states = fail_at, encoder.states
        encoder.states = self

    def __call__(self, ids, layout, attention=()):
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.sentences += len(layout.lengths)
        self.blocks |= set(attention)
        return self.states(ids, layout, attention)

    def load(self):
        self.loads += 1
        return self.encoder


def never():
    raise AssertionError("the teacher was loaded for nothing")


def online(encoder, texts):
    """Hidden states and attention of one batch as the teacher gives them, padded."""
    ids, lengths = encoder.tokenize(texts).take(np.arange(len(texts)))
    layout = Layout.of(lengths)
    with torch.no_grad():
        hidden, attention = encoder.eval().states(ids, layout, (-1, -2))
    return layout, {k: layout.pad(hidden[k]) for k in (-1, -2)}, attention


# ---- content


@pytest.mark.parametrize("arch", ARCHS)
def test_cached_states_are_the_teachers_to_fp16(arch, teacher, texts, tmp_path):
    encoder = teacher(arch)
    needs = Needs(teacher_tokens=(-1, -2), teacher_attention=(-1, -2))
    cache = build(tmp_path, IDENTITY, texts, needs, lambda: encoder, shard=SHARD)
    rows = np.array([3, 36, 37, 0, 38, 2])
    layout, states, attention = online(encoder, [texts[i] for i in rows])
    found = cache.tokens(rows)
    assert (cache.dim, len(cache)) == (encoder.dim, 41)
    assert torch.equal(found.valid, layout.valid)
    assert found.states.keys() == found.attention.keys() == {-1, -2}
    for k in (-1, -2):
        assert found.states[k].dtype == found.attention[k].dtype == torch.float32
        torch.testing.assert_close(found.states[k], states[k], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.attention[k], attention[k], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.attention[k].sum(2), found.valid.float(), rtol=0, atol=2e-3)
        assert (found.states[k][~found.valid] == 0).all()
        assert (found.attention[k] == 0)[~(found.valid[:, :, None] & found.valid[:, None])].all()
    torch.testing.assert_close(found.states[-1][4], found.states[-1][5])  # one text twice
    assert not encoder.training


def test_special_tokens_of_the_cache(teacher, texts, tmp_path):
    cache = build(tmp_path, IDENTITY, texts, HIDDEN, teacher)
    found = cache.tokens([0, 36])
    lengths = found.valid.sum(1)
    expected = torch.zeros_like(found.valid)
    expected[:, 0] = True
    expected[torch.arange(2), lengths - 1] = True
    assert torch.equal(found.special, expected)
    assert lengths[1] == 3  # [CLS] a [SEP]


def test_a_method_that_only_aligns_gets_lengths_and_special_tokens(teacher, texts, tmp_path):
    encoder = Counting(teacher())
    needs = Needs(alignment="mined")
    assert needs.token_cache
    found = build(tmp_path, IDENTITY, texts, needs, encoder.load).tokens([1, 36])
    assert (dict(found.states), dict(found.attention), encoder.calls) == ({}, {}, 0)
    assert found.valid.sum(1).tolist() == teacher().tokenize([texts[1], "a"]).lengths.tolist()


def test_positions_are_those_of_the_alignment(teacher, texts, tmp_path):
    cache = build(tmp_path, IDENTITY, texts, HIDDEN, lambda: teacher("qwen3"))
    side = TextTokenizer.of(teacher("qwen3"))
    aligned = alignment_cache.build(tmp_path, "dtw", teacher("bert"), side, texts)
    assert aligned.meta["teacher_tokens_sha256"] == cache.meta["tokens_sha256"]
    rows = np.arange(20)
    tokens, pairs = cache.tokens(rows), aligned.pairs(rows)
    assert tokens.valid[pairs[:, 0], pairs[:, 2]].all()
    assert not tokens.special[pairs[:, 0], pairs[:, 2]].any()
    covered = torch.zeros_like(tokens.valid)
    covered[pairs[:, 0], pairs[:, 2]] = True
    assert torch.equal(covered, tokens.valid & ~tokens.special)  # a path passes every token


def test_bf16_is_another_identity(teacher, texts, tmp_path):
    with pytest.raises(ValueError, match="the identity says precision 'fp32', the call 'bf16'"):
        build(tmp_path, IDENTITY, texts, HIDDEN, never, precision="bf16")
    encoder = teacher()
    cache = build(tmp_path, IDENTITY | {"precision": "bf16"}, texts, HIDDEN, lambda: encoder, precision="bf16")
    states = online(encoder, texts[:3])[1][-1]
    torch.testing.assert_close(cache.tokens([0, 1, 2]).states[-1], states, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_states_beyond_fp16_are_refused_by_text(kind, value, teacher, texts, tmp_path):
    encoder = teacher()
    states, victim = encoder.states, encoder.tokenize([texts[5]])[0]

    def broken(ids, layout, attention=()):
        hidden, weights = states(ids, layout, (-1,))
        for sentence, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
            if ids[start : start + length].tolist() == victim.tolist():
                hidden[-1][start + 1, 3] = value
                weights[-1][sentence, 1, 1] = value
        return hidden, weights

    encoder.states = broken
    needs = HIDDEN if kind == "hidden" else Needs(teacher_attention=(-1,))
    with pytest.raises(TalasError) as caught:
        build(tmp_path, IDENTITY, texts, needs, lambda: encoder)
    assert f"the teacher's {kind}-1 holds" in str(caught.value)
    assert repr(texts[5]) in str(caught.value)
    assert "65504" in str(caught.value)
    assert TokenCache.open(tmp_path, IDENTITY, texts, needs) is None


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(teacher_tokens=(-5,)), "hidden-5 of a teacher that has hidden-1 to hidden-4"),
        (Needs(teacher_attention=(-4,)), "attention-4 of a teacher that has attention-1 to attention-3"),
    ],
)
def test_a_layer_the_teacher_does_not_have_is_refused(needs, message, teacher, texts, tmp_path):
    with pytest.raises(TalasError, match=message):
        build(tmp_path, IDENTITY, texts, needs, teacher)


# ---- sharing, resuming


def test_open_is_none_before_and_the_cache_after(teacher, texts, tmp_path):
    assert TokenCache.open(tmp_path, IDENTITY, texts, HIDDEN) is None
    cache = build(tmp_path, IDENTITY, texts, HIDDEN, teacher)
    opened = TokenCache.open(tmp_path, IDENTITY, texts, HIDDEN)
    assert opened is not None
    assert torch.equal(opened.tokens([4]).states[-1], cache.tokens([4]).states[-1])
    assert opened.seconds == cache.seconds > 0
    assert TokenCache.open(tmp_path, IDENTITY, texts, BOTH) is None
    assert TokenCache.open(tmp_path, IDENTITY | {"weights": "v"}, texts, HIDDEN) is None
    assert TokenCache.open(tmp_path, IDENTITY, texts[::-1], HIDDEN) is None
    build(tmp_path, IDENTITY, texts, HIDDEN, never)


def test_a_signal_more_leaves_the_others_alone(teacher, texts, tmp_path):
    first = Counting(teacher())
    build(tmp_path, IDENTITY, texts, HIDDEN, first.load, shard=SHARD)
    assert (first.sentences, first.blocks) == (39, set())
    folder = cache_folder(tmp_path, IDENTITY, texts)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    second = Counting(teacher())
    cache = build(tmp_path, IDENTITY, texts, BOTH, second.load, shard=SHARD)
    assert (second.sentences, second.blocks) == (39, {-1})
    for name, (time, content) in before.items():
        assert ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) == (time, content)
    together = build(tmp_path / "other", IDENTITY, texts, BOTH, teacher, shard=SHARD)
    for file in together.folder.glob("*.npy"):
        assert file.read_bytes() == (folder / file.name).read_bytes()
    assert set(cache.tokens([0]).states) == {-1, -2}
    less = build(tmp_path, IDENTITY, texts, Needs(teacher_tokens=(-2,)), never)  # a part of what is there
    assert set(less.tokens([0]).states) == {-2}
    assert less.bytes < cache.bytes


def test_each_text_is_encoded_once_in_shards_with_progress(teacher, texts, tmp_path):
    encoder, calls = Counting(teacher()), []
    build(tmp_path, IDENTITY, texts, BOTH, encoder.load, progress=lambda *done: calls.append(done), shard=SHARD)
    assert (encoder.loads, encoder.sentences) == (1, 39)
    assert calls[-1] == (39, 39)
    assert len(calls) > 3
    assert all(a < b for a, b in pairwise(calls))


@pytest.mark.parametrize("sharded", [SHARD, 6_000])
def test_a_killed_build_goes_on_where_it_stopped(sharded, teacher, texts, tmp_path):
    broken = Counting(teacher(), fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, IDENTITY, texts, BOTH, broken.load, shard=sharded)
    assert broken.sentences > 0
    assert TokenCache.open(tmp_path, IDENTITY, texts, BOTH) is None
    rest = Counting(teacher())
    cache = build(tmp_path, IDENTITY, texts, BOTH, rest.load, shard=sharded)
    assert broken.sentences + rest.sentences == 39
    other = build(tmp_path / "undisturbed", IDENTITY, texts, BOTH, teacher, shard=sharded)
    for file in other.folder.glob("*.npy"):
        assert file.read_bytes() == (cache.folder / file.name).read_bytes()


def test_a_kill_in_the_middle_of_a_write_costs_that_shard(teacher, texts, tmp_path, monkeypatch):
    put, written = SignalFile.put, []

    def torn(self, shard, values):
        if shard == 2:
            values = values.copy()
            values[len(values) // 2 :] = 0
            put(self, shard, values)
            raise KeyboardInterrupt
        written.append(shard)
        return put(self, shard, values)

    monkeypatch.setattr(SignalFile, "put", torn)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, IDENTITY, texts, HIDDEN, teacher, shard=SHARD)
    monkeypatch.undo()
    assert written == [0, 1]
    encoder = teacher()
    cache = build(tmp_path, IDENTITY, texts, HIDDEN, lambda: encoder, shard=SHARD)
    states = online(encoder, texts)[1]
    torch.testing.assert_close(cache.tokens(np.arange(len(texts))).states[-1], states[-1], rtol=1e-3, atol=1e-4)


def test_two_builds_at_once_take_turns(teacher, texts, tmp_path):
    encoder = Counting(teacher())
    with ThreadPoolExecutor(2) as pool:
        caches = list(pool.map(lambda _: build(tmp_path, IDENTITY, texts, HIDDEN, encoder.load), range(2)))
    assert (encoder.loads, encoder.sentences) == (1, 39)
    assert torch.equal(*(cache.tokens([0, 1]).states[-1] for cache in caches))


# ---- damage


@pytest.mark.parametrize("victim", ["hidden-2.npy", "attention-1.npy", "lengths.npy", "special.npy", "place.npy"])
def test_a_flipped_byte_is_found_and_only_its_shard_made_again(victim, teacher, texts, tmp_path):
    cache = build(tmp_path, IDENTITY, texts, BOTH, teacher, shard=SHARD)
    good = {file.name: file.read_bytes() for file in cache.folder.glob("*.npy")}
    content = bytearray(good[victim])
    content[-1] ^= 1
    (cache.folder / victim).write_bytes(content)
    with pytest.raises(TalasError, match=f"{victim} is damaged.*delete"):
        TokenCache.open(tmp_path, IDENTITY, texts, BOTH)
    unhurt = Needs(teacher_tokens=(-1,))
    if victim.startswith(("hidden", "attention")):
        assert TokenCache.open(tmp_path, IDENTITY, texts, unhurt) is not None
    repair = Counting(teacher())
    build(tmp_path, IDENTITY, texts, BOTH, repair.load)
    if victim.startswith(("hidden", "attention")):
        assert 0 < repair.sentences < 15
    else:
        assert repair.sentences == 0
    assert {file.name: file.read_bytes() for file in cache.folder.glob("*.npy")} == good


@pytest.mark.parametrize("victim", ["hidden-1.npy", "hidden-1.json", "meta.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_cut_or_missing_file_is_made_again(victim, how, teacher, texts, tmp_path):
    cache = build(tmp_path, IDENTITY, texts, BOTH, teacher, shard=SHARD)
    expected = cache.tokens(np.arange(41))
    file = cache.folder / victim
    if how == "gone":
        file.unlink()
        assert TokenCache.open(tmp_path, IDENTITY, texts, BOTH) is None
    else:
        file.write_bytes(file.read_bytes()[:-40])
    mended = build(tmp_path, IDENTITY, texts, BOTH, teacher, shard=SHARD).tokens(np.arange(41))
    for k in (-1, -2):
        assert torch.equal(mended.states[k], expected.states[k])
    assert torch.equal(mended.attention[-1], expected.attention[-1])


def test_signals_of_a_tokenizer_that_cuts_otherwise_are_made_again(teacher, texts, tmp_path):
    build(tmp_path, IDENTITY, texts, BOTH, teacher)
    other = Counting(teacher(max_length=9))  # as if a library had changed under the same identity
    cache = build(tmp_path, IDENTITY, texts, Needs(teacher_tokens=(-1, -3)), other.load)
    assert other.sentences == 39
    assert cache.tokens(np.arange(41)).valid.shape[1] == 9
    assert TokenCache.open(tmp_path, IDENTITY, texts, BOTH) is None


# ---- the disk


def test_the_estimate_is_what_is_written(teacher, texts, tmp_path):
    encoder = teacher()
    lengths = encoder.tokenize(list(dict.fromkeys(texts))).lengths
    assert estimate(np.array([2, 3]), 10, BOTH) == 2 * (2 * 5 * 10 + 4 + 9) + 5 + 32
    cache = build(tmp_path, IDENTITY, texts, BOTH, lambda: encoder)
    assert cache.bytes == pytest.approx(estimate(lengths, encoder.dim, BOTH), abs=6 * 128 + 8 * 2)  # headers, places


def test_a_small_disk_is_refused_before_anything_is_encoded(teacher, texts, tmp_path, caplog):
    encoder, asked = Counting(teacher()), []
    lengths = encoder.encoder.tokenize(sorted(set(texts))).lengths
    needed = 2 * (2 * lengths.sum() * 32 + (lengths**2).sum())

    def free(folder):
        asked.append(folder)
        return needed + token_cache.RESERVE - 1

    with pytest.raises(TalasError) as caught:
        build(tmp_path, IDENTITY, texts, BOTH, encoder.load, free_bytes=free)
    folder = cache_folder(tmp_path, IDENTITY, texts)
    assert (encoder.calls, asked) == (0, [folder])
    for part in (f"{needed:,} bytes", f"{free(folder):,} free", str(folder), "max_sentences", "TALAS_OUTPUTS"):
        assert part in str(caught.value)
    assert not list(folder.glob("hidden*"))
    with caplog.at_level(logging.INFO, logger="talas_lib.token_cache"):
        build(tmp_path, IDENTITY, texts, BOTH, encoder.load, free_bytes=lambda folder: free(folder) + 1)
    assert f"{needed:,} bytes for attention-1, hidden-2, hidden-1" in caplog.text


def test_only_what_is_missing_must_fit(teacher, texts, tmp_path):
    build(tmp_path, IDENTITY, texts, HIDDEN, teacher)
    lengths = teacher().tokenize(sorted(set(texts))).lengths
    room = token_cache.RESERVE + int(2 * 32 * lengths.sum())
    both = Needs(teacher_tokens=(-1, -2))
    with pytest.raises(TalasError, match="free"):
        build(tmp_path, IDENTITY, texts, both, teacher, free_bytes=lambda _: room - 1)
    assert build(tmp_path, IDENTITY, texts, both, teacher, free_bytes=lambda _: room).tokens(
        np.arange(2)
    ).states.keys() == {-1, -2}


def test_a_disk_that_fills_up_leaves_a_build_that_goes_on(teacher, texts, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(signal_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path, IDENTITY, texts, HIDDEN, teacher)
    monkeypatch.undo()
    assert TokenCache.open(tmp_path, IDENTITY, texts, HIDDEN) is None
    assert build(tmp_path, IDENTITY, texts, HIDDEN, teacher).tokens([0]).states[-1].abs().sum() > 0


@pytest.mark.parametrize("limit", [1, 5_000, 10**9])
def test_shards_hold_every_sentence_once(limit):
    lengths = np.random.default_rng(0).integers(1, 600, 200)
    bounds = token_cache._shards(lengths, limit)
    assert bounds[0] == 0
    assert bounds[-1] == 200
    assert (np.diff(bounds) > 0).all()
    assert len(bounds) - 1 == {1: 200, 10**9: 1}.get(limit, len(bounds) - 1)
    heaviest = max((lengths[a:b] * np.maximum(lengths[a:b], 256)).sum() for a, b in pairwise(bounds))
    assert heaviest <= limit + (lengths**2).max()


def test_the_record_says_what_the_cache_is(teacher, texts, tmp_path):
    cache = build(tmp_path, IDENTITY, texts, HIDDEN, teacher)
    meta = json.loads((cache.folder / "meta.json").read_text())
    assert meta["teacher"] == IDENTITY
    assert (meta["sentences"], meta["distinct"], meta["dim"]) == (41, 39, 32)


# ---- in the training data


@pytest.fixture
def data(teacher, texts, tmp_path):
    """Training data of a BERT student under a Qwen3 teacher, with everything the caches know."""
    student = teacher("bert")
    needs = Needs(teacher_tokens=(-1,), teacher_attention=(-1,))
    cache = build(tmp_path, IDENTITY, texts, needs, lambda: teacher("qwen3"))
    aligned = alignment_cache.build(tmp_path, "dtw", student, cache_side(teacher), texts)
    tokens = student.tokenize(texts)
    zeros = np.zeros(len(texts), dtype=np.int64)
    special = TextTokenizer.of(student).special(tokens)
    return TrainingData(tokens, (), zeros, zeros, special, cache.tokens, aligned.pairs), cache, aligned


def cache_side(teacher):
    return TextTokenizer.of(teacher("qwen3"))


def test_a_batch_carries_tokens_pairs_and_special_tokens_in_its_own_order(data):
    data, cache, aligned = data
    rows = np.array([37, 0, 36, 5, 38])
    batch = data.batch(rows)
    assert batch.rows.tolist() != rows.tolist()  # shortest first
    expected = cache.tokens(batch.rows.numpy())
    assert torch.equal(batch.tokens.states[-1], expected.states[-1])
    assert torch.equal(batch.tokens.attention[-1], expected.attention[-1])
    assert torch.equal(batch.tokens.valid, expected.valid)
    assert torch.equal(batch.tokens.special, expected.special)
    assert torch.equal(batch.pairs, aligned.pairs(batch.rows.numpy()))
    assert batch.special.shape == batch.layout.valid.shape
    assert batch.special.dtype == torch.bool
    edges = torch.zeros_like(batch.special)
    edges[:, 0] = True
    edges[torch.arange(5), batch.layout.lengths - 1] = True
    assert torch.equal(batch.special, edges)
    number, student, teacher = batch.pairs.T
    assert (batch.layout.valid & ~batch.special)[number, student].all()
    assert (batch.tokens.valid & ~batch.tokens.special)[number, teacher].all()


def test_renumbering_keeps_what_the_caches_know(data):
    data = data[0]
    renumbered, used = data.renumbered()
    a, b = data.batch(np.array([3, 4])), renumbered.batch(np.array([3, 4]))
    assert torch.equal(used[b.ids], a.ids)
    assert torch.equal(a.special, b.special)
    assert torch.equal(a.pairs, b.pairs)
    assert torch.equal(a.tokens.states[-1], b.tokens.states[-1])


def test_training_data_without_token_caches():
    tokens = TokenSequences.from_lists([[1, 2], [3]])
    batch = TrainingData(tokens, (), np.arange(2), np.zeros(2, dtype=np.int64)).batch(np.arange(2))
    assert (batch.special, batch.tokens, batch.pairs) == (None, None, None)
