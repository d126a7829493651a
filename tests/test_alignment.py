"""Alignment: CKA and Sinkhorn on worked numbers, DTW against a plain recursion, and tokens of different tokenizers as text."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from talas_lib import alignment_cache, tiny
from talas_lib.alignment import UNREADABLE, align, cka_loss, dtw, edit_distances, sinkhorn
from talas_lib.alignment_cache import Alignment, build
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.tokenization import TextTokenizer

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# ---- CKA


def test_cka_by_hand():
    # X^T Y = (2, 1), norms of X^T X and Y^T Y sqrt(10) and 2
    x, y = torch.tensor([[1.0, 0], [0, 1], [-1, -1]]), torch.tensor([[1.0], [0], [-1]])
    assert cka_loss(x, y).item() == pytest.approx(1 - 5**0.5 / (2 * 10**0.5) ** 0.5, abs=1e-6)
    assert cka_loss(x, y).item() == pytest.approx(0.110860, abs=1e-6)


@pytest.mark.parametrize(("rows", "a", "b"), [(30, 4, 3), (5, 40, 7), (6, 6, 6)])
def test_cka_ignores_rotation_scale_and_shift_of_either_side(rows, a, b):
    x, y = random(rows, a), random(rows, b, seed=1)
    rotation = torch.linalg.qr(random(a, a, seed=2))[0]
    other = torch.linalg.qr(random(b, b, seed=3))[0]
    moved = cka_loss(3 * x @ rotation + 5, 0.2 * y @ other - 1)
    torch.testing.assert_close(moved, cka_loss(x, y), atol=1e-6, rtol=0)
    assert cka_loss(x, 3 * x @ rotation).item() == pytest.approx(0, abs=1e-7)
    assert 0 < cka_loss(x, y) < 1


@pytest.mark.parametrize(("rows", "a", "b"), [(30, 4, 3), (5, 40, 7)])  # the crossed form and the Gram form
def test_cka_is_its_formula_with_masks_and_batches(rows, a, b):
    x, y, mask = random(2, rows, a), random(2, rows, b, seed=1), torch.ones(2, rows, dtype=torch.bool)
    mask[1, 3:] = False
    expected = []
    for one, two in ((x[0], y[0]), (x[1, :3], y[1, :3])):
        one, two = one - one.mean(0), two - two.mean(0)
        norms = [torch.linalg.norm(m) for m in (one.T @ two, one.T @ one, two.T @ two)]
        expected.append(1 - norms[0] / ((norms[1] + 1e-8) * (norms[2] + 1e-8)).sqrt())
    x[1, 3:], y[1, 3:] = torch.nan, 1e6  # rows that do not count are not looked at
    torch.testing.assert_close(cka_loss(x, y, mask), torch.stack(expected))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_cka_of_rows_without_variance_is_one_and_has_no_gradient(rows):
    x = torch.ones(3, 4, requires_grad=True)
    y = random(3, 2).float()
    loss = cka_loss(x, y, torch.arange(3) < rows)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x, allow_unused=True)
    assert loss.item() == 1
    assert torch.equal(grad, torch.zeros(3, 4))
    assert second is None or torch.isfinite(second).all()


def test_cka_gradient():
    x, y = random(6, 3).requires_grad_(), random(6, 2, seed=1).requires_grad_()
    mask = torch.tensor([True, True, False, True, True, True])
    assert torch.autograd.gradcheck(lambda x, y: cka_loss(x, y, mask), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: cka_loss(x, y, mask), (x, y))


def test_cka_of_half_precision_is_computed_in_fp32():
    x, y = random(6, 3).half(), random(6, 2, seed=1).half()
    assert cka_loss(x, y).dtype == torch.float32
    torch.testing.assert_close(cka_loss(x, y), cka_loss(x.float(), y.float()))


# ---- Sinkhorn


def transport(cost, a, b, **options):
    cost, a, b = (torch.tensor(v)[None] for v in (cost, a, b))
    return (sinkhorn(cost, a, b, **options) * cost).sum().item()


@pytest.mark.parametrize(
    ("cost", "a", "b", "expected"),
    [
        ([[0.0, 1], [1, 0]], (0.5, 0.5), (0.5, 0.5), 4.53979e-5),
        ([[0.0, 1], [1, 0]], (0.7, 0.3), (0.5, 0.5), 0.2),  # what an exact plan costs, too
        ([[0.75, 0.75, 0.75], [0.75, 0.75, 0.75]], (0.9, 0.1), (0.2, 0.3, 0.5), 0.75),  # whatever the masses
    ],
)
def test_sinkhorn_by_hand(cost, a, b, expected):
    assert transport(cost, a, b) == pytest.approx(expected, rel=1e-4)


def masses(n, size, seed):
    return random(n, size, seed=seed).softmax(-1)


def test_sinkhorn_plan_has_the_masses_as_marginals():
    cost = random(4, 5, 7).sigmoid()
    plan = sinkhorn(cost, masses(4, 5, 1), masses(4, 7, 2), iterations=500)
    torch.testing.assert_close(plan.sum(2), masses(4, 5, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(1), masses(4, 7, 2), atol=1e-6, rtol=0)
    assert (plan > 0).all()


def test_sinkhorn_moves_with_the_tokens():
    cost, a, b = random(1, 5, 7).sigmoid(), masses(1, 5, 1), masses(1, 7, 2)
    order, other = random(5, seed=3).argsort(), random(7, seed=4).argsort()
    moved = sinkhorn(cost[:, order][:, :, other], a[:, order], b[:, other])
    torch.testing.assert_close(moved, sinkhorn(cost, a, b)[:, order][:, :, other])


@pytest.mark.parametrize("padding", [0.0, 1e9, float("inf"), float("nan")])
def test_sinkhorn_does_not_look_at_pads(padding):
    cost, a, b = random(2, 4, 5).sigmoid(), masses(2, 4, 1), masses(2, 5, 2)
    wide = torch.full((2, 6, 9), padding, dtype=DOUBLE)
    wide[:, :4, :5] = cost
    wide.requires_grad_()
    plan = sinkhorn(wide, torch.nn.functional.pad(a, (0, 2)), torch.nn.functional.pad(b, (0, 4)))
    torch.testing.assert_close(plan[:, :4, :5], sinkhorn(cost, a, b))
    assert plan.sum().item() == pytest.approx(2)
    (grad,) = torch.autograd.grad(plan[:, :2].square().sum(), wide)
    assert torch.isfinite(grad).all()
    assert grad[:, 4:].abs().max() == grad[:, :, 5:].abs().max() == 0


def test_sinkhorn_gradient_flows_through_the_iterations():
    cost, a, b = random(2, 3, 4).sigmoid().requires_grad_(), masses(2, 3, 1), masses(2, 4, 2)
    a.requires_grad_()
    loss = lambda cost, a: (sinkhorn(cost, a, b, iterations=5) * cost).sum()  # noqa: E731
    assert torch.autograd.gradcheck(loss, (cost, a))


# ---- dynamic time warping


def plain_dtw(cost):
    """Total and path of one cost matrix by the recursion as it is written: diagonal, then up, then left."""
    n, m = cost.shape
    total = {(-1, -1): (0, None)}
    for i in range(n):
        for j in range(m):
            steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            best = min((s for s in steps if s in total), key=lambda s: total[s][0])
            total[i, j] = (total[best][0] + cost[i, j], best)
    path, at = [], (n - 1, m - 1)
    while at != (-1, -1):
        path.append(at)
        at = total[at][1]
    return total[n - 1, m - 1][0], path[::-1]


@pytest.mark.parametrize(
    ("teacher", "student", "expected", "path"),
    [
        (
            ["the", "un", "believ", "able", "story"],
            ["the", "unbeliev", "able", "story"],
            5,
            [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)],
        ),
        (["play", "ing", "chess"], ["playing", "chess"], 7, [(0, 0), (1, 0), (2, 1)]),
    ],
)
def test_dtw_by_hand(teacher, student, expected, path):
    cost = edit_distances(teacher, student)
    totals, steps = dtw(cost[None], np.array([len(teacher)]), np.array([len(student)]))
    assert totals.tolist() == [expected]
    assert steps.tolist() == [[0, i, j] for i, j in path]
    assert align("dtw", [teacher], [student]).tolist() == steps.tolist()


def test_edit_distances_by_hand():
    found = edit_distances(["un", "believ", ""], ["the", "unbeliev", "able", "story"])
    assert found.tolist() == [[3, 6, 4, 5], [5, 2, 4, 6], [3, 8, 4, 5]]


costs = st.integers(1, 6).flatmap(
    lambda n: st.integers(1, 6).flatmap(
        lambda m: st.lists(st.lists(st.integers(0, 3), min_size=m, max_size=m), min_size=n, max_size=n).map(np.array)
    )
)


@settings(deadline=None, max_examples=60)
@given(st.lists(costs, min_size=1, max_size=4))
def test_dtw_of_a_batch_is_the_plain_recursion(problems):
    sizes = np.array([p.shape for p in problems])
    batch = np.full((len(problems), *sizes.max(0)), 99)
    for number, problem in enumerate(problems):
        batch[number, : problem.shape[0], : problem.shape[1]] = problem
    totals, steps = dtw(batch, sizes[:, 0], sizes[:, 1])
    for number, problem in enumerate(problems):
        path = steps[steps[:, 0] == number, 1:]
        assert (totals[number], [tuple(p) for p in path.tolist()]) == plain_dtw(problem)
        assert path[0].tolist() == [0, 0]
        assert path[-1].tolist() == [n - 1 for n in problem.shape]
        assert {tuple(s) for s in np.diff(path, axis=0).tolist()} <= {(1, 1), (1, 0), (0, 1)}
        assert problem[tuple(path.T)].sum() == totals[number]
    assert (np.diff(steps[:, 0]) >= 0).all()


def test_equal_totals_prefer_the_diagonal():
    _, steps = dtw(np.zeros((1, 4, 4), int), np.array([4]), np.array([4]))
    assert steps[:, 1:].tolist() == [[i, i] for i in range(4)]


# ---- kinds of alignment


def test_strict_pairs_by_hand():
    teacher, student = ["the", "un", "believ", "able", "story"], ["the", "unbeliev", "able", "story"]
    # "the" is lost, since "un" is nearer to it than to "unbeliev"
    assert align("strict", [teacher], [student]).tolist() == [[0, 3, 2], [0, 4, 3]]


def test_pieces_that_stand_for_unknown_text_are_never_equal():
    pieces = ["a", UNREADABLE, "", "b"]
    assert align("strict", [pieces], [pieces]).tolist() == [[0, 0, 0], [0, 3, 3]]
    assert len(align("dtw", [pieces], [pieces])) == 4


def test_mined_pairs_by_hand():
    # "cats" is nearest to "cat", which is nearest to "cat"; "dog" to "dogs" and back; "x" to "cat" (of equals the first)
    assert align("mined", [["cat", "cats", "dog"]], [["cat", "dogs", "x"]]).tolist() == [[0, 0, 0], [0, 2, 1]]
    # of repeated tokens the first occurrences are a pair
    assert align("mined", [["the", "sea", "the"]], [["on", "the", "the"]]).tolist() == [[0, 0, 1]]


words = st.lists(st.text("abc", min_size=1, max_size=3), max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(words, words), max_size=4))
def test_properties_of_every_kind(sentences):
    a, b = [s[0] for s in sentences], [s[1] for s in sentences]
    found = {kind: [tuple(p) for p in align(kind, a, b).tolist()] for kind in ("dtw", "strict", "mined")}
    assert set(found["strict"]) <= set(found["dtw"])
    assert all(a[s][i] == b[s][j] for s, i, j in found["strict"])
    for pairs in (found["strict"], found["mined"]):  # one to one
        assert len({(s, i) for s, i, _ in pairs}) == len({(s, j) for s, _, j in pairs}) == len(pairs)
    for sentence, (x, y) in enumerate(sentences):
        distance = edit_distances(x, y)
        expected = [
            (sentence, i, j)
            for i in range(len(x))
            for j in range(len(y))
            if distance[i].argmin() == j and distance[:, j].argmin() == i
        ]
        assert [p for p in found["mined"] if p[0] == sentence] == expected
    assert all(pairs == sorted(pairs) for pairs in found.values())


def test_equal_sentences_are_aligned_token_by_token():
    sentence = ["a", "rose", "is", "a", "rose", "is", "a", "rose"]
    expected = [[0, i, i] for i in range(8)]
    assert align("dtw", [sentence], [sentence]).tolist() == align("strict", [sentence], [sentence]).tolist() == expected
    distinct = ["a", "rose", "is"]
    assert align("mined", [distinct], [distinct]).tolist() == expected[:3]


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'exact' is not one of strict, dtw, mined"):
        align("exact", [], [])
    with pytest.raises(TalasError, match="'exact' is not one of strict, dtw, mined"):
        build(tmp_path, "exact", tokenizer_like(), tokenizer_like(), [])


def tokenizer_like():
    return TextTokenizer(None, "mean", 8)


# ---- tokens as text


@pytest.fixture
def side(tiny_encoder_folder):
    """A function from an architecture to its tokenizer, the weights unread."""
    return lambda arch, **options: TextTokenizer.load(
        tiny_encoder_folder(arch), **({"pooling": tiny.POOLING[arch], "max_length": 64} | options)
    )


@pytest.mark.parametrize("arch", list(tiny.POOLING))
@pytest.mark.parametrize("options", [{}, {"max_length": 6}, {"prompt": "the cook: "}], ids=str)
def test_an_encoder_gives_the_ids_of_its_tokenizer_alone(arch, options, side, tiny_encoder_folder, tiny_texts):
    """The ids are those of a plain call, and do not depend on whether the weights are there."""
    options = {"max_length": 64} | options
    encoder = Encoder.load(tiny_encoder_folder(arch), pooling=tiny.POOLING[arch], **options)
    alone, texts = side(arch, **options), tiny_texts[:30]
    plain = [
        encoder.tokenizer(options.get("prompt", "") + t, truncation=True, max_length=options["max_length"])["input_ids"]
        for t in texts
    ]
    for tokens in (encoder.tokenize(texts), alone.tokenize(texts)):
        assert [tokens[i].tolist() for i in range(len(texts))] == plain
    assert encoder.end_of_text_ids() == alone.end_of_text_ids()
    assert TextTokenizer.of(encoder).fingerprint() == alone.fingerprint()


def test_the_tokenizer_is_loaded_without_the_weights(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder("bert"), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    assert len(TextTokenizer.load(folder, pooling="mean", max_length=64).tokenize(["the cook"]))


@pytest.mark.parametrize("arch", ["bert", "mpnet", "xlm-r", "qwen3"])
def test_pieces_joined_are_the_text(arch, side):
    text = "The young chef  burnt her lentil stew, before dinner. We left"
    one = side(arch)
    tokens = one.tokenize([text])
    pieces = np.array(one.pieces(tokens), dtype=object)[~one.special(tokens)]
    assert "".join(pieces) == text.lower().replace(" ", "")
    assert not any(mark in piece for piece in pieces for mark in ("##", "Ġ", "▁", " "))


@pytest.mark.parametrize(
    ("arch", "text", "piece"),
    [("bert", "Café", "cafe"), ("qwen3", "Café", "caf" + 2 * UNREADABLE), ("bert", "雨", UNREADABLE)],
    ids=str,
)
def test_pieces_of_bytes_and_unknown_words(arch, text, piece, side):
    one = side(arch)
    tokens = one.tokenize([text])
    pieces = [p for p, special in zip(one.pieces(tokens), one.special(tokens), strict=True) if not special]
    assert "".join(pieces) == piece


@pytest.mark.parametrize(
    ("arch", "begin", "end"),
    [("bert", 1, 1), ("mpnet", 1, 1), ("xlm-r", 1, 1), ("qwen3", 0, 1), ("qwen3-bidirectional", 0, 1)],
)
def test_special_tokens_are_the_marks_and_not_the_unknown_word(arch, begin, end, side):
    one = side(arch)
    tokens = one.tokenize(["the cook 雨 tasted", "雨"])
    special = np.split(one.special(tokens), tokens.offsets[1:-1])
    for sentence in special:
        text = len(sentence) - begin - end
        assert sentence.tolist() == [True] * begin + [False] * text + [True] * end
    if one.tokenizer.unk_token_id is not None:
        assert one.tokenizer.unk_token_id in tokens.ids


def test_an_end_that_is_no_special_token_of_the_tokenizer_is_special_where_it_closes_every_sentence(side, monkeypatch):
    one = side("qwen3", pooling="last")
    monkeypatch.setattr(TextTokenizer, "end_of_text_ids", lambda self: [77])
    tokens = one.tokenize(["the cook", "a storm"])
    assert tokens.ids[tokens.offsets[1:] - 1].tolist() == [77, 77]
    assert one.special(tokens)[tokens.offsets[1:] - 1].all()
    assert 77 not in side("qwen3", pooling="mean").special_ids()


@pytest.mark.parametrize("arch", ["bert", "xlm-r", "qwen3"])
def test_the_prompt_counts_as_special(arch, side, tiny_texts):
    plain, prompted = side(arch), side(arch, prompt="the cook tasted ")
    texts = [*tiny_texts[:5], "the cook tasted"]  # the last one: the prompt once more
    a, b = plain.tokenize(texts), prompted.tokenize(texts)
    kept_a, kept_b = ~plain.special(a), ~prompted.special(b)
    text_a = "".join(p for p, kept in zip(plain.pieces(a), kept_a, strict=True) if kept)
    text_b = "".join(p for p, kept in zip(prompted.pieces(b), kept_b, strict=True) if kept)
    assert text_a == text_b
    assert kept_b.sum() < len(kept_b) - 3 * len(texts)


def test_the_fingerprint_sees_what_changes_the_tokens(side, tiny_texts):
    first = side("bert").fingerprint()
    one = side("bert")
    one.tokenize(tiny_texts)
    one.tokenizer(tiny_texts[:2], padding=True, truncation=True, max_length=3)
    assert one.fingerprint() == first
    others = [side("bert", max_length=8), side("bert", prompt="a "), side("bert", pooling="last"), side("qwen3")]
    assert len({first, *(other.fingerprint() for other in others)}) == 5


# ---- the cache


@pytest.mark.parametrize("arch", ["bert", "xlm-r", "qwen3"])
def test_equal_tokenizers_give_the_identity(arch, side, tiny_texts, tmp_path):
    one = side(arch)
    texts = tiny_texts[:20]
    tokens = one.tokenize(texts)
    special = np.split(one.special(tokens), tokens.offsets[1:-1])
    expected = [(s, i, i) for s, marks in enumerate(special) for i in np.flatnonzero(~marks).tolist()]
    found = build(tmp_path, "dtw", one, one, texts).pairs(np.arange(20))
    assert [tuple(p) for p in found.tolist()] == expected


@pytest.mark.parametrize("arch", ["qwen3", "xlm-r"])
def test_tokens_of_different_tokenizers_that_are_equal_as_text(arch, side, tiny_texts, tmp_path):
    student, teacher = side("bert"), side(arch)
    texts = tiny_texts[:60]
    pairs = build(tmp_path, "strict", student, teacher, texts).pairs(np.arange(60)).numpy()
    s, t = student.tokenize(texts), teacher.tokenize(texts)
    left = np.array(student.pieces(s), dtype=object)[s.offsets[pairs[:, 0]] + pairs[:, 1]]
    right = np.array(teacher.pieces(t), dtype=object)[t.offsets[pairs[:, 0]] + pairs[:, 2]]
    assert left.tolist() == right.tolist()
    rising = (pairs[1:, 1:] > pairs[:-1, 1:]).all(1)
    assert (rising | (pairs[1:, 0] > pairs[:-1, 0])).all()  # within a sentence
    share = len(pairs) / (~student.special(s)).sum()
    assert share > {"qwen3": 0.8, "xlm-r": 0.1}[arch]  # this Unigram vocabulary cuts most words to bits
    whole = build(tmp_path, "dtw", student, teacher, texts).pairs(np.arange(60)).tolist()
    assert {tuple(p) for p in pairs.tolist()} <= {tuple(p) for p in whole}


def test_a_prompt_moves_the_teachers_positions_and_nothing_else(side, tiny_texts, tmp_path):
    student, texts = side("bert"), tiny_texts[:8]
    plain, prompted = side("qwen3"), side("qwen3", prompt="question:\n")
    a, b = (build(tmp_path, "dtw", student, t, texts).pairs(np.arange(8)) for t in (plain, prompted))
    moved = b[:, 2] - a[:, 2]
    assert torch.equal(a[:, :2], b[:, :2])
    assert moved.unique().tolist() == [len(prompted.tokenize(["x"]).ids) - len(plain.tokenize(["x"]).ids)]


@pytest.mark.parametrize("kind", ["dtw", "strict", "mined"])
def test_pairs_of_a_batch_are_those_of_its_sentences(kind, side, tiny_texts, tmp_path):
    texts = [*tiny_texts[:30], tiny_texts[3]]
    cache = build(tmp_path, kind, side("bert"), side("xlm-r"), texts)
    assert len(cache) == 31
    rows = np.array([7, 30, 0, 3])
    expected = [[n, *p[1:]] for n, row in enumerate(rows) for p in cache.pairs([row]).tolist()]
    found = cache.pairs(rows)
    assert found.tolist() == expected
    assert found.dtype == torch.int64
    assert [p[1:] for p in expected if p[0] == 1] == [p[1:] for p in expected if p[0] == 3]  # the same text


def test_groups_of_any_size_give_the_same_pairs(side, tiny_texts, tmp_path, monkeypatch):
    sides, calls = (side("bert"), side("qwen3")), []
    whole = build(tmp_path / "whole", "dtw", *sides, tiny_texts, lambda *done: calls.append(done))
    monkeypatch.setattr(alignment_cache, "CELLS", 3000)
    parts = build(tmp_path / "parts", "dtw", *sides, tiny_texts, lambda *done: calls.append(done))
    assert calls[0] == calls[-1] == (len(tiny_texts), len(tiny_texts))
    assert len(calls) > 10
    assert torch.equal(whole.pairs(np.arange(300)), parts.pairs(np.arange(300)))


def test_a_second_build_reads_the_first_and_damage_is_made_good(side, tiny_texts, tmp_path, monkeypatch):
    args = (tmp_path, "mined", side("bert"), side("qwen3"), tiny_texts[:20])
    first = build(*args)
    expected = first.pairs(np.arange(20))
    file = first.folder / "pairs.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TalasError, match=r"pairs\.npy is damaged or missing; delete"):
        Alignment.open(first.folder)
    assert torch.equal(build(*args).pairs(np.arange(20)), expected)
    monkeypatch.setattr(TextTokenizer, "tokenize", None)
    assert torch.equal(build(*args).pairs(np.arange(20)), expected)
    (first.folder / "meta.json").unlink()
    assert Alignment.open(first.folder) is None


def test_other_tokenizers_kinds_and_texts_have_other_caches(side, tiny_texts, tmp_path):
    texts = tiny_texts[:4]
    build(tmp_path, "dtw", side("bert"), side("qwen3"), texts)
    build(tmp_path, "strict", side("bert"), side("qwen3"), texts)
    build(tmp_path, "dtw", side("qwen3"), side("bert"), texts)
    build(tmp_path, "dtw", side("bert", max_length=8), side("qwen3"), texts)
    build(tmp_path, "dtw", side("bert"), side("qwen3"), texts[::-1])
    assert len(list(tmp_path.glob("alignment-*/meta.json"))) == 5
