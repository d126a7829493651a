"""A mixture of experts on the sentence vector, and the losses of its parts (DistillMoE, ICLR 2026 submission 10860)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talas_lib.losses import unit


class MixtureOfExperts(nn.Module):
    """A few small networks on the sentence vector, weighed by a router: o = sum_m pi_m h_m, `[n, dim]` to `[n, dim]`.

    Each expert: linear, ReLU, dropout, linear back to `dim`; the router: the same to one score an expert, and a softmax (dense:
    every expert takes part). The input and the hidden layers drop out while training. linear: makes a linear layer with
    bias from its two widths; the choice of initial values is the caller's.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int,
        experts: int,
        dropout: float,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()

        def network(outputs: int) -> nn.Sequential:
            return nn.Sequential(linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), linear(hidden, outputs))

        self.dropout = nn.Dropout(dropout)
        self.experts = nn.ModuleList(network(dim) for _ in range(experts))
        self.router = network(experts)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What every expert says, `[experts, n, dim]`, and the router's weights pi, `[n, experts]`, each row summing to 1."""
        x = self.dropout(x)
        return torch.stack([expert(x) for expert in self.experts]), torch.softmax(self.router(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return combined(*self.parts(x))


def combined(experts: Tensor, weights: Tensor) -> Tensor:
    """o = sum_m pi_m h_m of `[experts, n, dim]` and `[n, experts]`, `[n, dim]`."""
    return torch.einsum("mnd,nm->nd", experts, weights)


def contrastive_rows(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each row, `[N]`: logsumexp_j S_ij - S_ii, S = cos(query_i, key_j) / temperature; its mean: losses.info_nce."""
    scores = unit(query) @ unit(key).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")


def pairwise_rows(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Of each sentence the mean over the others of max(0, |cos(t_i, t_j) - cos(s_i, s_j)| - margin), `[N]`; 0 for N = 1.

    student `[N, d_S]`, teacher `[N, d_T]`: any widths.
    """
    s, t = unit(student), unit(teacher)
    gap = (t @ t.T - s @ s.T).abs()
    others = 1 - torch.eye(len(s), dtype=gap.dtype, device=gap.device)
    return (F.relu(gap - margin) * others).sum(1) / max(len(s) - 1, 1)


def load_rows(weights: Tensor, least: float) -> Tensor:
    """L_min of each sentence: sum over experts of max(0, least - pi_m)^2, `[N, experts]` to `[N]`; 0 when none falls below."""
    return F.relu(least - weights).square().sum(-1)


def diversity_rows(experts: Tensor) -> Tensor:
    """L_div of each sentence: mean over ordered pairs of different experts of max(0, cos(h_m, h_n)), `[N]`.

    experts: `[experts, N, dim]`. In [0, 1]; 1 for experts that say the same, 0 for a single expert.
    """
    count = len(experts)
    h = unit(experts).transpose(0, 1)  # [N, experts, dim]
    others = 1 - torch.eye(count, dtype=h.dtype, device=h.device)
    return (F.relu(h @ h.mT) * others).sum((1, 2)) / max(count * (count - 1), 1)
