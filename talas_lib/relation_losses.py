"""Losses between the similarities that teacher and student see inside a batch, and a density of teacher vectors.

Pure functions of tensors. Similarities are cosines in fp32 or wider, as `losses.relation_matrix` gives them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """Every row without its diagonal entry, `[N, N]` to `[N, N - 1]`, order kept."""
    n = len(matrix)
    column = torch.arange(n - 1, device=matrix.device).expand(n, -1)
    row = torch.arange(n, device=matrix.device)[:, None]
    return matrix.gather(1, column + (column >= row))


def upper_triangle(matrix: Tensor) -> Tensor:
    """The entries above the diagonal, row by row: `[N, N]` to `[N (N - 1) / 2]`."""
    row, column = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return matrix[row, column]


def similarity_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all N^2 entries of (R^s - R^t)^2, both `[N, N]` (Jasper and Stella, arXiv 2412.19048: L_sim)."""
    return (student - teacher).square().mean()


def ranking_loss(student: Tensor, teacher: Tensor, margin: float, cells: int = 1 << 22) -> Tensor:
    """How far pairs of similarities are from the teacher's order (Jasper and Stella: L_resim), both `[P]`, a scalar >= 0.

    Mean over the pairs a < b of max(0, y (s_b - s_a) + margin), y = +1 where t_b < t_a, else -1 (so also for ties). 0 for
    P < 2. The order is the teacher's, so no gradient reaches `teacher`.

    The loss is piecewise linear in s: what each s_k is multiplied by is counted without a gradient, in blocks of at most
    `cells` pairs (or one row), and the loss is that linear function. Value and gradient are exact for every P; memory is
    bounded by the block, time grows with P^2 (0.12 million pairs for 32 sentences, 33 million for 128).
    """
    p = len(student)
    s, t = student.detach(), teacher.detach()
    slope = torch.zeros_like(s)
    active = s.new_zeros((), dtype=torch.int64)
    step = max(1, cells // max(1, p))
    for start in range(0, p, step):
        a = slice(start, start + step)
        y = torch.where(t[None, start:] < t[a, None], 1.0, -1.0).to(s.dtype)
        y = y * (y * (s[None, start:] - s[a, None]) + margin > 0)
        y = y.triu(1)
        slope[start:] += y.sum(0)
        slope[a] -= y.sum(1)
        active = active + y.count_nonzero()
    pairs = max(1, p * (p - 1) // 2)
    return (slope / pairs * student).sum() + margin * active.to(s.dtype) / pairs


def listwise_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """- sum_j q_ij log p_ij with q and p the softmax of the teacher's and the student's scores `[N, M]`: `[N]`.

    Scores are similarities already divided by their temperature. 0 for M < 2. DistillCSE (Xu et al. 2023).
    """
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1)


def listwise_entropy(scores: Tensor) -> Tensor:
    """Entropy in nats of the softmax of each row, `[N, M]` to `[N]`, in [0, log M]; 0 for M < 2."""
    return listwise_cross_entropy(scores, scores)


def mean_perplexity(scores: Tensor) -> Tensor:
    """Mean over rows of exp(entropy): how many neighbours a row's softmax really weighs, `[N, M]` to a scalar in [1, M]."""
    return listwise_entropy(scores).exp().mean()


def probability_groups(ranked: Tensor, mass: float) -> Tensor:
    """Group of each entry when a group spans a probability `mass` (p of DistillCSE, Xu et al. 2023): `[N, M]` to int64 `[N, M]`.

    ranked: similarities, each row falling. With c_r their cumulative softmax (temperature 1), entry r belongs to the first
    group g with c_r < (g + 1) p; the last of the ceil(1 / p) groups takes the rest. ValueError for p outside (0, 1].
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass {mass} of a group is not in (0, 1]")
    cumulative = ranked.softmax(1).cumsum(1)
    ends = torch.arange(1, math.ceil(1 / mass), device=ranked.device, dtype=cumulative.dtype) * mass
    return torch.searchsorted(ends, cumulative, right=True)


def group_shuffle(teacher: Tensor, mass: float, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Group-p shuffling (DistillCSE): each row's columns in the teacher's order, and shuffled within `probability_groups`.

    teacher: similarities `[N, M]`; keys: random numbers `[N, M]` that decide the order within a group, uniformly. Returns two
    int64 `[N, M]`: the columns with falling similarity, for the teacher; and the shuffled ones, for the student.
    """
    ranked, order = teacher.sort(dim=1, descending=True, stable=True)
    drawn = keys.argsort(dim=1)
    group = probability_groups(ranked, mass).gather(1, drawn)
    return order, order.gather(1, drawn.gather(1, group.argsort(stable=True, dim=1)))


def gaussian_nll(target: Tensor, mean: Tensor, raw_scale: Tensor) -> Tensor:
    """-log q(target) under a diagonal Gaussian, all `[N, d]`: `[N]`, in nats; a density, so it may be negative.

    The inverse standard deviation is r = exp(tanh(raw_scale)), in [1/e, e]:
    -log q = 1/2 |r (target - mean)|^2 - sum log r + d/2 log 2 pi. At best d (1/2 log 2 pi - 1) = -0.081061 d. Multi-teacher
    majority vote (Formont et al. 2025, arXiv 2510.18680).
    """
    log_r = raw_scale.tanh()
    residual = log_r.exp() * (target - mean)
    return (0.5 * residual.square() - log_r + 0.5 * math.log(2 * math.pi)).sum(1)
