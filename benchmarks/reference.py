"""The usual way to train TALAS on sentence pairs of views, as a yardstick: readable, nobody's straw man.

Two padded forward passes of the transformers model with SDPA attention, every vocabulary row in the optimizer, AdamW or
pytorch_optimizer's SAM(adaptive=True) over AdamW, as the released trainer has it. The losses are the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModel

from talas_lib import losses
from talas_lib.encoders import quiet


class ReferenceTrainer:
    """step(ids, teacher) trains on one batch: ids a list of token lists, teacher `[N, d_T]`. mean or CLS pooling; layers as in
    a student's file."""

    def __init__(
        self,
        folder: str,
        *,
        layers: Sequence[int] | None,
        teacher_dim: int,
        pooling: str,
        asam: bool,
        dropout: bool = True,
        seed: int = 0,
    ) -> None:
        with quiet():
            model = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
        if layers is not None:
            model.encoder.layer = nn.ModuleList([model.encoder.layer[i] for i in layers])
        model.pooler = None
        model.train(dropout)
        self.model, self.pooling = model, pooling
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.ModuleList(nn.Linear(model.config.hidden_size, teacher_dim, bias=False) for _ in range(2))
        for head in self.heads:
            nn.init.normal_(head.weight, std=1e-3, generator=generator)
        groups = [
            {"params": list(model.parameters()), "lr": 2e-5, "weight_decay": 0.01},
            {"params": list(self.heads.parameters()), "lr": 1e-4, "weight_decay": 0.01},
        ]
        self.asam = asam
        if asam:
            from pytorch_optimizer import SAM

            self.optimizer = SAM(groups, torch.optim.AdamW, rho=0.05, adaptive=True)
        else:
            self.optimizer = torch.optim.AdamW(groups)

    def layers(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Pooled vectors of every hidden state."""
        hidden = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        if self.pooling == "cls":
            return [h[:, 0] for h in hidden]
        weights = mask[..., None] / mask.sum(1)[:, None, None]
        return [(h * weights).sum(1) for h in hidden]

    def loss(self, ids: Tensor, mask: Tensor, teacher: Tensor) -> Tensor:
        """0.001 SimCSE + 0.75 TAMD + LASD, two forward passes."""
        first, second = self.layers(ids, mask), self.layers(ids, mask)[-1]
        simcse = losses.info_nce(first[-1], second, 0.1)
        tamd = losses.tamd([head(e) for head, e in zip(self.heads, first[-2:], strict=True)], teacher)
        lasd = losses.lasd([losses.relation_matrix(e) for e in first])
        return 0.001 * simcse + 0.75 * tamd + lasd

    def step(
        self, sequences: Sequence[Sequence[int]], teacher: Tensor, *, on_gradient: Callable[[], None] | None = None
    ) -> float:
        """One optimizer step on a batch, padded to its longest sentence. on_gradient sees the gradient that is applied."""
        longest = max(map(len, sequences))
        ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences])
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
        total = self.loss(ids, mask, teacher)
        total.backward()
        if self.asam:
            self.optimizer.first_step(zero_grad=True)
            self.loss(ids, mask, teacher).backward()
            if on_gradient:
                on_gradient()
            self.optimizer.second_step(zero_grad=True)
        else:
            if on_gradient:
                on_gradient()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(total.detach())
