"""What training reads: the tokenised corpus and what the caches hold for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from talas_lib.cache_files import ragged_index
from talas_lib.methods.base import Batch, TeacherTokens
from talas_lib.packed import Layout, TokenSequences


@dataclass(frozen=True)
class TrainingData:
    """Tokenised corpus, teacher vectors (one function of row numbers a teacher), and what the batch carries beside them.

    text_ids and sources: int64 `[sentences]`. special: bool, one for each of `tokens.ids`; tokens_of and pairs_of: functions of
    row numbers that give the teacher's token states and the aligned tokens (TokenCache.tokens, Alignment.pairs). These
    three are None where no method asks for them. Row numbers index the corpus.
    """

    tokens: TokenSequences
    teachers: tuple[Callable[[np.ndarray], np.ndarray], ...]
    text_ids: np.ndarray
    sources: np.ndarray
    special: np.ndarray | None = None
    tokens_of: Callable[[np.ndarray], TeacherTokens] | None = None
    pairs_of: Callable[[np.ndarray], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def renumbered(self, rows: np.ndarray | None = None) -> tuple[TrainingData, Tensor]:
        """The same data with token ids numbered by the vocabulary in use, and that vocabulary (int64, ascending).

        rows: only these sentences count as use, and only they may be batched afterwards; None for all.
        """
        taken = self.tokens.ids if rows is None else np.concatenate([self.tokens[i] for i in rows])
        used = np.unique(taken)
        ids = np.searchsorted(used, self.tokens.ids).astype(np.int32)
        tokens = TokenSequences(ids, self.tokens.offsets)
        return replace(self, tokens=tokens), torch.from_numpy(used.astype(np.int64))

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """The packed batch of these corpus rows, on the device; shortest first, which no loss can tell."""
        rows = rows[np.argsort(self.tokens.lengths[rows], kind="stable")]
        ids, lengths = self.tokens.take(rows)
        layout = Layout.of(lengths)
        vectors = tuple(torch.from_numpy(vectors_of(rows)) for vectors_of in self.teachers)
        special = None if self.special is None else layout.pad(self._special_of(rows))
        tokens = None if self.tokens_of is None else self.tokens_of(rows)
        pairs = None if self.pairs_of is None else self.pairs_of(rows)
        return Batch(
            rows=_move(torch.from_numpy(rows), device),
            ids=_move(ids, device),
            layout=layout.to(device),
            teachers=tuple(_move(v, device) for v in vectors),
            text_ids=_move(torch.from_numpy(self.text_ids[rows]), device),
            sources=_move(torch.from_numpy(self.sources[rows]), device),
            special=None if special is None else _move(special, device),
            tokens=None if tokens is None else _move_tokens(tokens, device),
            pairs=None if pairs is None else _move(pairs, device),
        )

    def _special_of(self, rows: np.ndarray) -> Tensor:
        """Special tokens of some sentences, end to end."""
        assert self.special is not None
        return torch.from_numpy(self.special[ragged_index(self.tokens.offsets[rows], self.tokens.lengths[rows])])


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _move_tokens(tokens: TeacherTokens, device: torch.device | str) -> TeacherTokens:
    return TeacherTokens(
        _move(tokens.valid, device),
        _move(tokens.special, device),
        {layer: _move(states, device) for layer, states in tokens.states.items()},
        {block: _move(weights, device) for block, weights in tokens.attention.items()},
    )
