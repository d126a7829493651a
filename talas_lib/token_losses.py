"""Losses between token states and attention weights of student and teacher, as functions of tensors.

L_s and L_t are the padded lengths of student and teacher; `valid` is true where a cell holds a token. Padding on the right
changes no value. pairs: int64 `[P, 3]`, aligned tokens as (sentence, student position, teacher position).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from talas_lib.alignment import cka_loss, sinkhorn
from talas_lib.losses import unit

REDUCTIONS = ("mean_d", "vector")
IMPORTANCE = ("received", "received-no-first", "uniform")
_ROUNDING = 1e-6  # masses are sums of fp32 numbers


# ---- shared


def unit_error(x: Tensor, y: Tensor, reduction: str = "mean_d") -> Tensor:
    """Squared error between directions, `[..., dim]` to `[...]`.

    `vector`: |n(x) - n(y)|^2 = 2 (1 - cos), in [0, 4]; `mean_d`: the same divided by dim, as an MSE of unit vectors has it,
    so at most 4 / dim. ValueError for another name.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    square = (unit(x) - unit(y)).square()
    return square.mean(-1) if reduction == "mean_d" else square.sum(-1)


def masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the last dimension among valid cells; exactly 0 elsewhere, and 0 throughout where nothing is valid."""
    return torch.softmax(scores.masked_fill(~valid, torch.finfo(scores.dtype).min), dim=-1) * valid


def by_sentence(errors: Tensor, sentence: Tensor, sentences: int) -> Tensor:
    """Token errors `[M]` gathered to `[sentences]` so that the mean over sentences is the mean over all tokens of the batch.

    sentence: int64 `[M]`. Without any token the result is zeros that still hang on the graph.
    """
    sums = errors.new_zeros(sentences).index_add(0, sentence, errors)
    return sums * (sentences / max(len(errors), 1))


def errors_of_cells(x: Tensor, y: Tensor, cells: Tensor, reduction: str = "mean_d") -> Tensor:
    """`unit_error` of the chosen cells of two grids `[N, L, dim]`, gathered as `by_sentence` does, `[N]`; cells: bool `[N, L]`.

    Nothing is cut out: a result whose size depends on the data makes a CPU wait for its GPU. The other cells are filled with
    equal vectors, whose error and gradient are exactly 0.
    """
    others = ~cells[..., None]
    errors = unit_error(x.masked_fill(others, 1.0), y.masked_fill(others, 1.0), reduction)
    return errors.sum(1) * (len(cells) / cells.sum().clamp(min=1))


# ---- attention across models (DSKD)


def cross_attention(query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
    """States of one model in the places of the other: softmax(q k^T / sqrt(a)) v over the valid keys.

    query `[N, L, a]`, key `[N, K, a]`, value `[N, K, dim]`, valid bool `[N, K]`; returns `[N, L, dim]`.
    """
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return masked_softmax(scores, valid[:, None]) @ value


# ---- pooled alignment (CDM)


def averaged_teacher(pairs: Tensor, states: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Mean of the teacher states paired with each student token: its (sentence, position) `[M, 2]` and the means `[M, d_T]`.

    states: `[N, L_t, d_T]`; length: L_s. The M student tokens are those with a pair, each once; its pairs weigh the same.
    """
    cell = pairs[:, 0] * length + pairs[:, 1]
    cells, token = torch.unique(cell, return_inverse=True)
    sums = states.new_zeros(len(cells), states.shape[-1]).index_add(0, token, states[pairs[:, 0], pairs[:, 2]])
    counts = torch.bincount(token, minlength=len(cells))
    return torch.stack([cells // length, cells % length], dim=1), sums / counts[:, None]


# ---- importance, attention and transport (EMO)


def token_importance(attention: Tensor | None, valid: Tensor, kind: str = "received") -> Tensor:
    """How much each token matters, `[N, L]`, at least 0 and summing to 1 over the valid tokens.

    attention: head-averaged weights `[N, L, L]`, rows are queries; None for `uniform`. kind: `received` is a softmax over tokens
    of the attention a token gets from all tokens of its sentence; `received-no-first` the same without the first token,
    where causal models unload attention (it gets 0, unless it is alone); `uniform` is 1 / length. ValueError for another.
    """
    if kind not in IMPORTANCE:
        raise ValueError(f"importance {kind!r} is not one of {', '.join(IMPORTANCE)}")
    if kind == "uniform":
        return valid / valid.sum(1, keepdim=True)
    assert attention is not None
    received = (attention * valid[:, :, None]).sum(1)
    if kind == "received-no-first":
        first = torch.arange(valid.shape[1], device=valid.device) == 0
        valid = valid & ~(first & (valid.sum(1, keepdim=True) > 1))
    return masked_softmax(received, valid)


def student_masses(importance: Tensor, pairs: Tensor, valid: Tensor, ids: Tensor) -> Tensor:
    """Masses of the student's tokens, `[N, L_s]`, summing to 1: the importance of the paired teacher token, through a softmax.

    importance: the teacher's, `[N, L_t]`; valid and ids: the student's, bool and int64 `[N, L_s]`. A pair counts for every
    occurrence of its student token in the sentence, the largest importance where several do. A token without a pair, or
    paired with one of importance 0, scores the sentence's smallest positive importance. The scores are probabilities
    already, so the softmax leaves them nearly uniform.
    """
    least = importance.masked_fill(importance <= 0, math.inf).amin(1, keepdim=True)
    cells = pairs[:, 0] * valid.shape[1] + pairs[:, 1]
    found = importance.new_zeros(valid.numel())
    found = found.scatter_reduce(0, cells, importance[pairs[:, 0], pairs[:, 2]], "amax").view(valid.shape)
    found = ((ids[:, :, None] == ids[:, None]) * found[:, None]).amax(2)
    return masked_softmax(torch.maximum(found, least), valid)


def top_third(pairs: Tensor, importance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The third of each sentence's pairs whose teacher tokens matter most, of the sentences where that is at least two.

    importance: the teacher's, `[N, L_t]`; of equal ones the token further left comes first. A third is rounded down. Returns the
    sentences `[K]`, student positions `[K, m]`, teacher positions `[K, m]` and a mask of the cells in use, bool `[K, m]`.
    """
    pairs = pairs[torch.argsort(pairs[:, 2], stable=True)]
    pairs = pairs[torch.argsort(importance[pairs[:, 0], pairs[:, 2]], descending=True, stable=True)]
    pairs = pairs[torch.argsort(pairs[:, 0], stable=True)]
    counts = torch.bincount(pairs[:, 0], minlength=len(importance))
    rank = torch.arange(len(pairs), device=pairs.device) - (counts.cumsum(0) - counts)[pairs[:, 0]]
    take = counts // 3
    take = take * (take >= 2)
    kept = rank < take[pairs[:, 0]]
    sentences = torch.nonzero(take)[:, 0]
    row = ((take > 0).cumsum(0) - 1)[pairs[kept, 0]]
    grid = pairs.new_zeros(3, len(sentences), int(take.max()))
    grid[:, row, rank[kept]] = torch.stack([pairs[kept, 1], pairs[kept, 2], torch.ones_like(row)])
    return sentences, grid[0], grid[1], grid[2].bool()


def attention_cka(student: Tensor, teacher: Tensor, pairs: Tensor, importance: Tensor) -> Tensor:
    """CKA loss between the attention rows of the aligned tokens that matter most (EMO, step C), in fp64 inside, `[K]`.

    student `[N, L_s, L_s]`, teacher `[N, L_t, L_t]`: head-averaged weights, rows are queries, empty cells zero. Sentences with
    fewer than six pairs are left out: one row, once centred, is zero and has nothing to compare.
    """
    sentences, rows, columns, mask = top_third(pairs, importance)
    x, y = student[sentences[:, None], rows], teacher[sentences[:, None], columns]  # [K, m, L_s], [K, m, L_t]
    return cka_loss(x.double(), y.double(), mask).to(student.dtype)


def transport_cost(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Cost of moving a student token to a teacher token: 1 - softmax over teacher tokens of s . t / sqrt(d), `[N, L_s, L_t]`.

    student `[N, L_s, d]`, teacher `[N, L_t, d]` in the student's width, valid bool `[N, L_t]`. Each row sums to the number of
    valid teacher tokens less one (counting those), so the cost is nearly flat for long sentences.
    """
    return 1 - masked_softmax(student @ teacher.mT / math.sqrt(student.shape[-1]), valid[:, None])


def transport_loss(
    cost: Tensor, student_mass: Tensor, teacher_mass: Tensor, *, temperature: float = 0.1, iterations: int = 100
) -> Tensor:
    """<P, C> of the entropic transport plan P, a sentence, `[N]`; at least 0.

    cost `[N, L_s, L_t]`; masses `[N, L_s]` and `[N, L_t]`, 0 on padding.
    """
    plan = sinkhorn(cost, student_mass, teacher_mass, temperature=temperature, iterations=iterations)
    return (plan * cost).sum((1, 2))


# ---- soft alignment (DistillMoE)


def alignment_weights(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    *,
    mass: float = 0.95,
    most: int = 3,
    least_cosine: float = 0.3,
    temperature: float = 1.0,
) -> Tensor:
    """Which teacher tokens stand for a student token, and how much: `[N, L_s, L_t]`, rows summing to 1 over valid tokens.

    student `[N, L_s, d]`, teacher `[N, L_t, d]`, valid bool `[N, L_t]`. A softmax of the cosines; of it the fewest tokens that
    hold `mass`, at most `most`; of these the ones with a cosine of at least `least_cosine`, but always the nearest;
    renormalised. Gradients flow through the weights, not through the choice.
    """
    student = student.masked_fill(~student.any(-1, keepdim=True), 1.0)  # normalising zeros has no second derivative
    cosine = unit(student) @ unit(teacher).mT
    weights = masked_softmax(cosine / temperature, valid[:, None])
    top, index = weights.topk(min(most, weights.shape[-1]), dim=-1)
    keep = (top.cumsum(-1) - top < mass - _ROUNDING) & (cosine.gather(-1, index) >= least_cosine)
    keep = keep | (torch.arange(top.shape[-1], device=top.device) == 0)
    top = top * keep
    return torch.zeros_like(weights).scatter(-1, index, top / top.sum(-1, keepdim=True))
