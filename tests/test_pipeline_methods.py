"""From resolved parameters to a model that loads, for methods with several teachers, token caches, fits and output modules."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

from talas_lib import assess, caching, display, export, model_folders, params, records, runs, sources, stages
from talas_lib.errors import TalasError
from talas_lib.methods.base import Method, Preparation
from talas_lib.sharpness import stage

SMALL = {
    "student": "tiny",
    "corpus": "tiny",
    "max_sentences": 24,
    "epochs": 1,
    "batch_size": 8,
    "lr": 1e-3,
    "optimizer": "adamw",
    "device": "cpu",
}
PAIR = ["tiny-xlmr", "tiny"]
WIDE = {"method": "jasper_stella", "method_params": {"output": "fc1", "head_epochs": 0}, "teachers": PAIR}
SHARP = {"sharpness_batches": 1, "sharpness_batch_size": 8, "sharpness_max_iter": 4}
TEXTS = ["a boat on the river", "the old farmer"]


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    return tmp_path


def resolved(**values):
    one = {} if "teachers" in values else {"teacher": "tiny"}
    return params.resolve("03_train", SMALL | one | values)


def to_cache(p):
    """The parameters that notebook 02 is given for a run."""
    names = params.notebook_schema("02_cache_teacher").names
    return params.resolve("02_cache_teacher", {k: v for k, v in p.given_values().items() if k in names})


def check_finished(run, dim, output):
    """The record, the saved folder and the student read back agree."""
    record = run.read_record("train")
    assert (record["dim"], record["output"]) == (dim, output)
    assert record["loaded_cosine"] > 0.99999
    student, folder = stages.load_run_student(run), run.folder / "model"
    trust = model_folders.needs_talas(folder)
    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=trust)
    assert loaded.get_embedding_dimension() == student.output_dim == dim
    np.testing.assert_allclose(loaded.encode(TEXTS), student.encode(TEXTS), atol=1e-5)
    assert f"of {dim} numbers" in (folder / "README.md").read_text()
    return student


# ---- several teachers


def test_a_student_of_two_teachers(outputs):
    p = resolved(method="majority_vote", teachers=PAIR)
    run = stages.train_run(p)
    record = run.read_record("train")
    caches = [stages.cache_teacher(p, stages.load_corpus(p), spec) for spec in p.teacher_specs]
    assert record["teacher_dims"] == [cache.dim for cache in caches]
    assert record["cache_key"] == "+".join(cache.folder.name for cache in caches)
    assert {"loss_teacher_1", "loss_teacher_2"} <= run.read_metrics()[0].keys()
    check_finished(run, 32, "pooled")
    assert "from `tiny-xlmr+tiny`" in (run.folder / "model" / "README.md").read_text()
    assert list(runs.list_runs()["teacher"]) == ["tiny-xlmr+tiny"]
    sharp = stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))
    assert np.isfinite(sharp["lambda_max"])


def test_the_order_of_teachers_is_that_of_their_vectors(outputs):
    p = resolved(method="majority_vote", teachers=PAIR)
    corpus = stages.load_corpus(p)
    seen = []
    caches = stages.open_caches(p, corpus, progress=lambda done, total: seen.append(done / total))
    assert seen == [0.5, 1.0]
    for spec, cache in zip(p.teacher_specs, caches.vectors, strict=True):
        direct = sources.load_teacher(spec).encode(corpus.texts[:3])
        np.testing.assert_allclose(cache.vectors([0, 1, 2]), direct, atol=1e-5)
    data = stages.training_data(p, sources.load_student(p.student_spec), corpus, caches)
    batch = data.batch(np.array([2, 0]))
    for vectors, cache in zip(batch.teachers, caches.vectors, strict=True):
        np.testing.assert_array_equal(vectors.numpy(), cache.vectors(batch.rows.numpy()))


def test_a_method_without_teacher_opens_no_cache(outputs, monkeypatch):
    monkeypatch.setattr(sources, "load_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))
    run = stages.train_run(resolved(method="simcse"))
    record = run.read_record("train")
    assert (record["teacher_dims"], record["cache_key"]) == ([], None)
    assert "trained with talas from `tiny`" in (run.folder / "model" / "README.md").read_text()


# ---- token states


def test_training_without_the_token_cache_names_the_command_and_leaves_nothing(outputs, monkeypatch):
    p = resolved(method="cdm", method_params={"align": "pool"})
    corpus = stages.load_corpus(p)
    for what in ("load_teacher", "load_student"):
        monkeypatch.setattr(sources, what, lambda *_, what=what, **__: pytest.fail(f"{what} was called"))
    with pytest.raises(TalasError, match="reads token states of teacher tiny") as caught:
        stages.train_run(p)
    command = str(caught.value).splitlines()[-1]
    words = shlex.split(command)
    assert words[:3] == ["papermill", "notebooks/02_cache_teacher.ipynb", "outputs/nb/02_cache_teacher.ipynb"]
    assert {"-p teacher tiny", "-p method cdm", "-p max_sentences 24"} <= {
        " ".join(words[i : i + 3]) for i in range(3, len(words))
    }
    assert "'{method_params: {align: pool}}'" in command
    assert not list(outputs.glob("*--*"))
    assert caching.token_command(resolved(method="cdm", teachers=["tiny"])).count("teachers: [tiny]") == 1
    assert stages.open_tokens(resolved(), corpus) is None


@pytest.mark.parametrize("teacher", ["tiny-xlmr", "tiny-qwen3"])
def test_tokens_are_cached_once_and_trained_on_without_the_teacher(teacher, outputs, monkeypatch):
    p = resolved(method="cdm", teacher=teacher)
    cached = to_cache(p)
    corpus = stages.load_corpus(cached)
    estimate = stages.token_estimate(cached, corpus)
    vectors, tokens = stages.cache_teacher(cached, corpus), stages.cache_tokens(cached, corpus)
    on_disk = sum(file.stat().st_size for file in tokens.folder.glob("hidden*.npy"))
    assert estimate["signals"] == ["hidden-1"]
    assert on_disk <= estimate["bytes"] <= 1.2 * on_disk + 4096
    assert estimate["tokens"] == tokens.meta["tokens"]
    monkeypatch.setattr(sources, "load_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))
    run = stages.train_run(p)
    assert {"loss_token", "loss_sentence", "loss_simcse"} <= run.read_metrics()[0].keys()
    key = run.read_record("train")["cache_key"].split("+")
    assert key[:2] == [vectors.folder.name, tokens.folder.name]
    assert key[2].startswith("alignment-")
    check_finished(run, 32, "pooled")
    sharp = stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))
    assert np.isfinite(sharp["lambda_max"])


def test_a_batch_carries_tokens_special_marks_and_pairs(outputs):
    p = resolved(method="cdm", teacher="tiny-xlmr", method_params={"align": "pool"})
    corpus = stages.load_corpus(p)
    stages.cache_tokens(to_cache(p), corpus)
    student = sources.load_student(p.student_spec)
    data = stages.training_data(p, student, corpus, stages.open_caches(p, corpus))
    batch = data.batch(np.arange(5))
    assert batch.special.shape == batch.layout.valid.shape
    assert batch.special.sum() == 10  # [CLS] and [SEP]
    assert batch.tokens.states[-1].shape[:2] == batch.tokens.valid.shape
    sentence, own, theirs = batch.pairs.T
    assert set(sentence.tolist()) == set(range(5))
    assert bool(batch.layout.valid[sentence, own].all())
    assert bool(batch.tokens.valid[sentence, theirs].all())
    assert not bool(batch.special[sentence, own].any())
    plain = stages.training_data(resolved(), student, corpus, stages.open_caches(resolved(), corpus))
    batch = plain.batch(np.arange(5))
    assert batch.special is batch.tokens is batch.pairs is None


def test_records_tell_caches_apart():
    def name(**values):
        one = {} if "teachers" in values else {"teacher": "tiny"}
        return records.cache_file(params.resolve("02_cache_teacher", {"corpus": "tiny"} | one | values)).name

    plain = name()
    assert plain.startswith("cache-tiny-tiny-")
    assert name(method="rkd") == name(method="simcse") == plain  # the same content
    tokens = name(method="cdm")
    assert tokens.startswith("cache-tiny-tiny-tokens-")
    assert name(method="cdm", method_params={"weight_token": 0.0}) == plain
    assert len({plain, tokens, name(method="emo"), name(method="distill_moe")}) == 4
    two = [name(teachers=teachers) for teachers in (PAIR, PAIR[::-1])]
    assert two[0].startswith("cache-tiny-xlmr+tiny-tiny-")
    assert len({*two, plain}) == 3


# ---- fits before training


class Fitting(Method):
    """Keeps what it was shown before training, and trains on the first teacher's vectors."""

    def __init__(self, config, *, student_dim, teacher_dims, num_layers, generator):
        self.weights = {"one": 1.0}
        self.heads = nn.Linear(student_dim, teacher_dims[0])
        self.seen: list[Preparation] = []

    def prepare(self, preparation):
        self.seen.append(preparation)

    def terms(self, student, batch):
        return {"one": (self.heads(student.pooled) - batch.teacher).square().mean()}


def test_a_method_is_shown_caches_and_the_untrained_student(outputs):
    p = resolved()
    corpus, student = stages.load_corpus(p), sources.load_student(p.student_spec)
    caches = stages.open_caches(p, corpus)
    method = Fitting(None, student_dim=32, teacher_dims=caches.dims, num_layers=3, generator=None)
    stages.prepare(p, method, student.train(), corpus, caches)
    (seen,) = method.seen
    assert seen.sentences == len(corpus)
    rows = np.array([5, 0, 5])
    np.testing.assert_array_equal(seen.teachers[0](rows), caches.vectors[0].vectors(rows))
    own = seen.student(rows)
    assert own.shape == (3, student.dim)
    np.testing.assert_array_equal(own[0], own[2])  # evaluation mode: no dropout
    fresh = sources.load_student(p.student_spec)
    np.testing.assert_allclose(own, fresh.encode([corpus.texts[i] for i in rows]), atol=1e-6)
    assert student.training  # as it was


@pytest.mark.parametrize("method", ["pca_target", "procrustes_target"])
def test_what_was_fitted_is_saved_with_the_heads_and_read_back(method, outputs):
    p = resolved(method=method, teacher="tiny-xlmr")
    run = stages.train_run(p)
    check_finished(run, 32, "pooled")
    corpus, student = stages.load_corpus(p), sources.load_student(p.student_spec)
    caches = stages.open_caches(p, corpus)
    fresh = stages.build_method(p, student=student, teacher_dims=caches.dims)
    unfitted = {name: value.clone() for name, value in fresh.heads.state_dict().items()}
    stages.prepare(p, fresh, student, corpus, caches)
    saved = load_file(run.folder / "model" / export.HEADS_FILE)
    for name, value in fresh.heads.state_dict().items():
        torch.testing.assert_close(saved[name], value)
    assert any(not torch.equal(saved[name], value) for name, value in unfitted.items())
    sharp = stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))
    losses = [sharp["untrained"]["loss"], sharp["loss"]]
    assert np.isfinite(losses).all()  # a matrix that was not read back would still be NaN
    if (
        method == "pca_target"
    ):  # rotated onto a tiny student, whose vectors are nearly parallel, a target is near from the start
        assert losses[0] > losses[1]


def test_epochs_of_every_stage_count_in_the_progress(outputs):
    seen = []
    p = resolved(method="jasper_stella", method_params={"head_epochs": 2})
    run = stages.train_run(p, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)  # three batches in each of 2 + 1 epochs
    assert run.read_record("train")["steps"] == 9


# ---- what stays behind the pooling


def test_a_linear_layer_stays_in_the_student(outputs):
    run = stages.train_run(resolved(method="leaf", teacher="tiny"))
    student = check_finished(run, 32, "projected")
    assert student.projection is not None
    folder = run.folder / "model"
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Dense"]
    assert not model_folders.needs_talas(folder)
    assert "module" in (folder / "README.md").read_text()
    again = export.save_student(student, outputs / "exported")
    assert export.check_loads(student, again, TEXTS) > 0.99999
    scores = assess.evaluate_run(run, params.load_tasks("tiny"))
    assert np.isfinite(scores["avg"])
    sharp = stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))
    assert sharp["parameters"] < sum(parameter.numel() for parameter in student.parameters())


def test_a_projected_student_can_teach(outputs):
    """What its folder puts behind the pooling is part of its vectors, and of what its cache and its run are named by."""
    first = stages.train_run(resolved(**WIDE))
    folder = first.folder / "model"
    check_finished(first, 64, "projected")
    p = resolved(teacher=str(folder))
    cache = stages.cache_teacher(p, stages.load_corpus(p))
    assert cache.dim == 64
    ours = stages.load_run_student(first).encode(stages.load_corpus(p).texts[:2], normalize=True)
    np.testing.assert_allclose(cache.vectors([0, 1]), ours, atol=1e-5)
    assert "output" in sources.teacher_identity(p.teacher_spec)
    assert "output" not in sources.teacher_identity(resolved().teacher_spec)
    before = p.run_id
    weights = next(folder.glob("*_Dense/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x3f")
    assert resolved(teacher=str(folder)).run_id != before


def test_token_states_and_projected_vectors_do_not_mix(outputs):
    first = stages.train_run(resolved(**WIDE))
    p = resolved(method="cdm", teacher=str(first.folder / "model"))
    stages.cache_tokens(to_cache(p), stages.load_corpus(p))
    with pytest.raises(TalasError, match=r"token states, .* 32 wide but sentence vectors 64 wide"):
        stages.train_run(p)


def test_a_mixture_of_experts_stays_in_the_student(outputs, monkeypatch):
    p = resolved(method="distill_moe", method_params={"token_weight": 0.0, "hidden": 16})
    run = stages.train_run(p)
    student = check_finished(run, 32, "projected")
    folder = run.folder / "model"
    assert model_folders.needs_talas(folder)
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    assert "trust_remote_code=True" in display.snippet(str(folder))
    assert export.check_loads(student, export.save_student(student, outputs / "exported"), TEXTS) > 0.99999
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    pooled = stages.train_run(resolved(method="distill_moe", method_params={"token_weight": 0.0, "output": "cls"}))
    check_finished(pooled, 32, "pooled")


def test_an_output_without_a_form_in_a_folder_is_refused(outputs):
    student = sources.load_student(resolved().student_spec)
    student.projection = nn.Sequential(nn.Linear(32, 8), nn.GELU())
    with pytest.raises(TalasError, match=r"a Sequential behind the pooling .* Accepted: nn.Linear"):
        export.save_student(student, outputs / "exported")
    assert not (outputs / "exported").exists()


class Wrapped(nn.Module):
    """Has its layer in the attribute `linear`."""

    def __init__(self, bias):
        super().__init__()
        self.linear = nn.Linear(32, 12, bias=bias)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_module_with_a_linear_attribute_counts_as_that_layer(bias, outputs):
    student = sources.load_student(resolved().student_spec)
    student.projection = Wrapped(bias)
    folder = export.save_student(student, outputs / "exported")
    assert export.check_loads(student, folder, TEXTS) > 0.99999
    assert (outputs / "exported" / "2_Dense" / "model.safetensors").is_file()


def test_a_folder_that_gives_other_vectors_is_found(outputs):
    student = sources.load_student(resolved().student_spec)
    student.projection = nn.Linear(32, 12)
    folder = export.save_student(student, outputs / "exported")
    student.projection.weight.data *= 1.01
    student.projection.bias.data *= 1.01
    with pytest.raises(TalasError, match="lengths differ by up to 9"):
        export.check_loads(student, folder, TEXTS)
    student.projection = None
    with pytest.raises(TalasError, match="vectors of 12 numbers when loaded, not 32"):
        export.check_loads(student, folder, TEXTS)


# ---- sources


def test_disam_needs_several_sources(outputs, tmp_path, monkeypatch):
    for what in ("load_teacher", "load_student"):
        monkeypatch.setattr(sources, what, lambda *_, what=what, **__: pytest.fail(f"{what} was called"))
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(f"sentence number {i} of a file" for i in range(20)))
    with pytest.raises(TalasError) as caught:
        stages.train_run(resolved(corpus=str(file), optimizer="disam"))
    for fragment in ("optimizer disam", "at least 2 sources", "corpus mine has 1", "mini, ", "column `source`"):
        assert fragment in str(caught.value)
    assert stages.load_corpus(resolved(corpus=str(file), optimizer="asam")).sources
    monkeypatch.undo()
    monkeypatch.setenv("TALAS_OUTPUTS", str(outputs))
    assert stages.train_run(resolved(optimizer="disam")).status == "finished"
