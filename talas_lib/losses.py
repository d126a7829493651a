"""The losses, as functions of tensors. Symbols and equation numbers are the paper's (TALAS, arXiv 2606.21851)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length one, `[N, dim]`; a row of zeros stays zero."""
    return F.normalize(x, dim=-1, eps=EPS)


def relation_matrix(embeddings: Tensor) -> Tensor:
    """Cosine similarity of every pair in the batch, R = n(e) n(e)^T: `[N, dim]` to `[N, N]`, in fp32 or wider."""
    e = unit(embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings)
    return e @ e.T


def info_nce(query: Tensor, key: Tensor, temperature: float, same_text: Tensor | None = None) -> Tensor:
    """SimCSE's loss between two views `[N, dim]` of the same sentences (Gao et al. 2021, eq. 4).

    Mean over rows of logsumexp_j S_ij - S_ii with S = cos(query_i, key_j) / temperature: one direction only, N - 1
    in-batch negatives. `same_text` (int `[N]`, equal numbers for equal strings) removes copies of a sentence from
    its own negatives. Log N where all keys are equal; 0 for N = 1.
    """
    scores = unit(query) @ unit(key).T / temperature
    if same_text is not None:
        copies = (same_text[:, None] == same_text[None]) & ~torch.eye(
            len(scores), dtype=torch.bool, device=scores.device
        )
        scores = scores.masked_fill(copies, float("-inf"))
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of 1 - cos(student_i, teacher_i), both `[N, dim]`; in [0, 2]."""
    return (1 - (unit(student) * unit(teacher)).sum(-1)).mean()


def tamd(projected: Sequence[Tensor], teacher: Tensor) -> Tensor:
    """Teacher-anchored multi-layer distillation (eq. 3): mean over anchor layers of 1 - cos(e_l W_l, t).

    projected: one `[N, d_T]` per anchor layer; teacher `[N, d_T]`.
    """
    return tamd_rows(projected, teacher).mean()


def tamd_rows(projected: Sequence[Tensor], teacher: Tensor) -> Tensor:
    """TAMD of each sentence, `[N]`; `tamd` is its mean."""
    target = unit(teacher)
    return torch.stack([1 - (unit(p) * target).sum(-1) for p in projected]).mean(0)


def lasd(relations: Sequence[Tensor], stop_grad: str | None = None) -> Tensor:
    """Layer-aligned self-distillation (eq. 5): mean over adjacent layers of ||R_{l+1} - R_l||_F^2 / N^2.

    relations: R_l `[N, N]` from the lower to the upper layer, at least two (ValueError otherwise). `stop_grad` holds
    one side of each pair fixed: "upper" lets structure flow only downwards, "lower" only upwards, None (released
    code) both ways.
    """
    if len(relations) < 2:
        raise ValueError(f"LASD compares adjacent layers and needs two relation matrices, got {len(relations)}")
    if stop_grad not in (None, "upper", "lower"):
        raise ValueError(f"stop_grad {stop_grad!r} is not one of None, 'upper', 'lower'")
    terms = []
    for lower, upper in pairwise(relations):
        lower = lower.detach() if stop_grad == "lower" else lower
        upper = upper.detach() if stop_grad == "upper" else upper
        terms.append((upper - lower).square().mean())
    return torch.stack(terms).mean()


def effective_rank(embeddings: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007), `[N, dim]` to a scalar >= 1."""
    s = torch.linalg.svdvals(embeddings.detach().float())
    p = s / s.sum().clamp_min(EPS)
    return torch.exp(-(p * p.clamp_min(EPS).log()).sum())


def mean_off_diagonal_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between different rows of `[N, dim]`; near 1 the vectors have collapsed. 0 for N = 1."""
    n = len(embeddings)
    if n < 2:
        return embeddings.new_zeros(())
    r = relation_matrix(embeddings.detach())
    return (r.sum() - r.diagonal().sum()) / (n * (n - 1))
