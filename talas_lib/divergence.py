"""Losses and gradients that are not finite: seen before they reach a weight, counted or answered by an error that names them.

On a CPU every step is judged at once. On a GPU that would make the host wait for each step; there a flag on the device keeps the
fused optimizer from moving a weight (the `found_inf` of loss scaling), and `Guard.settle` reads the flags of many steps where the
host waits anyway, at logged steps and checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from talas_lib.errors import TalasError

Policy = Literal["stop", "skip"]
MOST_IN_A_ROW = 10  # skipped steps; beyond, the weights themselves are no numbers, and there is nothing to wait for


@dataclass(frozen=True)
class Seen:
    """What a step leaves to be judged by. number: of the step in its stage, from 0; before: what must be put back to take the
    step again (see Stepper); rows: corpus rows, int64 `[N]`; norm: of all gradients, a scalar.
    """

    number: int
    before: Any
    rows: Tensor
    total: Tensor
    terms: Mapping[str, Tensor]
    norm: Tensor

    @property
    def finite(self) -> Tensor:
        """A bool on the device of the loss."""
        return torch.isfinite(self.total + self.norm)

    def __str__(self) -> str:
        terms = ", ".join(f"{name}={value.item():.4g}" for name, value in self.terms.items())
        return f"loss {self.total.item():.4g} ({terms}), gradient norm {self.norm.item():.4g}"


class Diverged(TalasError):
    """A step whose loss or gradients are not finite; the weights are those before it. seen: the step."""

    def __init__(self, seen: Seen, message: str) -> None:
        super().__init__(message)
        self.seen = seen


class Guard:
    """Judges the steps of one stage. policy: stop at the first that is not finite, or skip such steps and count them.

    deferred: judge in `settle`, without waiting for the device in between. skipped: steps left out so far.
    """

    def __init__(self, policy: Policy = "stop", *, deferred: bool = False) -> None:
        self.policy, self.deferred = policy, deferred
        self.skipped = 0
        self._in_a_row = 0
        self._waiting: list[tuple[Seen, Tensor]] = []
        self._halted: Tensor | None = None

    def admit(self, seen: Seen, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer may be called; deferred it always may, and does nothing where the step is not finite.

        Under `stop` it then does nothing until `settle` has raised, so that the weights stay those before the step.
        Raises Diverged.
        """
        finite = seen.finite
        if not self.deferred:
            return self._judge(seen, bool(finite))
        self._waiting.append((seen, finite))
        bad = ~finite
        if self.policy == "stop":
            bad = self._halted = bad if self._halted is None else bad | self._halted
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
        return True

    def settle(self) -> None:
        """Read what is not judged yet, in the order of the steps. Raises Diverged."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            for (seen, _), finite in zip(waiting, torch.stack([f for _, f in waiting]).tolist(), strict=True):
                self._judge(seen, finite)

    def _judge(self, seen: Seen, finite: bool) -> bool:
        if finite:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        if self.policy == "stop":
            raise Diverged(seen, str(seen))
        if self._in_a_row > MOST_IN_A_ROW:
            raise Diverged(seen, f"{MOST_IN_A_ROW} steps in a row were skipped, and the next is no better: {seen}")
        self.skipped += 1
        return False
