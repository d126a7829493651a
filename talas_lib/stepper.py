"""One optimizer step, plain or sharpness-aware, and what it reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talas_lib import losses
from talas_lib.divergence import Guard, Seen
from talas_lib.errors import TalasError
from talas_lib.methods.base import Batch, Objective, StudentStates
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import (
    Ascent,
    Direction,
    cosine_between,
    displaced,
    find_direction,
    gradient_values,
    mark_biases,
    perturbed,
    variance_between_sources,
)


@dataclass(frozen=True)
class StepReport:
    """Tensors of one step; `row` fetches them, so that steps which nobody logs need no synchronisation."""

    total: Tensor
    terms: dict[str, Tensor]
    embeddings: Tensor
    ascent: Ascent | None
    probe: dict[str, Tensor]

    def row(self) -> dict[str, float]:
        """Plain numbers: loss and its unweighted terms, the geometry of the student's vectors, the perturbation."""
        row = {"loss": float(self.total)} | {f"loss_{k}": float(v) for k, v in self.terms.items()}
        row["mean_cosine"] = float(losses.mean_off_diagonal_cosine(self.embeddings))
        finite = bool(self.embeddings.isfinite().all())  # of a step that was skipped they need not be
        row["effective_rank"] = float(losses.effective_rank(self.embeddings)) if finite else float("nan")
        if self.ascent is not None:
            row |= {k: float(v) for k, v in vars(self.ascent).items()}
        return row | {k: float(v) for k, v in self.probe.items()}


class Stepper:
    """One optimizer step: gradients g at w, move to w + eps, gradients g' there, back to w, step with g'; or plain.

    guard: what happens to a step that is not finite; by default it raises.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        guard: Guard | None = None,
    ) -> None:
        self.objective, self.optimizer, self.settings = objective, optimizer, settings
        self.guard = guard or Guard(deferred=objective.student.device.type == "cuda")
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        student, heads = objective.student, objective.method.heads
        mark_biases(student)
        mark_biases(heads)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = [p for m in (student, heads) for p in m.parameters() if id(p) in trained]
        student_only = [p for p in student.parameters() if id(p) in trained]
        self.student = student_only
        self.perturbable = self.parameters if settings.perturb_heads else student_only
        self.tables: dict[Tensor, Tensor] = {}
        self.steps = 0
        self.direction: Direction | None = None
        self.sharpness_aware = settings.perturbation is not None and bool(self.perturbable)

    def state(self) -> dict[str, Tensor]:
        """What must survive an interruption beside weights and optimizer: the steps made, those skipped, and a direction still
        in use."""
        found = {"steps": torch.tensor(self.steps), "skipped": torch.tensor(self.guard.skipped)}
        if self.direction is not None:
            number = {id(p): i for i, p in enumerate(self.perturbable)}
            pairs = zip(self.direction.parameters, self.direction.eps, strict=True)
            found |= {f"eps.{number[id(p)]}": eps for p, eps in pairs}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.steps = int(state["steps"])
        self.guard.skipped = int(state.get("skipped", 0))
        kept = {self.perturbable[int(k.removeprefix("eps."))]: v for k, v in state.items() if k.startswith("eps.")}
        if kept:
            parameters = list(kept)
            self.direction = Direction(parameters, [None] * len(kept), [kept[p].to(p.device) for p in parameters])

    def step(self, batch: Batch, lr_factor: float, *, probe: bool = False, measure: bool = True) -> StepReport:
        """Train on one batch at `lr_factor` times the peak learning rates; `measure` the perturbation for the log or not.

        The loss reported is that at w; with an approximate ascent, which never computes it on the whole batch, that at w + eps.
        Raises Diverged as the guard says.
        """
        # judged later, a step keeps no direction: each would be a copy of the model
        before = (_rng_state(batch.ids.device), None if self.guard.deferred else self.direction)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * lr_factor
        measured: dict[str, Tensor] = {}
        if not self.sharpness_aware:
            states, total, terms = self._backward(batch)
            ascent = None
        elif self.settings.ascent.exact:
            states, total, terms, ascent, measured = self._exact(batch, probe=probe, measure=measure)
        else:
            with displaced(self._approximate_direction(batch, measure=measure)) as ascent:
                states, total, terms = self._backward(batch)
        kept = {k: v.detach() for k, v in terms.items()}
        norm = torch.stack(torch._foreach_norm(gradient_values(self.parameters))).sum()
        self.steps += 1
        if self.guard.admit(Seen(self.steps - 1, before, batch.rows, total.detach(), kept, norm), self.optimizer):
            with self._dense_gradients():
                self.optimizer.step()
        else:
            self.direction = before[1]
        self.optimizer.zero_grad(set_to_none=True)
        return StepReport(total.detach(), kept, states.pooled.detach(), ascent, measured)

    def rewind(self, seen: Seen) -> None:
        """Stand where the step was begun: its number, the random state and the direction in use. The weights stand there."""
        self.steps = seen.number
        random, self.direction = seen.before
        _set_rng_state(seen.rows.device, random)

    def _backward(self, batch: Batch) -> tuple[StudentStates, Tensor, dict[str, Tensor]]:
        self.optimizer.zero_grad(set_to_none=True)
        states = self.objective.states(batch)
        total, terms = self.objective.total(states, batch)
        total.backward()
        self._reduce()
        return states, total, terms

    def _reduce(self) -> None:
        """Of several processes each then has the gradient of the whole batch."""
        if self.objective.ranks is not None:
            own = {id(p) for p in self.student}
            self.objective.ranks.reduce(self.student, [p for p in self.parameters if id(p) not in own])

    def _exact(
        self, batch: Batch, *, probe: bool, measure: bool
    ) -> tuple[StudentStates, Tensor, dict[str, Tensor], Ascent | None, dict[str, Tensor]]:
        """Gradient of the batch at w, then its gradient at w + eps; loss and states are those at w."""
        masks = _rng_state(batch.ids.device)
        states = self.objective.states(batch)
        total, terms = self.objective.total(states, batch)
        self._climbed(total, states, batch).backward()
        self._reduce()
        assert self.settings.perturbation is not None
        first = [p.grad for p in self.parameters if p.grad is not None]
        measured = {}
        with perturbed(self.perturbable, self.settings.perturbation, measure=measure) as ascent:
            if probe:
                measured = self._probe(batch, masks, total.detach(), first)
            if self.settings.same_dropout:
                _set_rng_state(batch.ids.device, masks)
            self._backward(batch)
        return states, total, terms, ascent, measured

    def _approximate_direction(self, batch: Batch, *, measure: bool) -> Direction:
        """The direction from a part of the batch, from one view, or the one of an earlier step."""
        assert self.settings.perturbation is not None
        how = self.settings.ascent
        if self.direction is not None and self.steps % how.every:
            return self.direction
        part = batch.every(how.stride, self.steps) if how.stride > 1 and len(batch.rows) > how.stride else batch
        self.optimizer.zero_grad(set_to_none=True)
        states = self.objective.states(part, one_view=how.one_view)
        total, _ = self.objective.total(states, part)
        self._climbed(total, states, part).backward()
        self._reduce()
        found = find_direction(self.perturbable, self.settings.perturbation, measure=measure)
        self.direction = found.without_tables() if how.every > 1 else None
        return found

    def _climbed(self, total: Tensor, states: StudentStates, batch: Batch) -> Tensor:
        """What the perturbation climbs: the loss, for DISAM less the variance of the sources' losses."""
        how = self.settings.perturbation
        if how is None or how.variance_weight == 0:
            return total
        try:
            with self.objective.together():
                rows = self.objective.method.row_loss(states, batch)
        except NotImplementedError:
            raise TalasError(
                f"{type(self.objective.method).__name__} has no loss that is a mean over sentences, and DISAM compares such"
                " losses between sources; use optimizer sam or asam with it"
            ) from None
        return total - how.variance_weight * variance_between_sources(rows, batch.sources)

    def _whole(self, parameters: list[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """`_reduce` for gradients that are no attributes."""
        if self.objective.ranks is None:
            return list(grads)
        own, count = {id(p) for p in self.student}, self.objective.ranks.count
        summed = self.objective.ranks.total(grads)
        return [g if id(p) in own else g / count for p, g in zip(parameters, summed, strict=True)]

    @contextmanager
    def _dense_gradients(self) -> Iterator[None]:
        """Sparse gradients written into a table of zeros that is kept between steps: allocating and clearing one a step costs
        more than all its rows."""
        written = []
        for p in self.parameters:
            if p.grad is not None and p.grad.is_sparse:
                grad = p.grad.coalesce()
                if p not in self.tables:
                    self.tables[p] = torch.zeros_like(p)
                p.grad = self.tables[p].index_copy_(0, grad.indices()[0], grad.values())
                written.append((p.grad, grad.indices()[0]))
        yield
        for table, rows in written:
            table.index_fill_(0, rows, 0)

    def _probe(self, batch: Batch, masks: Any, loss: Tensor, first: list[Tensor]) -> dict[str, Tensor]:
        """Loss rise and cos(g', g) at w + eps under the dropout masks of the first pass; leaves the random state alone."""
        now = _rng_state(batch.ids.device)
        _set_rng_state(batch.ids.device, masks)
        risen = self.objective(batch)[0]
        with_grad = [p for p in self.parameters if p.grad is not None]
        second = self._whole(with_grad, torch.autograd.grad(risen, with_grad))
        _set_rng_state(batch.ids.device, now)
        return {"ascent_gain": risen.detach() - loss, "ascent_cosine": cosine_between(first, second)}


def _rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng_state(device: torch.device, state: Any) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
