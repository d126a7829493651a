"""The training loop: it learns, resumes to the bit, measures without disturbing, and equals a plain reference loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from talas_lib import checkpoints
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.methods import simcse, talas
from talas_lib.methods.base import Objective
from talas_lib.pooling import pool
from talas_lib.schedule import Settings, batch_rows, epoch_order
from talas_lib.sharpness_aware import Approximation, Perturbation
from talas_lib.train import train
from talas_lib.training_data import TrainingData


@pytest.fixture
def make(tiny_encoder_folder, tiny_texts):
    """A fresh (objective, data) on every call, always the same."""
    texts = tiny_texts[:40]

    def build(method=None, pooling="mean", dropout=None, teacher_dim=8, **config):
        student = Encoder.load(tiny_encoder_folder("bert"), layers=[0, 2], pooling=pooling)
        if dropout is not None:
            for module in student.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = dropout
        module = method or talas
        kwargs = {"student_dim": student.dim, "teacher_dims": (teacher_dim,), "num_layers": student.num_layers}
        chosen = module.METHOD(module.Config(**config), **kwargs, generator=torch.Generator().manual_seed(1))
        vectors = np.random.default_rng(0).normal(size=(len(texts), teacher_dim)).astype(np.float32)
        data = TrainingData(
            student.tokenize(texts),
            (lambda rows: vectors[rows],),
            np.arange(len(texts)),
            np.zeros(len(texts), dtype=np.int64),
        )
        return Objective(student, chosen), data

    return build


def weights(objective) -> dict[str, torch.Tensor]:
    state = {f"student.{k}": v for k, v in objective.student.state_dict().items()}
    return state | {f"heads.{k}": v for k, v in objective.method.heads.state_dict().items()}


def same(a, b) -> bool:
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


SHORT = Settings(epochs=2, batch_size=8, lr=1e-3, min_lr=1e-4)
ASAM = Perturbation("asam", 0.5)


@pytest.mark.parametrize("around", [None, ASAM, Perturbation("sam", 0.05)])
def test_the_loss_falls(make, around):
    objective, data = make()
    rows = []
    settings = Settings(epochs=20, batch_size=8, lr=2e-3, min_lr=2e-4, perturbation=around)
    train(objective, data, settings, on_log=rows.append, log_every=1)
    tamd = [r["loss_tamd"] for r in rows]
    assert np.mean(tamd[-5:]) < 0.7 * np.mean(tamd[:5])
    assert rows[-1]["step"] == settings.epochs * settings.steps_per_epoch(40) == 100


@pytest.mark.parametrize("around", [None, ASAM])
def test_a_killed_run_resumes_to_the_same_bits(make, around, tmp_path):
    settings = Settings(epochs=2, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=around)
    straight, data = make()
    train(straight, data, settings)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == 8:
            raise Killed

    file = tmp_path / "last.safetensors"
    broken, data = make()
    with pytest.raises(Killed):
        train(broken, data, settings, checkpoint=file, checkpoint_every=3, log_every=1, on_log=kill)
    assert checkpoints.finished_steps(file) == 6
    resumed, data = make()
    result = train(resumed, data, settings, checkpoint=file, checkpoint_every=3)
    assert result.resumed_from == 6
    assert same(straight, resumed)


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(make, tmp_path):
    file = tmp_path / "last.safetensors"
    objective, data = make()
    train(objective, data, SHORT, checkpoint=file, checkpoint_every=4)
    objective, data = make()
    with pytest.raises(TalasError, match="other settings"):
        train(objective, data, Settings(epochs=2, batch_size=8, lr=2e-3, min_lr=1e-4), checkpoint=file)
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    objective, data = make()
    with pytest.raises(TalasError, match="damaged"):
        train(objective, data, SHORT, checkpoint=file)
    file.write_bytes(bytes(content[: len(content) // 2]))
    objective, data = make()
    with pytest.raises(TalasError, match="cannot be read"):
        train(objective, data, SHORT, checkpoint=file)


def test_seed_decides_everything(make):
    runs = []
    for seed in (1, 1, 2):
        objective, data = make()
        train(objective, data, Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, seed=seed, perturbation=ASAM))
        runs.append(objective)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_probes_measure_and_do_not_disturb(make):
    settings = Settings(epochs=2, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=ASAM)
    often, data = make()
    rows = []
    train(often, data, settings, probe_every=1, on_log=rows.append)
    seldom, data = make()
    train(seldom, data, settings, probe_every=1000)
    assert same(often, seldom)
    for row in rows:
        assert row["ascent_gain"] > 0
        assert -1 <= row["ascent_cosine"] <= 1
        assert row["predicted_gain"] == pytest.approx(ASAM.rho * row["scaled_norm"], rel=1e-5)
        assert row["relative"] > 0


def test_rho_zero_with_equal_masks_is_the_base_optimizer(make):
    plain, data = make()
    train(plain, data, Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4))
    control, data = make(dropout=None)
    rows = []
    settings = Settings(
        epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=Perturbation("asam", 0.0), same_dropout=True
    )
    train(control, data, settings, on_log=rows.append, probe_every=1)
    assert same(plain, control)
    assert all(r["ascent_gain"] == 0 and r["ascent_cosine"] == pytest.approx(1) for r in rows)


def test_heads_can_be_left_out_of_the_perturbation(make):
    norms = []
    for heads in (True, False):
        objective, data = make(head_init_std=1.0)
        rows = []
        settings = Settings(
            epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=Perturbation("sam", 0.5), perturb_heads=heads
        )
        train(objective, data, settings, on_log=rows.append)
        norms.append(rows[0]["scaled_norm"])
    assert norms[0] > norms[1] > 0


def reference_run(objective, data, settings, perturbation):
    """The released trainer's way, written plainly: padded, two passes a view, every vocabulary row in the optimizer."""
    student, method = objective.student, objective.method
    groups = objective.parameter_groups(settings.lr, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=False, foreach=False)
    peaks = [g["lr"] for g in groups]
    student.pooled = lambda ids, layout, *_: (
        tuple(pool(h, layout, student.pooling) for h in student.states_padded(ids, layout)[0]),
        {},
        {},
    )
    objective.one_pass = False
    student.train()
    total = settings.epochs * settings.steps_per_epoch(len(data))
    for step, _, rows in batch_rows(len(data), settings):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * settings.lr_factor(step, total)
        batch = data.batch(rows)
        objective(batch)[0].backward()
        if perturbation is not None:
            every = [p for p in [*student.parameters(), *method.heads.parameters()] if p.grad is not None]
            with torch.no_grad():
                norm = sum((p.abs() * p.grad).square().sum() for p in every).sqrt()
                steps = [perturbation.rho * p.square() * p.grad / norm for p in every]
                old = [p.clone() for p in every]
                for p, e in zip(every, steps, strict=True):
                    p.add_(e)
            optimizer.zero_grad()
            objective(batch)[0].backward()
            with torch.no_grad():
                for p, o in zip(every, old, strict=True):
                    p.copy_(o)
        optimizer.step()
        optimizer.zero_grad()


def gradient(objective, data, rows, *, plain):
    """The gradient of one batch by parameter; the plain way is padded, in two passes, over the whole vocabulary, in fp32."""
    student = objective.student
    student.train()
    objective.one_pass = not plain
    if plain:
        student.pooled = lambda ids, layout, *_: (
            tuple(pool(h, layout, student.pooling) for h in student.states_padded(ids, layout)[0]),
            {},
            {},
        )
    else:
        data, used = data.renumbered()
        student.compact_vocabulary(used, sparse_gradient=True)
    objective(data.batch(rows))[0].backward()
    found = {k: p.grad for k, p in [*student.parameters_by_name().items(), *objective.method.heads.named_parameters()]}
    if not plain:
        name = next(k for k in found if k.endswith("word_embeddings.weight"))
        whole = torch.zeros(len(student._full_table), student.dim)
        whole[used] = found[name].to_dense()
        found[name] = whole
    return found


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_gradients_equal_the_plain_reference(make, pooling, precision, tolerance):
    """Relative error of each parameter's gradient in fp32, of the whole gradient in bf16, dropout 0."""
    (fast, data), (slow, _) = make(dropout=0.0, pooling=pooling), make(dropout=0.0, pooling=pooling)
    fast.precision = precision
    rows = np.arange(16)
    ours, plain = gradient(fast, data, rows, plain=False), gradient(slow, data, rows, plain=True)
    assert ours.keys() == plain.keys()
    whole = torch.cat([g.flatten() for g in plain.values()]).norm()
    errors = {k: (ours[k] - g).norm() for k, g in plain.items()}
    assert torch.stack(list(errors.values())).norm() <= tolerance * whole
    if precision == "fp32":
        for name, error in errors.items():
            assert error <= tolerance * plain[name].norm() + 1e-7 * whole, name


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("around", [None, ASAM])
def test_twenty_steps_equal_the_plain_reference(make, around, pooling):
    """Packing, one forward for both views, the last block at the first token, the compact vocabulary with sparse gradients and
    the fused optimizer change no weight beyond rounding."""
    settings = Settings(epochs=4, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=around)
    fast, data = make(dropout=0.0, pooling=pooling)
    train(fast, data, settings)
    slow, data = make(dropout=0.0, pooling=pooling)
    start = {k: v.clone() for k, v in weights(slow).items()}
    reference_run(slow, data, settings, around)
    fast_w, slow_w = weights(fast), weights(slow)
    for name, value in slow_w.items():
        moved = (value - start[name]).norm()
        # a key bias shifts all scores of a query alike: its gradient is zero, and only rounding moves it, by some 1e-6
        assert (fast_w[name] - value).norm() <= 2e-3 * moved + 1e-5, name
        assert moved > 1e-3 or name.endswith("key.bias"), name


def test_the_order_of_the_data_is_the_same_for_all_and_complete():
    assert np.array_equal(epoch_order(50, 3, 1), epoch_order(50, 3, 1))
    assert not np.array_equal(epoch_order(50, 3, 1), epoch_order(50, 3, 2))
    rows = [r for _, epoch, r in batch_rows(10, Settings(epochs=2, batch_size=4)) if epoch == 1]
    assert [len(r) for r in rows] == [4, 4, 2]
    assert sorted(np.concatenate(rows)) == list(range(10))
    steps = [step for step, _, _ in batch_rows(10, Settings(epochs=2, batch_size=4), start=4)]
    assert steps == [4, 5]


def test_schedule():
    settings = Settings(epochs=1, lr=2e-5, min_lr=2e-6, warmup=0.06)
    factors = [settings.lr_factor(s, 100) for s in range(100)]
    assert factors[5] == 1
    assert factors[0] == pytest.approx(1 / 6)
    assert all(a >= b for a, b in pairwise(factors[5:]))
    assert settings.lr_factor(100, 100) == pytest.approx(0.1)
    assert Settings(warmup=0).lr_factor(0, 10) == 1


def test_divergence_names_terms_and_sentences(make):
    objective, data = make()
    with torch.no_grad():
        objective.method.heads[0].weight.fill_(float("nan"))
    with pytest.raises(TalasError, match=r"training diverged: loss nan \(.*tamd=nan.*corpus rows \[") as error:
        train(objective, data, SHORT)
    assert "Lower lr" in str(error.value)


@pytest.mark.parametrize("sentences", [1, 2, 9])
def test_small_and_odd_batches(make, sentences):
    objective, data = make()
    rows = np.arange(sentences)
    total, terms = objective(data.batch(rows))
    assert torch.isfinite(total)
    assert set(terms) == {"simcse", "tamd", "lasd"}


def test_simcse_trains_without_a_teacher(make):
    objective, data = make(method=simcse, mlp_head=True, mask_duplicates=True)
    data = TrainingData(data.tokens, (), data.text_ids, data.sources)
    rows = []
    train(objective, data, Settings(epochs=10, batch_size=8, lr=1e-3, min_lr=1e-4), on_log=rows.append, log_every=1)
    assert rows[-1]["loss_simcse"] < rows[0]["loss_simcse"]


def test_talas_switches(make):
    assert set(make(weight_simcse=0.0)[0].method.weights) == {"tamd", "lasd"}
    assert make(weight_simcse=0.0)[0].method.views == 1
    only = make(weight_tamd=0.0)[0].method
    assert len(list(only.heads.parameters())) == 0
    assert len(make(num_anchor_layers=1)[0].method.heads) == 1
    with pytest.raises(ValueError, match=r"num_anchor_layers=3.*2 blocks"):
        make(num_anchor_layers=3)
    with pytest.raises(ValueError, match=r"lasd_pairs=3.*2 adjacent pairs"):
        make(lasd_pairs=3)
    assert make(lasd_include_embedding=False)[0].method.first_relation == 1
    assert make(lasd_pairs=1)[0].method.first_relation == 1
    with pytest.raises(ValueError, match="all weights"):
        make(weight_simcse=0.0, weight_tamd=0.0, weight_lasd=0.0)


def test_one_pass_equals_two_without_dropout(make):
    objective, data = make(dropout=0.0)
    batch = data.batch(np.arange(8))
    together, _ = objective(batch)
    objective.one_pass = False
    apart, _ = objective(batch)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_embedding_output_of_cls_is_nearly_constant_under_dropout():
    """With CLS pooling layer 0 holds one vector for all; dropout p leaves an off-diagonal cosine near 1 - p."""
    generator = torch.Generator().manual_seed(0)
    from talas_lib.losses import mean_off_diagonal_cosine

    vector = torch.randn(384, generator=generator).expand(256, 384)
    keep = (torch.rand(256, 384, generator=generator) > 0.1) / 0.9
    assert mean_off_diagonal_cosine(vector * keep).item() == pytest.approx(0.9, abs=0.005)


# ---- cheaper ascent directions


APPROXIMATIONS = [
    Approximation(stride=2),
    Approximation(one_view=True),
    Approximation(stride=4, one_view=True, every=3),
]


@pytest.mark.parametrize("how", APPROXIMATIONS, ids=str)
def test_approximate_ascent_trains_and_resumes_to_the_same_bits(make, tmp_path, how):
    settings = Settings(epochs=2, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=ASAM, ascent=how)
    whole, data = make()
    rows = []
    train(whole, data, settings, on_log=rows.append, log_every=1)
    assert rows[-1]["eps_norm"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 6:
            raise Stop

    cut, data = make()
    with pytest.raises(Stop):
        train(cut, data, settings, checkpoint=tmp_path / "c", checkpoint_every=5, on_log=stop, log_every=1)
    again, data = make()
    result = train(again, data, settings, checkpoint=tmp_path / "c", checkpoint_every=5)
    assert result.resumed_from == 5
    expected, found = weights(whole), weights(again)
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_the_default_ascent_is_the_exact_one(make):
    """An approximation that saves nothing gives the weights of the exact optimizer, dropout off."""
    exact, data = make(dropout=0.0)
    train(exact, data, Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=ASAM))
    one_view, data = make(dropout=0.0)  # without dropout the second view is the first
    how = Approximation(one_view=True)
    train(one_view, data, Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=ASAM, ascent=how))
    expected, found = weights(exact), weights(one_view)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=2e-4)


def test_a_part_of_a_batch_is_the_batch_of_those_sentences(make):
    objective, data = make()
    batch = data.batch(np.arange(12))
    part = batch.every(3, offset=4)
    assert part.rows.tolist() == batch.rows[1::3].tolist()
    again = data.batch(part.rows.numpy())
    assert torch.equal(part.ids, again.ids)
    assert torch.equal(part.layout.lengths, again.layout.lengths)
    assert torch.equal(part.teacher, again.teacher)
    objective.student.eval()
    torch.testing.assert_close(objective(part)[0], objective(again)[0])


# ---- DISAM


def test_disam_needs_several_sources_to_differ_from_sam(make):
    """One source: the variance is 0 and DISAM is SAM to the bit; two sources: it is not."""
    found = {}
    for name, weight, sources in (("sam", 0.0, 1), ("one", 5.0, 1), ("two", 5.0, 2)):
        objective, data = make()
        data = replace(data, sources=np.arange(len(data)) % sources)
        how = Perturbation("sam", 0.5, variance_weight=weight)
        train(objective, data, Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=how))
        found[name] = weights(objective)
    assert all(torch.equal(found["sam"][k], found["one"][k]) for k in found["sam"])
    assert any(not torch.equal(found["sam"][k], found["two"][k]) for k in found["sam"])


def test_disam_refuses_a_method_without_a_loss_by_sentence(make):
    objective, data = make(method=simcse)
    settings = Settings(epochs=1, batch_size=8, perturbation=Perturbation("sam", 0.05, variance_weight=0.1))
    with pytest.raises(TalasError, match="DISAM compares"):
        train(objective, data, settings)
