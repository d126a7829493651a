"""What two token sequences have in common: CKA between their states, optimal transport, and pairs of equal or near tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

KINDS = ("strict", "dtw", "mined")
UNREADABLE = "\ufffd"  # in the piece of an unknown word, or of bytes that are no whole character

_TINY = 1e-9  # keeps Sinkhorn's denominators from zero
_DIAGONAL, _UP, _LEFT = range(3)
_NO_TOKEN = 1 << 15  # more than the edit distance of any two pieces
_NO_PATH = 1 << 40


def cka_loss(x: Tensor, y: Tensor, mask: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """1 - ||X^T Y|| / sqrt((||X^T X|| + eps) (||Y^T Y|| + eps)) with columns centred over the rows; `[...]`, in [0, 1].

    x `[..., m, a]`, y `[..., m, b]`; mask: bool `[..., m]`, rows that count (None: all). Frobenius norms, not their squares
    (linear CKA squares the numerator's and takes no root). Unchanged when x or y is rotated or scaled. Fewer than two
    rows, or rows that are all equal, give 1 and no gradient. Computed in the inputs' dtype, in fp32 at least.
    """
    x, y = _centred(x, mask), _centred(y, mask)
    rows, a, b = x.shape[-2], x.shape[-1], y.shape[-1]
    if rows * (a + b) < a * a + a * b + b * b:  # ||X^T Y||^2 = <X X^T, Y Y^T>, cheaper for few rows
        gram_x, gram_y = x @ x.mT, y @ y.mT
        cross, own_x, own_y = gram_x * gram_y, gram_x.square(), gram_y.square()
    else:
        cross, own_x, own_y = (x.mT @ y).square(), (x.mT @ x).square(), (y.mT @ y).square()
    norms = (_root(own_x.sum((-2, -1))) + eps) * (_root(own_y.sum((-2, -1))) + eps)
    return 1 - _root(cross.sum((-2, -1))) / norms.sqrt()


def _centred(x: Tensor, mask: Tensor | None) -> Tensor:
    x = x.float() if x.element_size() < 4 else x
    if mask is None:
        return x - x.mean(-2, keepdim=True)
    counted = mask[..., None]
    x = x.masked_fill(~counted, 0.0)
    mean = x.sum(-2, keepdim=True) / counted.sum(-2, keepdim=True).clamp_min(1)
    return (x - mean).masked_fill(~counted, 0.0)


def _root(square: Tensor) -> Tensor:
    """sqrt whose derivatives at 0 are 0."""
    positive = square > 0
    return torch.where(positive, square, 1.0).sqrt() * positive


def sinkhorn(
    cost: Tensor, a: Tensor, b: Tensor, *, temperature: float = 0.1, iterations: int = 100, tolerance: float = 1e-9
) -> Tensor:
    """Entropic optimal transport plan `[N, s, t]` between masses a `[N, s]` and b `[N, t]` at a cost `[N, s, t]` (Cuturi 2013).

    Each problem's masses are at least 0 and have equal sums. A mass of 0 takes no part: a padded cell is 0 in the plan, and
    its cost is never looked at. Alternating scaling of K = exp(-cost / temperature) stops after `iterations`, or when
    no entry of the row scaling moves by `tolerance`. Gradients flow through the unrolled iterations. K underflows in
    fp32 where cost / temperature exceeds about 85.
    """
    used = (a > 0)[:, :, None] & (b > 0)[:, None]
    kernel = torch.exp(cost.masked_fill(~used, 0.0) / -temperature) * used
    rows, columns = torch.ones_like(a), torch.ones_like(b)
    for _ in range(iterations):
        before = rows
        rows = a / ((kernel @ columns[..., None])[..., 0] + _TINY)
        columns = b / ((kernel.mT @ rows[..., None])[..., 0] + _TINY)
        if (rows.detach() - before.detach()).abs().max() < tolerance:
            break
    return rows[:, :, None] * kernel * columns[:, None]


def align(kind: str, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> np.ndarray:
    """Pairs of aligned tokens as (sentence, position in a, position in b), int64 `[P, 3]`, in this order.

    a, b: one list of plain pieces a sentence. kind: dtw, every step of the cheapest monotone path, an edit distance a step (Chen
    et al. 2025, CDM); strict, the steps of that path whose two tokens take part in no other step and are equal; mined,
    tokens that are each other's nearest by edit distance, the first of equally near ones (Truong et al. 2025, EMO). A sentence
    without pieces on one side has no pair. ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"alignment {kind!r} is not one of {', '.join(KINDS)}")
    rows, columns = (np.array([len(pieces) for pieces in side], dtype=np.int64) for side in (a, b))
    kept = np.flatnonzero((rows > 0) & (columns > 0))
    if not len(kept):
        return np.zeros((0, 3), np.int64)
    rows, columns = rows[kept], columns[kept]
    costs = np.full((len(kept), rows.max(), columns.max()), _NO_TOKEN, np.int32)
    for number, sentence in enumerate(kept.tolist()):
        costs[number, : rows[number], : columns[number]] = edit_distances(a[sentence], b[sentence])
    pairs = _mined(costs, rows) if kind == "mined" else dtw(costs, rows, columns)[1]
    pairs = pairs[_one_to_one(pairs) & (costs[tuple(pairs.T)] == 0)] if kind == "strict" else pairs
    pairs[:, 0] = kept[pairs[:, 0]]
    if kind == "strict":  # equal by name only is not equal
        known = [bool(a[s][i]) and UNREADABLE not in a[s][i] for s, i, _ in pairs.tolist()]
        pairs = pairs[np.array(known, dtype=bool)]
    return pairs


def edit_distances(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """Levenshtein distances, int32 `[len(a), len(b)]`."""
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    return process.cdist(a, b, scorer=Levenshtein.distance, dtype=np.int32)


def dtw(costs: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic time warping of a batch: totals `[B]` and the steps of the paths as (problem, row, column), int64 `[P, 3]`.

    costs: `[B, n, m]`, at least 0; problem k is its first `rows[k]` by `columns[k]` cells, both at least 1. A path leads
    from cell (0, 0) to the last one by steps (1, 1), (1, 0) and (0, 1), preferred in this order where totals are equal.
    """
    size, n, m = costs.shape
    total = np.full((size, n + 1, m + 1), _NO_PATH, np.result_type(costs, np.int64))
    total[:, 0, 0] = 0
    moves = np.empty((size, n, m), np.uint8)
    for diagonal in range(n + m - 1):  # all cells (i, j) with i + j = diagonal at once
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        before = np.stack([total[:, i, j], total[:, i, j + 1], total[:, i + 1, j]])  # by _DIAGONAL, _UP, _LEFT
        moves[:, i, j] = before.argmin(0)  # the first of equals
        total[:, i + 1, j + 1] = costs[:, i, j] + before.min(0)
    problem, i, j = np.arange(size), rows - 1, columns - 1
    totals, steps = total[problem, rows, columns], []
    while len(problem):
        steps.append(np.stack([problem, i, j], 1))
        going = (i > 0) | (j > 0)
        problem, i, j = problem[going], i[going], j[going]
        move = moves[problem, i, j]
        i, j = i - (move != _LEFT), j - (move != _UP)
    path = np.concatenate(steps[::-1])
    return totals, path[np.argsort(path[:, 0], kind="stable")]


def _one_to_one(pairs: np.ndarray) -> np.ndarray:
    """Which pairs share no token with another pair, bool `[P]`."""
    alone = np.ones(len(pairs), dtype=bool)
    for side in (1, 2):
        _, where, count = np.unique(pairs[:, [0, side]], axis=0, return_inverse=True, return_counts=True)
        alone &= count[where.ravel()] == 1
    return alone


def _mined(costs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Reciprocal nearest tokens; argmin takes the first of equals."""
    forth, back = costs.argmin(2), costs.argmin(1)  # [B, n], [B, m]
    own = np.arange(costs.shape[1])
    mutual = (np.take_along_axis(back, forth, 1) == own) & (own < rows[:, None])
    sentence, i = np.nonzero(mutual)
    return np.stack([sentence, i, forth[sentence, i]], 1)
