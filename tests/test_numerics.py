"""Numbers that are none, and sentences that are hardly any: found before they reach a weight, named, the step repeatable."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from talas_lib import checkpoints, divergence, packed
from talas_lib import train as training
from talas_lib.divergence import MOST_IN_A_ROW, Diverged, Guard
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.methods import simcse, talas
from talas_lib.methods.base import Objective
from talas_lib.schedule import Settings, batch_rows
from talas_lib.sharpness_aware import Approximation, Perturbation
from talas_lib.stepper import Stepper
from talas_lib.train import train
from talas_lib.training_data import TrainingData

ASAM = Perturbation("asam", 0.5)
OPTIMIZERS = [None, ASAM, "every third step"]
SENTENCES, BATCH, EPOCHS = 40, 8, 2


def settings(optimizer: Any = None, **changes: Any) -> Settings:
    """Two epochs of five steps."""
    how = {"perturbation": ASAM, "ascent": Approximation(one_view=True, every=3)} if isinstance(optimizer, str) else {}
    given = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 1e-3, "min_lr": 1e-4, "perturbation": optimizer}
    return Settings(**given | how | changes)


def first_step_with(row: int, after: int = 0) -> int:
    """The first step, from 0, not before `after`, whose batch holds this corpus row."""
    return next(step for step, _, rows in batch_rows(SENTENCES, settings()) if step >= after and row in rows)


@pytest.fixture
def make(tiny_encoder_folder, tiny_texts):
    """A fresh (objective, data) on every call, always the same; the teacher's vectors of `poisoned` rows are NaN."""
    texts = tiny_texts[:SENTENCES]

    def build(poisoned=(), method=talas):
        student = Encoder.load(tiny_encoder_folder("bert"), layers=[0, 2], pooling="mean")
        sizes = {"student_dim": student.dim, "teacher_dims": (8,), "num_layers": student.num_layers}
        chosen = method.METHOD(method.Config(), **sizes, generator=torch.Generator().manual_seed(1))
        vectors = np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)
        vectors[list(poisoned)] = np.nan
        numbers = np.arange(len(texts))
        data = TrainingData(student.tokenize(texts), (lambda rows: vectors[rows],), numbers, numbers % 2)
        return Objective(student, chosen), data

    return build


def weights(objective: Objective) -> dict[str, torch.Tensor]:
    state = {f"student.{k}": v for k, v in objective.student.state_dict().items()}
    return state | {f"heads.{k}": v for k, v in objective.method.heads.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def deferred(monkeypatch):
    """Judge later, as on a GPU, on the CPU."""
    plain = Guard.__init__
    monkeypatch.setattr(
        Guard, "__init__", lambda self, policy="stop", *, deferred=False: plain(self, policy, deferred=True)
    )


# ---- stop


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_stops_with_all_that_the_step_began_with(make, optimizer, tmp_path):
    """The error names step, rows and terms; the file beside the checkpoint equals, tensor for tensor, a checkpoint that an
    undisturbed run writes at that moment; the weights in memory are those in it."""
    step = first_step_with(17, after=1)
    objective, data = make(poisoned=[17])
    last = tmp_path / "last.safetensors"
    with pytest.raises(
        TalasError, match=r"training diverged: loss nan \(simcse=[\w.]+, tamd=nan, lasd=[\w.-]+\)"
    ) as caught:
        train(objective, data, settings(optimizer), checkpoint=last, checkpoint_every=1000)
    message = str(caught.value)
    kept = tmp_path / f"diverged-step-{step + 1}.safetensors"
    rows = next(rows for at, _, rows in batch_rows(SENTENCES, settings()) if at == step)
    assert f"step {step + 1} of 10" in message
    assert all(str(row) in message.split("corpus rows")[1] for row in rows)
    assert str(kept) in message
    assert "-p nonfinite skip" in message
    leave_undisturbed_checkpoint(make, optimizer, last, step)
    assert same(load_file(kept), load_file(last))
    saved = {k: v for k, v in load_file(kept).items() if k.startswith(("student.", "heads."))}
    assert same(saved, weights(objective))


def leave_undisturbed_checkpoint(make, optimizer, file: Path, step: int) -> None:
    """The checkpoint after so many steps of a training without a fault, stopped right after it was written."""
    objective, data = make()
    with pytest.raises(KeyboardInterrupt):
        train(
            objective,
            data,
            settings(optimizer),
            checkpoint=file,
            checkpoint_every=step,
            log_every=1,
            on_log=stop_at(step + 1),
        )


def stop_at(step: int) -> Any:
    def on_log(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return on_log


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_the_place_of_the_checkpoint_the_file_repeats_the_step(make, optimizer, tmp_path):
    """With the cause still there it fails at once with the same numbers; with the cause gone, training ends with the bits of an
    undisturbed run."""
    step, last = first_step_with(17, after=1), tmp_path / "last.safetensors"
    messages = []
    for _ in range(2):
        objective, data = make(poisoned=[17])
        with pytest.raises(TalasError) as caught:
            train(objective, data, settings(optimizer), checkpoint=last, checkpoint_every=1000)
        messages.append(str(caught.value))
        (tmp_path / f"diverged-step-{step + 1}.safetensors").replace(last)
    assert messages[0] == messages[1]
    mended, data = make()
    result = train(mended, data, settings(optimizer), checkpoint=last, checkpoint_every=1000)
    assert result.resumed_from == step
    undisturbed, data = make()
    train(undisturbed, data, settings(optimizer))
    assert same(weights(mended), weights(undisturbed))


def test_infinite_gradients_of_a_finite_loss_are_found(make, tmp_path):
    objective, data = make()
    plain = objective.method.terms

    def terms(states, batch):  # a square root at 0: the value is 0, the slope is not
        return plain(states, batch) | {"lasd": (states.pooled * 0).abs().sum().sqrt()}

    objective.method.terms = terms
    before = {k: v.clone() for k, v in weights(objective).items()}
    with pytest.raises(TalasError, match=r"loss [\d.]+ \(.*lasd=0\), gradient norm nan, step 1 of 10"):
        train(objective, data, settings(ASAM))
    assert not list(tmp_path.iterdir())  # without a checkpoint there is no place for a file
    objective.student.expand_vocabulary()
    assert same(before, weights(objective))


@pytest.mark.parametrize("optimizer", [None, ASAM])
def test_found_later_it_is_the_same_step_and_no_weight_has_moved(make, optimizer, tmp_path, deferred):
    """As on a GPU: steps are judged at the next logged step, and by then the optimizer has left the weights alone."""
    step = first_step_with(17, after=1)
    objective, data = make(poisoned=[17])
    last = tmp_path / "last.safetensors"
    with pytest.raises(TalasError, match=rf"tamd=nan.*step {step + 1} of 10"):
        train(objective, data, settings(optimizer), checkpoint=last, log_every=9, checkpoint_every=1000, probe_every=0)
    leave_undisturbed_checkpoint(make, optimizer, last, step)
    assert same(load_file(tmp_path / f"diverged-step-{step + 1}.safetensors"), load_file(last))
    assert same({k: v for k, v in load_file(last).items() if k.startswith(("student.", "heads."))}, weights(objective))


def test_a_checkpoint_is_never_written_before_its_steps_are_judged(make, tmp_path, deferred):
    step = first_step_with(17, after=1)
    objective, data = make(poisoned=[17])
    with pytest.raises(TalasError, match="diverged"):
        train(objective, data, settings(), checkpoint=tmp_path / "c", checkpoint_every=1, log_every=1000)
    assert checkpoints.finished_steps(tmp_path / "c") == step


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading a number or a truth from a tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            raise AssertionError(f"{function} reads a tensor")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("how", ["adamw", "asam", "skip"])
def test_judging_later_reads_nothing_in_between(make, how, monkeypatch):
    """The steps of a GPU run on the CPU: no number leaves the device until `settle`. Judging at once does read one."""
    monkeypatch.setattr(packed, "_GROUPS", 1000)  # runs of like length are for CPUs
    objective, data = make()
    objective.student.train()
    optimizer = torch.optim.AdamW(objective.parameter_groups(1e-3, 0.01), fused=True)
    batches = [data.batch(np.arange(i, i + 8)) for i in range(3)]
    guard = Guard("skip" if how == "skip" else "stop", deferred=True)
    stepper = Stepper(objective, optimizer, settings(ASAM if how == "asam" else None), guard)
    stepper.step(batches[0], 1.0, measure=False)  # the optimizer makes its state
    with NoReading():
        stepper.step(batches[1], 1.0, measure=False)
    guard.settle()
    at_once = Stepper(objective, optimizer, settings())
    with NoReading(), pytest.raises(AssertionError, match="reads a tensor"):
        at_once.step(batches[2], 1.0)


# ---- skip


@pytest.mark.parametrize("optimizer", [None, ASAM])
def test_skipped_steps_are_counted_and_leave_no_trace(make, optimizer, tmp_path):
    """Optimizer and weights after a skipped step are those before it, and training ends; so does a run that is killed between."""
    objective, data = make(poisoned=[17])
    moments = []

    def on_log(row):
        moments.append((row["step"], {k: v.clone() for k, v in weights(objective).items()}))

    result = train(objective, data, settings(optimizer), log_every=1, on_log=on_log, nonfinite="skip", probe_every=0)
    assert result.skipped == EPOCHS  # once an epoch
    assert all(torch.isfinite(value).all() for value in weights(objective).values())
    skipped = [at for at, _, rows in batch_rows(SENTENCES, settings()) if 17 in rows]
    for (_, before), (at, after) in pairwise(moments):
        assert same(before, after) == (at - 1 in skipped)

    cut, data = make(poisoned=[17])
    with pytest.raises(KeyboardInterrupt):
        train(
            cut, data, settings(optimizer), checkpoint=tmp_path / "c", checkpoint_every=6, log_every=1, on_log=stop_at(8),
            nonfinite="skip", probe_every=0,
        )  # fmt: skip
    again, data = make(poisoned=[17])
    result = train(again, data, settings(optimizer), checkpoint=tmp_path / "c", nonfinite="skip", probe_every=0)
    assert (result.resumed_from, result.skipped) == (6, EPOCHS)
    assert same(weights(again), weights(objective))


def test_skipping_later_ends_with_the_same_bits(make, monkeypatch):
    ends, counts = [], []
    for late in (False, True):
        if late:
            monkeypatch.setattr(training, "Guard", lambda policy, *, deferred: Guard(policy, deferred=True))
        objective, data = make(poisoned=[17])
        result = train(objective, data, settings(ASAM), log_every=4, nonfinite="skip", probe_every=0)
        ends.append(weights(objective))
        counts.append(result.skipped)
    assert counts == [EPOCHS, EPOCHS]
    assert same(*ends)


def test_a_direction_from_a_skipped_step_is_not_used_again(make):
    """The poisoned row is in one batch an epoch: a direction that is kept for three steps must not spread its NaN."""
    objective, data = make(poisoned=[17])
    result = train(objective, data, settings("every third step"), nonfinite="skip")
    assert result.skipped == EPOCHS


@pytest.mark.parametrize("late", [False, True])
def test_skipping_ends_where_nothing_else_comes(make, monkeypatch, late):
    """Weights that are not finite themselves: there is no use in going on."""
    if late:
        monkeypatch.setattr(training, "Guard", lambda policy, *, deferred: Guard(policy, deferred=True))
    objective, data = make(poisoned=range(SENTENCES))
    with pytest.raises(TalasError, match=f"{MOST_IN_A_ROW} steps in a row were skipped"):
        train(objective, data, settings(epochs=4), nonfinite="skip")


def test_the_guard_forgets_a_bad_step_after_a_good_one():
    guard = Guard("skip")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)

    def seen(value):
        zero = torch.zeros(())
        return divergence.Seen(0, None, torch.arange(2), torch.tensor(value), {"x": zero}, zero)

    for _ in range(3):
        assert not any(guard.admit(seen(float("nan")), optimizer) for _ in range(MOST_IN_A_ROW))
        assert guard.admit(seen(1.0), optimizer)
    assert guard.skipped == 3 * MOST_IN_A_ROW
    with pytest.raises(Diverged):
        Guard().admit(seen(float("inf")), optimizer)


# ---- sentences

ODD = {
    "one letter": "a",
    "empty": "",
    "spaces": "   ",
    "tabs and line ends": "\t \r\n\n",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 ok",
    "right to left": "שלום עולם مرحبا بالعالم",
    "marks of direction": "‮desrever‬ ‎‏",
    "control characters": "a\x00b\x01\x02\x1b[31mc\x7f",
    "nothing but control characters": "\x00\x01\x02\x7f",
    "joiners and marks": "e\u0301\u0301\u0301 \u200d\u200b\ufeff",
    "not a character": "\ufffe\uffff \U0010ffff",
    "one long word": "x" * 5000,
    "ten thousand words": " ".join(["river"] * 10_000),
}


@pytest.mark.parametrize("arch", ["bert", "mpnet", "xlm-r", "qwen3"])
def test_odd_sentences_get_vectors_of_their_own(arch, tiny_encoder_folder):
    """Finite, the same among others as alone, and equal texts equal vectors."""
    pooling = {"bert": "mean", "mpnet": "mean", "xlm-r": "cls", "qwen3": "last"}[arch]
    encoder = Encoder.load(tiny_encoder_folder(arch), pooling=pooling, max_length=64)
    texts = [*ODD.values(), *ODD.values()]
    together = encoder.encode(texts)
    assert np.isfinite(together).all()
    lengths = dict(zip(ODD, np.linalg.norm(together, axis=1), strict=False))
    if arch == "qwen3":  # nothing but its end-of-text token, which pads as well and has a vector of zeros here
        assert lengths.pop("empty") == 0
    assert min(lengths.values()) > 0
    np.testing.assert_array_equal(together[: len(ODD)], together[len(ODD) :])
    for row, (name, text) in enumerate(ODD.items()):
        np.testing.assert_allclose(encoder.encode([text])[0], together[row], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("method", [talas, simcse])
@pytest.mark.parametrize("optimizer", [None, ASAM])
def test_training_takes_odd_sentences(method, optimizer, tiny_encoder_folder):
    student = Encoder.load(tiny_encoder_folder("bert"), layers=[0, 2], pooling="mean", max_length=64)
    sizes = {"student_dim": student.dim, "teacher_dims": (8,), "num_layers": student.num_layers}
    chosen = method.METHOD(method.Config(), **sizes, generator=torch.Generator().manual_seed(1))
    texts = [*ODD.values(), "a", "a", ""]
    vectors = np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)
    numbers = np.arange(len(texts))
    data = TrainingData(student.tokenize(texts), (lambda rows: vectors[rows],), numbers, numbers)
    rows: list[dict[str, Any]] = []
    for size in (1, 5, len(texts)):  # batches of one, ordinary ones, all at once
        train(
            Objective(student, chosen),
            data,
            settings(optimizer, epochs=1, batch_size=size),
            log_every=1,
            on_log=rows.append,
        )
    assert all(np.isfinite(value) for row in rows for value in row.values())


def test_ten_thousand_words_are_cut_alike_everywhere(tmp_path: Path, monkeypatch):
    """In the caches of vectors and of token states and in training: what stands behind the last token that is read does not
    count, and how many sentences are cut is said."""
    from talas_lib import params, runs, sources, stages

    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    short, long = " ".join(["river"] * 200), " ".join(["river"] * 10_000)
    file = tmp_path / "mine.txt"
    file.write_text("\n".join([short, long, "a boat on the river", "the harbour at night"]))
    given = {"teacher": "tiny", "student": "tiny", "corpus": str(file), "method": "cdm", "optimizer": "adamw"}
    p = params.resolve("03_train", given | {"epochs": 1, "batch_size": 2, "device": "cpu"})
    corpus = stages.load_corpus(p)
    assert sources.cut_share(p.student_spec, corpus.texts) == 0.5
    vectors = stages.cache_teacher(p, corpus).vectors([0, 1, 2])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (vectors[0] != vectors[2]).any()
    tokens = stages.cache_tokens(p, corpus)
    assert tokens is not None
    states = tokens.tokens([0, 1, 2])
    assert states.valid.sum(1)[:2].tolist() == [p.teacher_spec.max_length] * 2
    for layer in states.states.values():
        assert torch.equal(layer[0], layer[1])
    run = stages.train_run(p)
    assert run.status == "finished"
    assert all(np.isfinite(row["loss"]) for row in runs.Run(run.id).read_metrics())


def test_half_a_surrogate_pair_is_refused_by_its_place(tiny_encoder_folder):
    encoder = Encoder.load(tiny_encoder_folder("bert"), pooling="mean")
    with pytest.raises(TalasError, match=r"sentence 1 holds half of a surrogate pair.*'half \\ud83d'.*remove it"):
        encoder.encode(["whole", "half \ud83d"])


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["fine", "", "fine"], "line 2: 'text' is empty"),
        (["fine", "fine", " \t "], "line 3: 'text' is empty"),
        (["\u2003\u00a0"], "line 1: 'text' is empty"),
    ],
)
def test_a_file_of_sentences_names_the_line_it_is_refused_for(lines, complaint, tmp_path, monkeypatch):
    from talas_lib import params, sources

    file = tmp_path / "mine.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(TalasError, match=complaint):
        sources.load_corpus(params.resolve("01_data", {"corpus": str(file)}).corpus_spec)


def test_a_file_of_odd_sentences_is_read_as_it_is(tmp_path: Path):
    import json

    from talas_lib import params, sources

    odd = [text for text in ODD.values() if text.strip()]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in odd), encoding="utf-8")
    corpus = sources.load_corpus(params.resolve("01_data", {"corpus": str(file)}).corpus_spec)
    assert list(corpus.texts) == odd
