"""An alarm for degenerate geometry: all sentences in nearly one direction, or in very few.

Two numbers tell: the mean cosine of different sentences, and the effective rank of their vectors (Roy and Vetterli 2007),
which training logs for each batch, with dropout on (so both look healthier than they are without). Neither means much
alone. The first-token vectors of an untrained BERT have a mean cosine near 0.9, those of a network that lost half of its
blocks 0.997, and both train well. So the alarm compares with the start: the spread, 1 - mean cosine, has to be small and to
have shrunk to a third. Only a mean cosine above 0.99 with no start to compare with, or a start that was degenerate and has not
been left in half of the training, is an alarm by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

NARROW = 0.05  # spread of vectors that nearly coincide: mean cosine 0.95
SHRUNK = 1 / 3  # of the spread at the start
POINT = 0.01  # spread that is an alarm with no start known
STUCK = 0.02  # spread that is an alarm after half of the training, where the start was narrow
LOW_RANK = 4.0  # directions; or an eighth of those at the start, if that is more
PATIENCE = 2  # logged steps in a row: one odd batch is no collapse

HIGH_LR = 3e-4  # encoders are fine-tuned with 1e-5 to 1e-4
TEMPERATURES = (0.01, 0.2)  # outside of these a contrastive loss hardly keeps sentences apart
REPELLING = ("simcse", "info_nce", "contrast")  # terms whose name holds one of these keep sentences apart


class CollapseWarning(UserWarning):
    """The student's vectors have collapsed or are about to."""


@dataclass(frozen=True)
class Circumstances:
    """What may explain a collapse; None or empty where it is not known.

    lr: peak learning rate; terms: names of the loss terms; teacher: whether there is one; temperature: of the contrastive term;
    dropout: of the student, in [0, 1).
    """

    lr: float | None = None
    terms: Collection[str] = ()
    teacher: bool | None = None
    temperature: float | None = None
    dropout: float | None = None

    @classmethod
    def of(cls, p: Any, terms: Collection[str], student: Any = None) -> Circumstances:
        """From resolved training parameters, the names of the method's terms, and the encoder if it is at hand."""
        config = getattr(getattr(student, "model", None), "config", None)
        return cls(
            lr=p.lr,
            terms=tuple(terms),
            teacher=p.needs_teacher,
            temperature=getattr(p.method_config, "temperature", None),
            dropout=getattr(config, "hidden_dropout_prob", None),
        )

    @property
    def repels(self) -> bool:
        """Whether some term keeps different sentences apart."""
        return any(word in term for term in self.terms for word in REPELLING)

    def cause_and_remedy(self) -> tuple[str, str]:
        """The first of the known causes that fits, in words, and what to do."""
        if self.lr is not None and self.lr >= HIGH_LR:
            return f"the learning rate {self.lr:g} is high for an encoder", "lower lr to between 1e-5 and 1e-4"
        if self.terms and not self.repels and self.teacher is False:
            return (
                "no term of the loss keeps sentences apart and no teacher says where they belong",
                "add a contrastive term or a teacher",
            )
        if self.repels and self.dropout == 0:
            return (
                "the student's dropout is 0, so that both views of a sentence are the same",
                "use a student whose configuration has dropout, usually 0.1",
            )
        if self.repels and self.temperature is not None and not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            size = "high" if self.temperature > TEMPERATURES[1] else "low"
            return f"the temperature {self.temperature:g} is {size}", "set it between 0.05 and 0.1"
        if any("mse" in term for term in self.terms):
            return (
                "a squared error between vectors of length 1 is so small that predicting their mean is nearly as good",
                "use a method that compares directions, such as cosine, or raise lr and the number of epochs",
            )
        if "lasd" in self.terms:
            return (
                "layers agree best (LASD) when all vectors are alike",
                "lower its weight or raise that of the contrastive term in method_params",
            )
        return (
            "what pulls vectors together outweighs what keeps them apart",
            "lower lr, train for fewer epochs, or give a contrastive term more weight",
        )


def geometry(vectors: np.ndarray) -> dict[str, float]:
    """mean_cosine of different rows and effective_rank of vectors `[rows, dim]`, with the number of rows."""
    import torch

    from talas_lib import losses

    x = torch.from_numpy(vectors).float()
    x = x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny)  # neither number depends on the scale
    return {
        "mean_cosine": float(losses.mean_off_diagonal_cosine(x)),
        "effective_rank": float(losses.effective_rank(x)),
        "rows": len(vectors),
    }


def check(
    row: Mapping[str, float],
    *,
    start: Mapping[str, float] | None = None,
    done: float = 0.0,
    circumstances: Circumstances | None = None,
) -> str | None:
    """What is wrong with the geometry of a logged step, why that may be and what to do; None when nothing is.

    row and start: mean_cosine in [-1, 1] and effective_rank >= 1 of equally many vectors, now and before training.
    done: the finished share of training, in [0, 1].
    """
    cosine, rank = float(row["mean_cosine"]), float(row["effective_rank"])
    what = _finding(cosine, rank, start, done)
    if what is None:
        return None
    was = "" if start is None else f" ({start['mean_cosine']:.3f} before training)"
    rank_was = "" if start is None else f" ({start['effective_rank']:.1f})"
    cause, remedy = (circumstances or Circumstances()).cause_and_remedy()
    return (
        f"{what}: mean cosine of different sentences {cosine:.3f}{was}, effective rank {rank:.1f}{rank_was}; "
        f"the likely cause is that {cause}: {remedy}"
    )


def _finding(cosine: float, rank: float, start: Mapping[str, float] | None, done: float) -> str | None:
    spread = 1 - cosine
    if not (math.isfinite(cosine) and math.isfinite(rank)):
        return "the student's vectors are not finite"
    if start is None:
        return "the student's vectors point in nearly one direction" if spread < POINT else None
    at_first, rank_at_first = 1 - start["mean_cosine"], start["effective_rank"]
    if spread < NARROW and spread < SHRUNK * at_first:
        return "the student's vectors have collapsed towards one direction"
    if at_first <= NARROW and spread < STUCK and done >= 0.5:
        return "the student's vectors pointed in nearly one direction before training and still do"
    if rank < max(LOW_RANK, rank_at_first / 8) and rank < rank_at_first / 4:
        return "the student's vectors have collapsed into few directions"
    return None


def check_vectors(
    vectors: np.ndarray,
    *,
    start: Mapping[str, float] | None = None,
    circumstances: Circumstances | None = None,
) -> str | None:
    """`check` of a finished student's vectors `[rows, dim]`; start: `geometry` of the untrained student on the same texts."""
    return check(geometry(vectors), start=start, done=1.0, circumstances=circumstances)


class Watch:
    """Looks at the logged steps of a training run, in order, and warns once when the geometry degenerates.

    The first row is the start that the others are compared with. total: steps of the whole training.
    """

    def __init__(self, total: int, circumstances: Circumstances | None = None) -> None:
        self.total = total
        self.circumstances = circumstances
        self._start: Mapping[str, Any] | None = None
        self._in_a_row = 0
        self._message: str | None = None

    def see(self, row: Mapping[str, Any], *, warn: bool = True) -> None:
        """Take note of one logged step; rows without the two numbers are passed over.

        warn: False for the rows of an earlier session.
        """
        if row.get("mean_cosine") is None or row.get("effective_rank") is None:
            return
        if self._start is None:
            self._start = row
            return
        step = int(row.get("step", 0))
        found = check(row, start=self._start, done=step / max(self.total, 1), circumstances=self.circumstances)
        self._in_a_row = self._in_a_row + 1 if found else 0
        if self._message is None and self._in_a_row == PATIENCE:
            self._message = f"at step {step} {found}"
            if warn:
                warnings.warn(self._message, CollapseWarning, stacklevel=2)

    @property
    def message(self) -> str | None:
        """The alarm, None when there was none; says so when the last row seen was sound again."""
        if self._message is None or self._in_a_row:
            return self._message
        return f"{self._message} (it had passed by the end)"
