"""Packed batches: sentences laid end to end, so that no layer ever computes on padding.

A batch of B sentences with T tokens in all is one row of T tokens. Every linear layer, layer norm and dropout of
the transformer then works on T rows instead of B times the longest sentence; only attention needs to know where
a sentence begins and ends, and `packed_attention` gives it that. The vectors equal those of a padded batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TokenSequences:
    """Tokenised sentences as one flat array: sentence i is `ids[offsets[i]:offsets[i + 1]]`.

    ids: int32 `[total]`; offsets: int64 `[sentences + 1]`, starting at 0 and rising.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]]) -> TokenSequences:
        """Pack lists of token ids; every sentence must hold at least one token (ValueError names the first that does not)."""
        lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
        if (lengths == 0).any():
            raise ValueError(f"sentence {int(np.argmin(lengths))} has no token")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.fromiter((t for s in sequences for t in s), dtype=np.int32, count=int(offsets[-1]))
        return cls(ids, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """Ids of one sentence, int32."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per sentence, int64 `[sentences]`."""
        return np.diff(self.offsets)

    def take(self, index: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """The chosen sentences packed: ids int64 `[T]` and lengths int64 `[B]`."""
        index = np.asarray(index)
        ids = torch.from_numpy(np.concatenate([self[i] for i in index]).astype(np.int64))
        return ids, torch.from_numpy(self.offsets[index + 1] - self.offsets[index])


@dataclass(frozen=True)
class Layout:
    """Where the sentences of a packed batch lie. lengths: int64 `[B]`, on the device of the batch.

    `longest` and `total`, the number of tokens, are plain ints: a layout built on the CPU and moved to a GPU never makes the CPU
    wait for it. A `total` of None is computed when it is needed. watch: blocks whose attention weights are wanted, as block
    number to name, and the mapping that receives them by that name.
    """

    lengths: Tensor
    longest: int
    bidirectional: bool = False
    total: int | None = None
    watch: tuple[Mapping[int, int], dict[int, Tensor]] | None = None

    @classmethod
    def of(cls, lengths: Tensor, *, bidirectional: bool = False) -> Layout:
        return cls(lengths, int(lengths.max()), bidirectional, int(lengths.sum()))

    @cached_property
    def starts(self) -> Tensor:
        """Index of the first token of each sentence, `[B]`."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def sentence(self) -> Tensor:
        """Sentence number of each token, `[T]`."""
        count = torch.arange(len(self.lengths), device=self.lengths.device)
        return torch.repeat_interleave(count, self.lengths, output_size=self.total)

    @cached_property
    def position(self) -> Tensor:
        """Position of each token in its sentence, `[T]`."""
        return torch.arange(len(self.sentence), device=self.lengths.device) - self.starts[self.sentence]

    @cached_property
    def cell(self) -> Tensor:
        """Index of each token in the flattened padded `[B * longest]` grid, `[T]`."""
        return self.sentence * self.longest + self.position

    @cached_property
    def valid(self) -> Tensor:
        """True where the padded grid holds a token, bool `[B, longest]`."""
        return torch.arange(self.longest, device=self.lengths.device)[None] < self.lengths[:, None]

    def mask(self, *, causal: bool) -> Tensor:
        """Who may attend to whom, bool `[B, 1, 1 or longest, longest]`."""
        keys = self.valid[:, None, None]
        if not causal:
            return keys
        square = torch.ones(self.longest, self.longest, dtype=torch.bool, device=keys.device)
        return keys & square.tril()

    def pad(self, tokens: Tensor) -> Tensor:
        """`[T, ...]` to `[B, longest, ...]`, zeros in the empty cells."""
        grid = _Pad.apply(tokens, self.cell, len(self.lengths) * self.longest)
        return grid.view(len(self.lengths), self.longest, *tokens.shape[1:])

    def unpad(self, grid: Tensor) -> Tensor:
        """`[B, longest, ...]` to `[T, ...]`, the inverse of `pad`."""
        return _Unpad.apply(grid.flatten(0, 1), self.cell)

    def to(self, device: torch.device | str) -> Layout:
        return replace(self, lengths=self.lengths.to(device, non_blocking=True), watch=None)

    @cached_property
    def groups(self) -> tuple[Layout, ...]:
        """The batch in runs of neighbouring sentences for attention, each to be padded to its own longest.

        `_GROUPS` of equal size where that saves much, which it does when the sentences are sorted by length; else one.
        """
        if len(self.lengths) < 2 * _GROUPS:
            return (self,)
        parts = [Layout(n, int(n.max()), self.bidirectional) for n in torch.tensor_split(self.lengths, _GROUPS)]
        saved = sum(len(g.lengths) * g.longest**2 for g in parts) < _WORTH_IT * len(self.lengths) * self.longest**2
        return tuple(parts) if saved else (self,)

    @cached_property
    def full(self) -> bool:
        """Whether every sentence is as long as the longest: tokens are the padded grid already. A GPU has to wait for it."""
        return bool((self.lengths == self.longest).all())

    @cached_property
    def runs(self) -> tuple[Layout, ...]:
        """Neighbours of equal length together, none of which needs padding, where there are few such runs; else `groups`."""
        lengths, counts = torch.unique_consecutive(self.lengths, return_counts=True)
        if len(lengths) > _RUNS:
            return self.groups
        sizes = counts.tolist()
        return tuple(Layout(n, int(n[0]), self.bidirectional) for n in self.lengths.split(sizes))

    def filled(self, ids: Tensor, multiple: int = 64) -> tuple[Tensor, Layout]:
        """Ids and layout with filler sentences behind, none longer than the longest, up to a multiple of so many tokens.

        A CPU's matrix library compiles a kernel for each new number of rows, in bf16 for a tenth of a training step; multiples
        are few. The first `len(lengths)` sentences are what they were.
        """
        missing = -len(ids) % multiple
        whole, rest = divmod(missing, self.longest)
        fillers = [self.longest] * whole + [rest] * (rest > 0)
        if not fillers:
            return ids, self
        lengths = torch.cat([self.lengths, torch.tensor(fillers, device=self.lengths.device)])
        return torch.cat([ids, ids[:1].expand(missing)]), replace(self, lengths=lengths, total=len(ids) + missing)

    def twice(self) -> tuple[Layout, Tensor]:
        """The layout with every sentence doubled in place (1, 1, 2, 2, ...), and where its tokens come from, `[2 T]`."""
        total = None if self.total is None else 2 * self.total
        double = replace(self, lengths=self.lengths.repeat_interleave(2), total=total, watch=None)
        return double, self.starts.repeat_interleave(2)[double.sentence] + double.position


_GROUPS = 4
_RUNS = 12
_WORTH_IT = 0.7


class _Pad(torch.autograd.Function):
    """Rows to their cells of a grid of zeros. Its adjoint is `_Unpad`: no scatter in any derivative."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, cell: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(cell)
        return tokens.new_zeros(size, *tokens.shape[1:]).index_copy_(0, cell, tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Unpad.apply(grad, *ctx.saved_tensors), None, None


class _Unpad(torch.autograd.Function):
    """The cells that hold tokens, as rows: the inverse of `_Pad`, and its adjoint."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, cell: Tensor) -> Tensor:
        ctx.save_for_backward(cell)
        ctx.size = len(grid)
        return grid.index_select(0, cell)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Pad.apply(grad, *ctx.saved_tensors, ctx.size), None


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed batch in the form `transformers` calls: query `[1, heads, T, dim]` to `[1, T, heads, dim]`.

    Only here are sentences padded, each to the longest of its group. Grouped key and value heads and causal models
    (`module.is_causal`, unless the layout says bidirectional) are supported; a sliding window is not. On a GPU it is
    flash-attn's packed kernel in half precision where that is installed, else torch's fused attention on the padded groups,
    as it is on a CPU where no gradient is asked for (there without padding where few lengths differ); elsewhere plain matrix
    products, which can be differentiated twice and whose dropout is cheap.
    """
    if layout is None:
        raise ValueError("packed attention needs layout=Layout.of(lengths)")
    causal = bool(getattr(module, "is_causal", False)) and not layout.bidirectional
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout.watch is not None and module.layer_idx in layout.watch[0]:
        wanted, found = layout.watch
        found[wanted[module.layer_idx]] = attention_weights(query, key, layout, causal=causal, scale=scale)
    tokens = [x[0].transpose(0, 1) for x in (query, key, value)]  # [T, heads, dim] each
    kernel = packed_kernel() if query.is_cuda and query.element_size() == 2 else None
    if kernel is not None:
        return _unpadded_attention(kernel, tokens, layout, causal, dropout, scale)[None], None
    fused = query.is_cuda or not torch.is_grad_enabled()
    attend = _fused_attention if fused else _plain_attention
    groups = (layout,) if query.is_cuda else layout.runs if fused else layout.groups
    if len(groups) == 1:
        return attend(tokens, layout, causal, dropout, scale)[None], None
    sizes = [int(g.lengths.sum()) for g in groups]
    split = zip(*(x.split(sizes) for x in tokens), strict=True)
    parts = [attend(qkv, group, causal, dropout, scale) for qkv, group in zip(split, groups, strict=True)]
    return torch.cat(parts)[None], None


@cache
def packed_kernel() -> Callable[..., Tensor] | None:
    """flash-attn's attention over packed sequences, which needs no padding at all; None where it is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def _unpadded_attention(
    kernel: Callable[..., Tensor], qkv: Sequence[Tensor], layout: Layout, causal: bool, dropout: float, scale: float
) -> Tensor:
    bounds = F.pad(torch.cumsum(layout.lengths, 0), (1, 0)).int()  # where each sentence begins, and the end
    around = (bounds, bounds, layout.longest, layout.longest)
    return kernel(*qkv, *around, dropout_p=dropout, softmax_scale=scale, causal=causal)


def _fused_attention(qkv: Sequence[Tensor], layout: Layout, causal: bool, dropout: float, scale: float) -> Tensor:
    if not layout.lengths.is_cuda and layout.full:
        q, k, v = (x.unflatten(0, (-1, layout.longest)).transpose(1, 2) for x in qkv)
        masked: dict[str, Any] = {"is_causal": causal}
    else:
        q, k, v = (layout.pad(x).transpose(1, 2) for x in qkv)
        masked = {"attn_mask": layout.mask(causal=causal)}
    grouped = k.shape[1] != q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale, enable_gqa=grouped, **masked)
    out = out.transpose(1, 2)
    return out.flatten(0, 1) if "is_causal" in masked else layout.unpad(out)


def _plain_attention(qkv: Sequence[Tensor], layout: Layout, causal: bool, dropout: float, scale: float) -> Tensor:
    q, k, v = (layout.pad(x).transpose(1, 2) for x in qkv)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    weights = torch.softmax((q * scale) @ k.transpose(2, 3) + _bias(q, layout, causal), dim=-1)
    if dropout:
        weights = weights * dropout_mask(weights, dropout)
    return layout.unpad((weights @ v).transpose(1, 2))


def first_token_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scale: float
) -> Tensor:
    """Attention of one query a sentence, `[B, heads, dim]`, over all its tokens, `[T, heads, dim]` each."""
    k, v = (layout.pad(x).transpose(1, 2) for x in (key, value))
    q = query[:, :, None]
    weights = torch.softmax((q * scale) @ k.transpose(2, 3) + _bias(q, layout, False), dim=-1)
    if dropout:
        weights = weights * dropout_mask(weights, dropout)
    return (weights @ v)[:, :, 0]


def attention_weights(query: Tensor, key: Tensor, layout: Layout, *, causal: bool, scale: float) -> Tensor:
    """Attention weights averaged over heads, before dropout, `[B, longest, longest]`; zero in empty rows and columns.

    query and key as in `packed_attention`, `[1, heads, T, dim]`.
    """
    q, k = (layout.pad(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key))
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    weights = torch.softmax((q * scale) @ k.transpose(2, 3) + _bias(q, layout, causal), dim=-1)
    return weights.mean(1) * layout.valid[:, :, None]


def _bias(q: Tensor, layout: Layout, causal: bool) -> Tensor:
    """0 where attention is allowed, else the most negative number."""
    zero = torch.zeros((), dtype=q.dtype, device=q.device)
    return zero.masked_fill(~layout.mask(causal=causal), torch.finfo(q.dtype).min)


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """0 with probability p, else 1 / (1 - p), in the shape and dtype of `like`, from torch's global CPU generator.

    Sixteen random bits an element instead of torch's one call a number: several times faster on a CPU. p is rounded to a
    multiple of 2^-16, and the scale to match.
    """
    threshold = round(p * 65536)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (bits >= threshold - 32768).to(like.dtype).mul_(65536 / (65536 - threshold))


class FastDropout(torch.nn.Dropout):
    """nn.Dropout with `dropout_mask` on the CPU; on other devices the ordinary one."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return input * dropout_mask(input, self.p)


def use_fast_dropout(module: torch.nn.Module) -> None:
    """Replace every nn.Dropout below `module` by a FastDropout of the same p, in place."""
    for child_name, child in module.named_children():
        if type(child) is torch.nn.Dropout:
            setattr(module, child_name, FastDropout(child.p))
        else:
            use_fast_dropout(child)
