"""Model folders as ONNX: every pooling and architecture gives the folder's vectors in ONNX Runtime, whatever the batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from talas_lib import export
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.release import onnx_files

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = [
    "a boat",
    "the old farmer walked to the market and came back in the evening",
    "rain",
    "two dogs sleep in the sun",
]


def saved(tiny_encoder_folder, folder, arch="bert", pooling="mean", projection=None):
    encoder = Encoder.load(tiny_encoder_folder(arch), pooling=pooling, max_length=32)
    if projection is not None:
        encoder.projection = projection(encoder.dim)
    export.save_student(encoder, folder)
    return encoder


@pytest.fixture(scope="module")
def mean(tiny_encoder_folder, tmp_path_factory):
    """(encoder, folder with both graphs) of a BERT with mean pooling."""
    folder = tmp_path_factory.mktemp("onnx") / "model"
    encoder = saved(tiny_encoder_folder, folder)
    onnx_files.quantize(onnx_files.export_onnx(folder))
    return encoder, folder


def test_the_graph_gives_the_encoders_vectors(mean):
    encoder, folder = mean
    vectors = onnx_files.OnnxEncoder(folder).encode(TEXTS)
    assert vectors == pytest.approx(encoder.encode(TEXTS, normalize=False), abs=1e-5)


def test_vectors_do_not_depend_on_the_batch_or_the_order(mean, tiny_texts):
    _, folder = mean
    runner = onnx_files.OnnxEncoder(folder, threads=1)
    together = runner.encode(tiny_texts[:40], batch_size=16)
    alone = np.concatenate([runner.encode([text]) for text in tiny_texts[:40]])
    assert together == pytest.approx(alone, abs=1e-5)
    assert runner.encode(tiny_texts[39::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_a_long_text_is_cut_where_the_folder_says(mean):
    encoder, folder = mean
    long = " ".join(["the farmer"] * 60)
    assert onnx_files.OnnxEncoder(folder).encode([long]) == pytest.approx(
        encoder.encode([long], normalize=False), abs=1e-5
    )
    shorter = onnx_files.OnnxEncoder(folder, max_length=8).encode([long])
    assert np.abs(shorter - encoder.encode([long], normalize=False)).max() > 1e-3


def test_the_inputs_and_outputs_have_names_and_free_sizes(mean):
    session = onnx_files.OnnxEncoder(mean[1]).session
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    for entry in session.get_inputs():
        assert all(isinstance(size, str) for size in entry.shape)
    ids = np.ones((3, 5), dtype=np.int64)
    states, vectors = session.run(None, {"input_ids": ids, "attention_mask": ids})
    assert states.shape == (3, 5, vectors.shape[1])
    assert states.mean(1) == pytest.approx(vectors, abs=1e-5)


def test_eight_bits_are_smaller_and_near(mean, tiny_texts):
    encoder, folder = mean
    whole, small = (folder / "onnx" / name for name in (onnx_files.MODEL, onnx_files.INT8))
    assert small.stat().st_size < 0.65 * whole.stat().st_size  # of so small a model the graph itself is a good part
    reference = encoder.encode(tiny_texts[:60], normalize=False)
    found = onnx_files.parity(reference, onnx_files.OnnxEncoder(folder, onnx_files.INT8).encode(tiny_texts[:60]))
    assert 0.97 < found["smallest_cosine"] <= found["cosine"] < 1
    assert found["pair_spearman"] > 90


def test_nothing_is_left_beside_the_graphs(mean):
    assert sorted(file.name for file in (mean[1] / "onnx").iterdir()) == sorted([onnx_files.MODEL, onnx_files.INT8])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "pooling"),
    [("bert", "cls"), ("bert", "last"), ("xlm-r", "mean"), ("mpnet", "mean"), ("mpnet", "cls"), ("qwen3", "last")],
)
def test_other_models_and_poolings(arch, pooling, tiny_encoder_folder, tmp_path):
    encoder = saved(tiny_encoder_folder, tmp_path / "model", arch, pooling)
    onnx_files.export_onnx(tmp_path / "model")
    vectors = onnx_files.OnnxEncoder(tmp_path / "model").encode(TEXTS)
    assert vectors == pytest.approx(encoder.encode(TEXTS, normalize=False), abs=1e-4)


@pytest.mark.slow
def test_what_follows_the_pooling_is_in_the_graph(tiny_encoder_folder, tmp_path):
    from talas_lib.experts import MixtureOfExperts

    torch.manual_seed(0)
    for name, module in {
        "linear": lambda dim: torch.nn.Linear(dim, 7),
        "mixture": lambda dim: MixtureOfExperts(dim, hidden=5, experts=3, dropout=0.1).eval(),
    }.items():
        encoder = saved(tiny_encoder_folder, tmp_path / name, projection=module)
        onnx_files.export_onnx(tmp_path / name)
        vectors = onnx_files.OnnxEncoder(tmp_path / name).encode(TEXTS)
        assert vectors.shape == (len(TEXTS), encoder.output_dim)
        assert vectors == pytest.approx(encoder.encode(TEXTS, normalize=False), abs=1e-5)


def test_a_failed_export_leaves_no_file(mean, tmp_path, monkeypatch):
    _, folder = mean
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no")))
    (tmp_path / "model").symlink_to(folder)
    before = (folder / "onnx" / onnx_files.MODEL).read_bytes()
    with pytest.raises(RuntimeError, match="no"):
        onnx_files.export_onnx(folder)
    assert (folder / "onnx" / onnx_files.MODEL).read_bytes() == before
    assert len(list((folder / "onnx").iterdir())) == 2


def test_what_is_missing_is_named(mean, tmp_path, monkeypatch):
    with pytest.raises(TalasError, match=r"has no onnx/model.onnx; notebooks/09_export"):
        onnx_files.OnnxEncoder(tmp_path)
    monkeypatch.setattr(onnx_files, "_PACKAGES", ("onnx", "a_package_that_is_not_there"))
    with pytest.raises(TalasError, match=r"ONNX needs a_package_that_is_not_there"):
        onnx_files.export_onnx(mean[1])


def test_a_static_encoder_and_a_folder_that_does_not_pool_are_refused(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.StaticEmbedding", "path": "0_StaticEmbedding"}]))
    with pytest.raises(TalasError, match=r"a static encoder.*no transformer"):
        onnx_files.export_onnx(tmp_path)
    with pytest.raises(TalasError, match="does not say how it pools"):
        onnx_files.sentence_graph(tmp_path / "plain")


# ---- the parts


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_of_a_padded_batch_by_hand(pooling):
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = {"cls": [[0, 1], [6, 7]], "mean": [[1, 2], [8, 9]], "last": [[2, 3], [10, 11]]}[pooling]
    assert onnx_files.pool_padded(states, mask, pooling).tolist() == expected


def test_parity_by_hand():
    reference = np.eye(3, dtype=np.float32)
    turned = np.array([[0, 1, 0], [0, 2, 0], [0, 0, 1]], dtype=np.float32)
    found = onnx_files.parity(reference, turned)
    assert found["smallest_cosine"] == pytest.approx(0)
    assert found["cosine"] == pytest.approx(2 / 3)
    assert found["length_difference"] == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot be compared"):
        onnx_files.parity(reference, turned[:, :2])


def test_speeds_call_everything_in_turn():
    called = []
    encoders = {
        name: lambda texts, name=name: called.append((name, len(texts))) or np.zeros((len(texts), 2)) for name in "ab"
    }
    found = onnx_files.speeds(encoders, ["x"] * 3, rounds=2)
    assert found.keys() == {"a", "b"}
    assert all(row.keys() == {"ms_one", "ms_many"} and min(row.values()) >= 0 for row in found.values())
    one_round = [("a", 1)] * 3 + [("a", 3)] + [("b", 1)] * 3 + [("b", 3)]
    assert called == one_round * 3  # one to warm up
