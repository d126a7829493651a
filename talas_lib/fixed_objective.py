"""A method's full training objective as one function of its weights: batches chosen once, dropout off or its masks held fixed.

Hessians, landscapes and loss rises belong to one function, so that nothing here may change between two calls. All is in fp32 (or
the model's wider dtype), with attention by plain matrix products, which the fused kernels cannot replace: they have no second
derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talas_lib.blocks import blocks, is_bert_like
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.hessian import Loss, fixed_dropout
from talas_lib.methods.base import Objective
from talas_lib.training_data import TrainingData

HEADLINE = "encoder"
LAYERS = "layers"


@dataclass(frozen=True)
class FixedObjective:
    """Losses of the fixed batches and the weights they depend on.

    Attributes:
        losses: one closure a batch, without arguments, to a scalar: the weighted sum of the method's terms.
        rows: corpus rows of the batches, `[batches, batch_size]`.
        subsets: parameters by the name of a subset (see `parameter_subsets`).
        used: the token ids whose embeddings are among the parameters, int64; see `fixed_objective`.
    """

    losses: tuple[Loss, ...]
    rows: np.ndarray
    subsets: Mapping[str, tuple[Tensor, ...]]
    used: Tensor

    def parameters(self, subset: str) -> tuple[Tensor, ...]:
        """The weights of a subset. TalasError for one that there is not."""
        if subset not in self.subsets:
            raise TalasError(
                f"no subset {subset!r} of this student and method.{did_you_mean(subset, self.subsets)} There are:"
                f" {listed(self.subsets)}, and {LAYERS} for embeddings and every layer, each by itself"
            )
        return self.subsets[subset]

    def named(self, subsets: Sequence[str]) -> list[str]:
        """The subsets that these names stand for, each once: `layers` stands for embeddings and every layer by itself."""
        each = [name for name in self.subsets if name not in (HEADLINE, "heads", f"{HEADLINE}+heads")]
        names = [name for given in subsets for name in (each if given == LAYERS else [given])]
        for name in names:
            self.parameters(name)
        return list(dict.fromkeys(names))


def fixed_rows(sentences: int, batches: int, batch_size: int, seed: int) -> np.ndarray:
    """Corpus rows of the fixed batches, `[batches, batch_size]`: a function of its arguments alone.

    The first batches stay the same when more are asked for. A corpus that is too small is gone through again.
    """
    size = min(batch_size, sentences)
    rows = np.random.default_rng([seed, 7]).permutation(sentences)
    return (
        np.resize(rows, (batches, size))
        if sentences < batches * size
        else rows[: batches * size].reshape(batches, size)
    )


def parameter_subsets(student: Encoder, heads: torch.nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """The weights by name: `encoder`; `heads` and `encoder+heads` where the method has heads; `embeddings`, `layer-1` to
    `layer-L`, and `other` for what of the encoder is in none of these (a last norm)."""
    encoder, extra = tuple(student.model.parameters()), tuple(heads.parameters())
    found: dict[str, tuple[Tensor, ...]] = {HEADLINE: encoder}
    if extra:
        found |= {"heads": extra, f"{HEADLINE}+heads": (*encoder, *extra)}
    below = student.model.embeddings if is_bert_like(student.model) else student.model.get_input_embeddings()
    parts = {"embeddings": tuple(below.parameters())}
    parts |= {f"layer-{n}": tuple(block.parameters()) for n, block in enumerate(blocks(student.model), start=1)}
    placed = {id(parameter) for part in parts.values() for parameter in part}
    parts["other"] = tuple(parameter for parameter in encoder if id(parameter) not in placed)
    return found | {name: part for name, part in parts.items() if part}


@contextmanager
def fixed_objective(
    objective: Objective, data: TrainingData, rows: np.ndarray, *, dropout_seed: int | None = None
) -> Iterator[FixedObjective]:
    """The objective on the batches of these corpus rows, as long as the block lasts.

    Embedding rows that no fixed batch uses have zero gradient and curvature and are left out while inside: the nonzero spectrum
    is the same. With `dropout_seed` the masks of batch k are drawn from (dropout_seed, k) at every call; None turns
    dropout off, and the two views of a contrastive term then coincide. The method is in its last stage.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    student, method = objective.student, objective.method
    data, used = data.renumbered(rows.ravel())
    method.heads.to(student.device).train(dropout_seed is not None)
    method.enter(len(method.stages) - 1)  # the objective that training ended with
    student.train(dropout_seed is not None)
    student.compact_vocabulary(used.to(student.device))
    try:
        losses = [_loss(objective, data.batch(batch, student.device)) for batch in rows]
        if dropout_seed is not None:
            losses = [fixed_dropout(_one_path(loss), _mask_seed(dropout_seed, k)) for k, loss in enumerate(losses)]
        with sdpa_kernel(SDPBackend.MATH):
            yield FixedObjective(tuple(losses), rows, parameter_subsets(student, method.heads), used)
    finally:
        student.expand_vocabulary()
        student.eval()
        method.heads.eval()


def _loss(objective: Objective, batch: Any) -> Loss:
    return lambda: objective(batch)[0]


def _one_path(loss: Loss) -> Loss:
    """Evaluated with gradients enabled in any case: without, batches are filled up, and other masks would be drawn."""

    def same() -> Tensor:
        with torch.enable_grad():
            return loss()

    return same


def _mask_seed(seed: int, batch: int) -> int:
    return int(np.random.default_rng([seed, batch]).integers(2**63))
