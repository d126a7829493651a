"""Sentence vectors from packed token states."""

from __future__ import annotations

import torch
from torch import Tensor

from talas_lib.packed import Layout

POOLINGS = ("cls", "mean", "last")


def pool(tokens: Tensor, layout: Layout, pooling: str) -> Tensor:
    """One vector a sentence: packed states `[T, dim]` to `[B, dim]`.

    `cls` takes the first token, `last` the last one (the end-of-text token of a decoder), `mean` the average of all
    tokens of the sentence, special tokens included, as sentence-transformers does. ValueError for any other name.
    """
    if pooling == "cls":
        return tokens[layout.starts]
    if pooling == "last":
        return tokens[layout.starts + layout.lengths - 1]
    if pooling == "mean":
        sums = torch.zeros(len(layout.lengths), tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
        return sums.index_add(0, layout.sentence, tokens) / layout.lengths[:, None].to(tokens.dtype)
    raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
