"""Packed attention against plain padded attention, grouped and not, forward and backward; the dropout mask's statistics."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from talas_lib.packed import FastDropout, Layout, _unpadded_attention, dropout_mask, packed_attention, use_fast_dropout

UNEVEN = [3, 30, 5, 2, 4, 6, 3, 28, 5, 4, 2, 7]
SORTED = sorted(UNEVEN)
ALIKE = [5, 6, 5, 6, 5, 6, 5, 6]


def tensors(lengths, heads=4, kv_heads=4, dim=8):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)

    def draw(h):
        return torch.randn(1, h, total, dim, generator=generator, dtype=torch.float64).requires_grad_()

    return draw(heads), draw(kv_heads), draw(kv_heads)


def one_by_one(q, k, v, lengths, causal):
    """Each sentence on its own through torch's attention."""
    out, start = [], 0
    for n in lengths:
        part = [x[:, :, start : start + n] for x in (q, k, v)]
        out.append(F.scaled_dot_product_attention(*part, is_causal=causal, enable_gqa=k.shape[1] != q.shape[1]))
        start += n
    return torch.cat(out, 2).transpose(1, 2)


@pytest.mark.parametrize("lengths", [UNEVEN, SORTED, ALIKE, [7], [1, 1]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_equals_one_sentence_at_a_time(lengths, causal, kv_heads, fused):
    q, k, v = tensors(lengths, kv_heads=kv_heads)
    layout = Layout.of(torch.tensor(lengths))
    with torch.set_grad_enabled(not fused):
        out, _ = packed_attention(SimpleNamespace(is_causal=causal), q, k, v, None, layout=layout)
    torch.testing.assert_close(out, one_by_one(q, k, v, lengths, causal))


def test_sorted_uneven_batches_are_grouped_and_even_ones_are_not():
    groups = Layout.of(torch.tensor(sorted(UNEVEN))).groups
    assert torch.cat([g.lengths for g in groups]).tolist() == sorted(UNEVEN)
    assert sum(len(g.lengths) * g.longest**2 for g in groups) < 0.5 * len(UNEVEN) * 30**2
    assert len(groups) == 4
    assert len(Layout.of(torch.tensor(ALIKE)).groups) == 1


def test_a_doubled_batch():
    layout, origin = Layout.of(torch.tensor([2, 1])).twice()
    assert layout.lengths.tolist() == [2, 2, 1, 1]
    assert origin.tolist() == [0, 1, 0, 1, 2, 2]


@pytest.mark.parametrize("lengths", [UNEVEN, SORTED, ALIKE])
def test_first_and_second_derivatives(lengths):
    layout = Layout.of(torch.tensor(lengths))
    q, k, v = tensors(lengths)
    probe = torch.randn(1, sum(lengths), 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def second(run):
        first = torch.autograd.grad((run() * probe).square().sum(), [q, k, v], create_graph=True)
        return (*first, *torch.autograd.grad(sum(g.square().sum() for g in first), [q, k, v]))

    packed = second(lambda: packed_attention(SimpleNamespace(), q, k, v, None, layout=layout)[0])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = second(lambda: one_by_one(q, k, v, lengths, False))
    for a, b in zip(packed, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_needs_a_layout():
    with pytest.raises(ValueError, match="needs layout"):
        packed_attention(SimpleNamespace(), *tensors([3]), None)


def test_attention_dropout_keeps_the_mean():
    lengths = sorted(UNEVEN * 4)
    q, k, v = (t.float() for t in tensors(lengths))
    layout = Layout.of(torch.tensor(lengths))
    torch.manual_seed(0)
    draws = [packed_attention(SimpleNamespace(), q, k, v, None, dropout=0.3, layout=layout)[0] for _ in range(300)]
    exact = packed_attention(SimpleNamespace(), q, k, v, None, layout=layout)[0]
    assert not torch.equal(draws[0], draws[1])
    assert (torch.stack(draws).mean(0) - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.02


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(1000, 301), (7,), (3, 5, 11)])
def test_dropout_mask(p, shape):
    torch.manual_seed(0)
    like = torch.empty(shape)
    mask = dropout_mask(like, p)
    assert mask.shape == like.shape
    kept = 1 / (1 - round(p * 65536) / 65536)
    assert set(mask.unique().tolist()) <= {0.0, torch.tensor(kept).item()}
    if mask.numel() > 100_000:
        dropped = (mask == 0).float().mean().item()
        assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / mask.numel()) ** 0.5)
        columns = (mask == 0).float().mean(0)
        assert columns.std().item() == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.15)
        neighbours = torch.corrcoef(torch.stack([mask[:, :-1].flatten(), mask[:, 1:].flatten()]))[0, 1]
        assert abs(neighbours) < 0.01


def test_dropout_mask_follows_the_seed():
    torch.manual_seed(3)
    first = dropout_mask(torch.empty(50), 0.1)
    torch.manual_seed(3)
    assert torch.equal(first, dropout_mask(torch.empty(50), 0.1))
    assert not torch.equal(first, dropout_mask(torch.empty(50), 0.1))


def test_fast_dropout_replaces_every_dropout():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4)))
    use_fast_dropout(model)
    assert [m.p for m in model.modules() if isinstance(m, FastDropout)] == [0.2, 0.4]
    x = torch.ones(5, 2)
    assert torch.equal(model[0].eval()(x), x)
    torch.manual_seed(0)
    assert set(model[0].train()(x).unique().tolist()) <= {0.0, 1.25, torch.tensor(65536 / (65536 - 13107)).item()}


@pytest.mark.parametrize("causal", [False, True])
def test_a_kernel_for_packed_sequences_gets_what_it_asks_for(causal):
    """The call that flash-attn receives on a GPU, answered here by torch one sentence at a time."""
    q, k, v = (x.detach() for x in tensors(UNEVEN, heads=4, kv_heads=2))

    def kernel(q, k, v, starts, key_starts, longest, longest_key, *, dropout_p, softmax_scale, causal):
        assert starts.dtype == key_starts.dtype == torch.int32
        assert (longest, longest_key, dropout_p, softmax_scale) == (max(UNEVEN), max(UNEVEN), 0.0, 8**-0.5)
        assert starts.diff().tolist() == key_starts.diff().tolist() == UNEVEN
        heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
        return one_by_one(*heads_first, starts.diff().tolist(), causal)[0]

    packed = [x[0].transpose(0, 1) for x in (q, k, v)]
    out = _unpadded_attention(kernel, packed, Layout.of(torch.tensor(UNEVEN)), causal, 0.0, 8**-0.5)
    torch.testing.assert_close(out, one_by_one(q, k, v, UNEVEN, causal)[0])


@pytest.mark.parametrize("total", [64, 63, 1, 65, 90])
def test_fillers_stand_behind_and_are_never_the_longest(total):
    lengths = torch.tensor([5] * (total // 5) + [total % 5] * (total % 5 > 0))
    ids, layout = torch.arange(7, 7 + total), Layout.of(lengths)
    more, filled = layout.filled(ids)
    assert len(more) % 64 == 0
    assert len(more) == int(filled.lengths.sum()) < total + 64
    assert torch.equal(more[:total], ids)
    assert torch.equal(filled.lengths[: len(lengths)], lengths)
    assert filled.longest == layout.longest >= int(filled.lengths.max())
