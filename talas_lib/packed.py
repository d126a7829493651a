"""Packed batches: sentences laid end to end, so that no layer ever computes on padding.

A batch of B sentences with T tokens in all is one row of T tokens. Every linear layer, layer norm and dropout of
the transformer then works on T rows instead of B times the longest sentence; only attention needs to know where
a sentence begins and ends, and `packed_attention` gives it that. The vectors equal those of a padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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

    `longest` is a plain int, so that building a layout on the CPU and moving it to a GPU needs no synchronisation.
    """

    lengths: Tensor
    longest: int
    bidirectional: bool = False

    @classmethod
    def of(cls, lengths: Tensor, *, bidirectional: bool = False) -> Layout:
        return cls(lengths, int(lengths.max()), bidirectional)

    @cached_property
    def starts(self) -> Tensor:
        """Index of the first token of each sentence, `[B]`."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def sentence(self) -> Tensor:
        """Sentence number of each token, `[T]`."""
        count = torch.arange(len(self.lengths), device=self.lengths.device)
        return torch.repeat_interleave(count, self.lengths)

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
        grid = tokens.new_zeros(len(self.lengths) * self.longest, *tokens.shape[1:])
        grid = grid.index_copy(0, self.cell, tokens)
        return grid.view(len(self.lengths), self.longest, *tokens.shape[1:])

    def unpad(self, grid: Tensor) -> Tensor:
        """`[B, longest, ...]` to `[T, ...]`, the inverse of `pad`."""
        return grid.flatten(0, 1).index_select(0, self.cell)

    def to(self, device: torch.device | str) -> Layout:
        return Layout(self.lengths.to(device, non_blocking=True), self.longest, self.bidirectional)


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

    Only here are the sentences padded to the longest one. Grouped key and value heads and causal models
    (`module.is_causal`, unless the layout says bidirectional) are supported; a sliding window is not.
    """
    if layout is None:
        raise ValueError("packed attention needs layout=Layout.of(lengths)")
    q, k, v = (layout.pad(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    causal = bool(getattr(module, "is_causal", False)) and not layout.bidirectional
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=layout.mask(causal=causal),
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return layout.unpad(out.transpose(1, 2))[None], None
