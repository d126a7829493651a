"""One optimizer step, plain or sharpness-aware, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talas_lib import losses
from talas_lib.errors import TalasError
from talas_lib.methods.base import Batch, Objective, StudentStates
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import Ascent, cosine_between, mark_biases, perturbed, variance_between_sources


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
        row["effective_rank"] = float(losses.effective_rank(self.embeddings))
        if self.ascent is not None:
            row |= {k: float(v) for k, v in vars(self.ascent).items()}
        return row | {k: float(v) for k, v in self.probe.items()}


class Stepper:
    """One optimizer step: gradients g at w, move to w + eps, gradients g' there, back to w, step with g'; or plain."""

    def __init__(self, objective: Objective, optimizer: torch.optim.Optimizer, settings: Settings) -> None:
        self.objective, self.optimizer, self.settings = objective, optimizer, settings
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        student, heads = objective.student, objective.method.heads
        mark_biases(student)
        mark_biases(heads)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = [p for m in (student, heads) for p in m.parameters() if id(p) in trained]
        student_only = [p for p in student.parameters() if id(p) in trained]
        self.perturbable = self.parameters if settings.perturb_heads else student_only
        self.sharpness_aware = settings.perturbation is not None and bool(self.perturbable)

    def step(self, batch: Batch, lr_factor: float, *, probe: bool = False, measure: bool = True) -> StepReport:
        """Train on one batch at `lr_factor` times the peak learning rates; `measure` the perturbation for the log or not."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * lr_factor
        masks = _rng_state(batch.ids.device) if self.sharpness_aware else None
        states = self.objective.states(batch)
        total, terms = self.objective.total(states, batch)
        ascent, measured = None, {}
        if self.settings.perturbation is None or not self.sharpness_aware:
            total.backward()
        else:
            self._ascent_objective(total, states, batch).backward()
            first = [p.grad for p in self.parameters if p.grad is not None]
            with perturbed(self.perturbable, self.settings.perturbation, measure=measure) as ascent:
                if probe:
                    measured = self._probe(batch, masks, total.detach(), first)
                if self.settings.same_dropout:
                    _set_rng_state(batch.ids.device, masks)
                self.optimizer.zero_grad(set_to_none=True)
                self.objective(batch)[0].backward()
        if not batch.ids.is_cuda:
            self._check_finite(total, terms, batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        kept = {k: v.detach() for k, v in terms.items()}
        return StepReport(total.detach(), kept, states.pooled.detach(), ascent, measured)

    def _ascent_objective(self, total: Tensor, states: StudentStates, batch: Batch) -> Tensor:
        """What the perturbation climbs: the loss, for DISAM less the variance of the sources' losses."""
        how = self.settings.perturbation
        if how is None or how.variance_weight == 0:
            return total
        try:
            rows = self.objective.method.row_loss(states, batch)
        except NotImplementedError:
            raise TalasError(
                f"{type(self.objective.method).__name__} has no loss that is a mean over sentences, and DISAM compares such"
                " losses between sources; use optimizer sam or asam with it"
            ) from None
        return total - how.variance_weight * variance_between_sources(rows, batch.sources)

    def _probe(self, batch: Batch, masks: Any, loss: Tensor, first: list[Tensor]) -> dict[str, Tensor]:
        """Loss rise and cos(g', g) at w + eps under the dropout masks of the first pass; leaves the random state alone."""
        now = _rng_state(batch.ids.device)
        _set_rng_state(batch.ids.device, masks)
        risen = self.objective(batch)[0]
        with_grad = [p for p in self.parameters if p.grad is not None]
        second = torch.autograd.grad(risen, with_grad)
        _set_rng_state(batch.ids.device, now)
        return {"ascent_gain": risen.detach() - loss, "ascent_cosine": cosine_between(first, list(second))}

    def _check_finite(self, total: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).sum()
        if bool(torch.isfinite(total + norm)):
            return
        values = ", ".join(f"{k}={v.item():.4g}" for k, v in terms.items())
        rows = batch.rows.tolist()
        raise TalasError(
            f"training diverged: loss {total.item():.4g} ({values}), gradient norm {norm.item():.4g}, corpus rows {rows}. "
            f"Lower lr (now {self.settings.lr:g}) or rho, or look at those sentences"
        )


def _rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng_state(device: torch.device, state: Any) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
