"""A training step asks a GPU for nothing that the CPU would have to wait for.

There is no GPU here. The step is taken on tensors that have shapes and no values (FakeTensorMode), where whatever needs a
value on the host, `.item()`, `if tensor:`, an output whose size depends on the data, raises. Chosen are the branches a GPU takes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import test_methods_all as every
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from talas_lib.divergence import Guard
from talas_lib.methods.base import Batch
from talas_lib.packed import Layout
from talas_lib.sharpness_aware import Perturbation
from talas_lib.stepper import Stepper

bench = every.bench
WAITS = (DataDependentOutputException, DynamicOutputShapeException)


def without_values(mode: FakeTensorMode, case: every.Case, batch: Batch) -> Batch:
    """The batch with tensors that have no values; the same is done to the weights, in place."""
    for module in (*case.student.modules(), *case.method.heads.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(mode.from_tensor(parameter.detach())))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))

    def fake(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return mode.from_tensor(value)
        if isinstance(value, dict):
            return {key: fake(inner) for key, inner in value.items()}
        return tuple(map(fake, value)) if isinstance(value, tuple) else value

    tokens = None if batch.tokens is None else type(batch.tokens)(*map(fake, vars(batch.tokens).values()))
    layout = replace(batch.layout, lengths=fake(batch.layout.lengths))
    return Batch(**{k: fake(v) for k, v in vars(batch).items()} | {"layout": layout, "tokens": tokens})


def take_steps(bench: every.Bench, name: str, perturbation: Perturbation | None) -> None:
    """Two steps without values, judged later, as on a GPU."""
    case = bench.case(name).train()
    mode = FakeTensorMode()
    batch = without_values(mode, case, case.batch(*range(8)))
    with mode:
        groups = case.objective.parameter_groups(1e-3, 0.01)
        settings = replace(every.SHORT, perturbation=perturbation)
        stepper = Stepper(case.objective, torch.optim.AdamW(groups, fused=True), settings, Guard(deferred=True))
        for _ in range(2):
            stepper.step(batch, 1.0, measure=False)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(Layout, "groups", property(lambda self: (self,)))
    monkeypatch.setattr("talas_lib.stepper._rng_state", lambda _: None)
    monkeypatch.setattr("talas_lib.stepper._set_rng_state", lambda *_: None)


# EMO compares the most important third of each sentence's token pairs: how many that are, the data decide.
WAITING = {"emo"}


@pytest.mark.parametrize("name", [name for name in every.TRAINED if name not in WAITING])
@pytest.mark.parametrize("perturbation", [None, Perturbation(rho=0.05)], ids=["adamw", "asam"])
def test_a_step_waits_for_nothing(bench, name, perturbation, as_on_a_gpu):
    take_steps(bench, name, perturbation)


@pytest.mark.parametrize("name", sorted(WAITING))
def test_the_exception_is_one(bench, name, as_on_a_gpu):
    with pytest.raises(WAITS):
        take_steps(bench, name, None)


@pytest.mark.parametrize("waiting", [lambda x: x.item(), lambda x: bool(x > 0), lambda x: x.expand(3).nonzero()])
def test_waiting_is_noticed(waiting):
    mode = FakeTensorMode()
    value = mode.from_tensor(torch.ones(()))
    with mode, pytest.raises(WAITS):
        waiting(value)
