"""The static encoder: its table by hand, its folder in sentence-transformers, and texts it knows nothing of."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from talas_lib import assess, compare, export, params, sources, stages, tiny
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.methods import static
from talas_lib.sharpness import stage
from talas_lib.static_encoder import StaticEncoder, plain_tokenizer, tokenize

WORDS = ["[PAD]", "[UNK]", "[unused0]", "a", "b", "c", "##c"]
CORPUS = ["a a a b", "a b cc", "x"]  # a 4 times, b 2, c and ##c once, [UNK] once: 9 tokens


def word_pieces(words=WORDS):
    """A tokenizer of seven entries."""
    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")


# texts of the vocabulary in three dimensions; the variance lies along the first two
TEACHER = {"a": [5.0, 0.0, 1.0], "b": [-5.0, 0.0, 1.0], "c": [0.0, 3.0, 1.0]}


def embed(texts):
    return np.array([TEACHER[text] for text in texts], dtype=np.float32)


def build(tokenizer=None, corpus=CORPUS, teacher=embed, **config):
    """The student of a vocabulary, a corpus and a teacher, `texts -> vectors`."""
    tokenizer = tokenizer or word_pieces()
    method = static.METHOD(static.Config(**config))
    return method.build_student(tokenizer, corpus, teacher(method.vocabulary(tokenizer)))


def test_table_by_hand():
    """Four entries stand for text; their mean is (0, 1.5, 1), so the centred points are (±5, -1.5) and twice (0, 1.5)."""
    table = build(dim=2, sif=0.1).table.numpy()
    points = {3: (5, -1.5), 4: (-5, -1.5), 5: (0, 1.5), 6: (0, 1.5)}
    shares = {3: 4 / 9, 4: 2 / 9, 5: 1 / 9, 6: 1 / 9}
    expected = {i: np.array(points[i]) * 0.1 / (0.1 + shares[i]) for i in points}
    signs = np.sign([table[3, 0], table[5, 1]])  # a principal direction has no sign of its own
    for i, row in expected.items():
        np.testing.assert_allclose(table[i], signs * row, atol=1e-6)
    average = sum(shares[i] * expected[i] for i in points) / (8 / 9)
    for i in (0, 1, 2):  # padding, unknown word, unused entry
        np.testing.assert_allclose(table[i], signs * average, atol=1e-6)
    assert table.shape == (7, 2)


def test_zipf_needs_no_corpus():
    table = build(corpus=[], dim=2, sif=0.1, probabilities="zipf").table
    zipf = 1 / np.array([2, 3, 4, 5])
    weights = 0.1 / (0.1 + zipf / zipf.sum())
    np.testing.assert_allclose(table[3:].norm(dim=1), np.hypot([5, 5, 0, 0], 1.5) * weights, rtol=1e-6)


def test_a_corpus_without_any_known_word_still_gives_a_table():
    table = build(corpus=["x y"], dim=2).table.numpy()
    np.testing.assert_allclose(table[1], table[3:].mean(0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(table[3:], axis=1), np.hypot([5, 5, 0, 0], 1.5), rtol=1e-6)


@pytest.mark.parametrize(("asked", "width"), [(1, 1), (2, 2), (256, 3)])
def test_width_is_at_most_the_teachers(asked, width):
    assert build(dim=asked).dim == width


def test_entries_that_stand_for_text():
    assert static.entries(word_pieces()) == {3: "a", 4: "b", 5: "c", 6: "c"}
    assert static.entries(word_pieces(["[PAD]", "[UNK]", "##", "###", "#", "a"])) == {2: "##", 3: "#", 4: "#", 5: "a"}
    unused = ["[unused1]", "<unused2>", "<extra_id_3>", "<|reserved_special_token_4|>", "unused5", "[unused]"]
    assert list(static.entries(word_pieces(["[UNK]", "[PAD]", *unused])).values()) == ["unused5"]


@pytest.mark.parametrize("arch", ["bert", "mpnet", "xlm-r", "qwen3"])
def test_entries_of_every_kind_of_tokenizer(arch, tiny_encoder_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder_folder(arch))
    texts = static.entries(tokenizer)
    assert list(texts) == sorted(texts)
    assert not set(texts) & set(tokenizer.all_special_ids)
    assert not [t for t in texts.values() if not t.strip() or "\ufffd" in t or t.startswith(("##", "▁", "Ġ"))]
    assert {"the", "a"} <= set(texts.values())
    if arch == "qwen3":  # bytes above 127 are no characters by themselves
        assert len(tokenizer) - len(texts) >= 128


def test_a_vocabulary_without_text_is_refused():
    with pytest.raises(TalasError, match="1 entries that stand for text; static needs two"):
        build(word_pieces(["[PAD]", "[UNK]", "a"]))
    with pytest.raises(TalasError, match="does not tell the vocabulary's entries apart"):
        build(teacher=lambda texts: np.ones((len(texts), 3), np.float32))


@pytest.fixture(scope="module")
def made(tiny_encoder_folder, tiny_texts):
    """A static student of the tiny BERT's vocabulary under the tiny MPNet as teacher."""
    teacher = Encoder.load(tiny_encoder_folder("mpnet"), pooling=tiny.POOLING["mpnet"], normalize=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder_folder("bert"))
    return build(tokenizer, tiny_texts, teacher.encode, dim=16), tokenizer, teacher


def test_table_against_a_second_computation(made, tiny_texts):
    """numpy alone: teacher vectors, centred, singular vectors, weights from a counter."""
    student, tokenizer, teacher = made
    texts = static.entries(tokenizer)
    vectors = teacher.encode(list(texts.values())).astype(np.float64)
    centred = vectors - vectors.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:16]
    counts = Counter(i for text in tiny_texts for i in tokenizer(text, add_special_tokens=False)["input_ids"])
    share = np.array([counts[i] for i in texts]) / sum(counts.values())
    expected = centred @ directions.T * (1e-4 / (1e-4 + share))[:, None]
    found = student.table.numpy()[list(texts)]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_vectors_are_means_of_rows(made, tiny_texts):
    student, tokenizer, _ = made
    texts = [*tiny_texts[:20], tiny_texts[3], " ".join(tiny_texts)]  # the last is far longer than any model's limit
    found = student.encode(texts, tokens_per_batch=50)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
        np.testing.assert_allclose(vector, student.table.numpy()[ids].mean(0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(student.encode(texts, normalize=True), axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(student.encode(texts[:4], precision="bf16", pooling="mean"), found[:4])
    seen = []
    student.encode(texts, progress=lambda *both: seen.append(both))
    assert seen[-1] == (21, 21)
    assert student.encode([]).shape == (0, 16)


def test_what_evaluation_and_export_ask_of_an_encoder(made):
    student = made[0]
    assert (student.dim, student.output_dim, student.pooling, student.projection) == (16, 16, "mean", None)
    assert student.to("cpu") is student
    assert student.device == torch.device("cpu")
    assert not any(p.requires_grad for p in student.parameters())
    with pytest.raises(TalasError, match=r"pooling 'cls'.*only mean"):
        student.encode(["a"], pooling="cls")


@pytest.mark.parametrize("arch", ["bert", "xlm-r", "qwen3"])
def test_saved_folder_in_sentence_transformers(arch, tiny_encoder_folder, tiny_texts, tmp_path):
    from sentence_transformers import SentenceTransformer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder_folder(arch))
    tokenizer(
        tiny_texts[:3], truncation=True, max_length=8, padding=True
    )  # leaves its settings behind in the tokenizer
    vectors = np.random.default_rng(0).normal(size=(len(tokenizer), 24)).astype(np.float32)
    student = build(tokenizer, tiny_texts, lambda texts: vectors[: len(texts)], dim=16)
    student.save(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    texts = [*tiny_texts[:9], " ".join(tiny_texts[:50]), "snow ☃ 日本 qqq", "!?"]
    np.testing.assert_allclose(theirs.encode(texts, show_progress_bar=False), student.encode(texts), atol=1e-6)
    again = StaticEncoder.load(tmp_path / "model")
    assert torch.equal(again.table, student.table)
    np.testing.assert_array_equal(again.encode(texts), student.encode(texts))
    assert not list((tmp_path / "model").rglob("*.bin"))


def test_a_folder_of_another_kind_is_refused(tmp_path, tiny_encoder_folder):
    with pytest.raises(TalasError, match="holds no static encoder"):
        StaticEncoder.load(tiny_encoder_folder("bert"))
    with pytest.raises(TalasError, match="holds no static encoder"):
        StaticEncoder.load(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": "x.StaticEmbedding"}] * 2))
    with pytest.raises(TalasError, match="holds no static encoder"):
        StaticEncoder.load(tmp_path)


def test_unknown_words_and_texts_without_tokens():
    student = build(dim=2)
    table = student.table.numpy()
    unknown, empty, blank, mixed = student.encode(["x y x", "", " \t ", "a x"])
    np.testing.assert_allclose(unknown, table[1], atol=1e-7)
    np.testing.assert_allclose(mixed, (table[3] + table[1]) / 2, atol=1e-7)
    np.testing.assert_allclose(empty, table.mean(0), atol=1e-7)
    np.testing.assert_array_equal(blank, empty)
    assert all(np.abs(v).max() > 0 for v in (unknown, empty))
    tokens = student.tokenize(["", "a x", ""])
    assert tokens.lengths.tolist() == [0, 2, 0]
    assert len(student.tokenize([])) == 0


def test_a_table_too_small_for_its_tokenizer_and_a_slow_tokenizer_are_refused():
    with pytest.raises(ValueError, match="the tokenizer has id 6, and the table only 6 rows"):
        StaticEncoder(torch.zeros(6, 2), word_pieces())
    with pytest.raises(TalasError, match="has no fast tokenizer"):
        plain_tokenizer(object())


def test_the_original_tokenizer_is_left_alone():
    tokenizer = word_pieces()
    tokenizer(["a b c"], truncation=True, max_length=2)
    assert tokenize(plain_tokenizer(tokenizer), ["a b c"]).lengths.tolist() == [3]
    assert len(tokenizer(["a b c"], truncation=True, max_length=2)["input_ids"][0]) == 2


# ---- as a run

SMALL = {
    "teacher": "tiny",
    "student": "tiny",
    "corpus": "tiny",
    "tasks": "tiny",
    "max_sentences": 48,
    "device": "cpu",
    "method": "static",
}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    return tmp_path


def resolved(**values):
    return params.resolve("03_train", SMALL | {"method_params": {"dim": 16}} | values)


def test_a_run_is_built_evaluated_and_loaded_again(outputs, monkeypatch):
    run = stages.train_run(resolved())
    record = run.read_record("train")
    assert (record["steps"], record["output"], record["pooling"], record["dim"]) == (0, "static", "mean", 16)
    assert record["loaded_cosine"] > 0.99999
    assert [row["step"] for row in run.read_metrics()] == [0]
    assert not list(run.folder.glob("checkpoints/*"))

    scores = assess.evaluate_run(run, params.load_tasks("tiny"))
    assert all(np.isfinite(row["score"]) for row in scores["tasks"].values())
    card = (run.folder / "model" / "README.md").read_text()
    assert "of 16 numbers is the mean of the sentence's token vectors" in card
    assert "static, on the corpus tiny" in card

    student = stages.load_run_student(run)
    assert isinstance(student, StaticEncoder)
    assert (
        export.check_loads(student, export.save_student(student, outputs / "again"), ["a boat", "an old farmer"])
        > 0.9999
    )
    monkeypatch.setattr(sources, "load_tokenizer", lambda *_, **__: pytest.fail("a finished run was built again"))
    assert stages.train_run(resolved()).id == run.id


def test_the_teacher_is_loaded_only_when_its_vocabulary_is_not_cached(outputs, monkeypatch):
    first = stages.train_run(resolved())
    monkeypatch.setattr(sources, "load_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))
    other = stages.train_run(resolved(method_params={"dim": 8}))
    assert other.read_record("train")["cache_key"] == first.read_record("train")["cache_key"]
    assert stages.load_run_student(other).dim == 8


def test_sharpness_of_what_has_no_loss_is_refused(outputs):
    run = stages.train_run(resolved())
    with pytest.raises(TalasError, match="has no loss and so no Hessian: method static"):
        stage.sharpness_run(run, params.resolve("05_sharpness", {"run": run.id}))
    assert run.read_record("sharpness") is None


def test_side_by_side_with_a_trained_student(outputs):
    grid = SMALL | {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "grid": {"method": ["static", "leaf"]}}
    sharp = {"sharpness_batches": 1, "sharpness_batch_size": 8, "sharpness_max_iter": 6}
    for cell in params.expand_grid(grid):
        run = stages.train_run(params.resolve("03_train", cell))
        assess.evaluate_run(run, params.load_tasks("tiny"))
        if cell["method"] == "leaf":
            stage.sharpness_run(run, params.resolve("05_sharpness", sharp | {"run": run.id}))
    c = compare.collect(params.resolve("06_compare", grid | {"report": "both"}))
    assert {"static + adamw", "leaf + adamw"} <= set(compare.scores_table(c).index)
    assert set(compare.sharpness_table(c)["model"]) == {"untrained student", "leaf + adamw"}
    folder = compare.write_report(c, name="both")
    result = json.loads((folder / "summary.json").read_text())
    assert [run["lambda_max"] is None for run in result["runs"]] == [True, False]
    assert "largest Hessian eigenvalues are" in result["verdict"]
    assert sorted(f.name for f in folder.glob("*.png")) == ["eigenvalues.png", "scores.png", "training.png"]


def test_alone_it_has_no_eigenvalues_to_draw(outputs):
    run = stages.train_run(resolved())
    assess.evaluate_run(run, params.load_tasks("tiny"))
    c = compare.Comparison((run,), (run.params,))
    table = compare.sharpness_table(c)
    assert len(table) == 0
    assert {"model", "quantity", "estimator", "value", "residual", "iterations", "converged"} <= set(table)
    compare.write_report(c, name="alone")
