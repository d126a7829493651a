"""Encoders of every architecture: packed equals padded equals one by one, pooling takes the right token, layers are cut."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from talas_lib import tiny, tokenization
from talas_lib.blocks import keep_layers
from talas_lib.encoders import Encoder, batches_by_length
from talas_lib.errors import TalasError
from talas_lib.model_folders import folder_fingerprint, pooling_of_folder, transformer_folder
from talas_lib.packed import Layout, TokenSequences
from talas_lib.pooling import pool

ARCHS = list(tiny.POOLING)


def load(folder, arch, **options):
    attention = "bidirectional" if arch.endswith("bidirectional") else "native"
    return Encoder.load(folder, **({"pooling": tiny.POOLING[arch], "attention": attention} | options))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("arch", ARCHS)
def test_batched_equals_one_by_one(arch, side, tiny_encoder_folder, tiny_texts):
    if side == "left" and arch in ("bert", "xlm-r"):
        pytest.skip("absolute positions: these models are padded on the right, and here not at all")
    encoder = load(tiny_encoder_folder(arch), arch, padding_side=side)
    texts = [tiny_texts[0], "a", " ".join(tiny_texts[1:4])]
    together = encoder.encode(texts)
    alone = np.stack([encoder.encode([t])[0] for t in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-2


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("arch", ["bert", "xlm-r", "qwen3", "qwen3-bidirectional"])
def test_packed_equals_padded(arch, side, tiny_encoder_folder, tiny_texts):
    if side == "left" and arch in ("bert", "xlm-r"):
        pytest.skip("absolute positions")
    encoder = load(tiny_encoder_folder(arch), arch, padding_side=side).eval()
    assert encoder.packed
    ids, lengths = encoder.tokenize([*tiny_texts[:6], "a b"]).take(np.arange(7))
    layout = Layout.of(lengths)
    with torch.no_grad():
        packed, padded = encoder(ids, layout), encoder.states_padded(ids, layout)[0]
    assert len(packed) == encoder.num_layers + 1
    for a, b in zip(packed, padded, strict=True):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)


def test_gradients_of_packed_and_padded_agree(tiny_encoder_folder, tiny_texts):
    encoder = load(tiny_encoder_folder("bert"), "bert").eval()
    ids, lengths = encoder.tokenize(tiny_texts[:5]).take(np.arange(5))
    layout = Layout.of(lengths)
    grads = []
    for run in (encoder, lambda ids, layout: encoder.states_padded(ids, layout)[0]):
        vectors = pool(run(ids, layout)[-1], layout, "mean")
        grads.append(torch.autograd.grad(vectors.square().sum(), [p for p in encoder.parameters() if p.requires_grad]))
    for a, b in zip(*grads, strict=True):
        # the padded table also has a row for [PAD], whose gradient is zero
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_causal_and_bidirectional_decoders_differ(tiny_encoder_folder, tiny_texts):
    folder = tiny_encoder_folder("qwen3")
    causal = Encoder.load(folder, pooling="mean").encode(tiny_texts[:2])
    both = Encoder.load(folder, pooling="mean", attention="bidirectional").encode(tiny_texts[:2])
    assert np.abs(causal - both).max() > 1e-3


def test_a_causal_first_token_sees_only_itself(tiny_encoder_folder, tiny_texts):
    encoder = load(tiny_encoder_folder("qwen3"), "qwen3").eval()
    a, b = encoder.tokenize(["the river is old", "the house is new and warm"]).take([0, 1])
    with torch.no_grad():
        states = encoder(a, Layout.of(b))[-1]
    first = Layout.of(b).starts
    torch.testing.assert_close(states[first[0]], states[first[1]])


@pytest.mark.parametrize("appended", [True, False])
def test_last_pooling_takes_the_end_of_text_token(tiny_encoder_folder, tiny_texts, appended):
    encoder = load(tiny_encoder_folder("qwen3"), "qwen3", max_length=8)
    if not appended:  # an older tokenizer file without the post-processor that appends it
        from tokenizers.processors import TemplateProcessing

        encoder.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    end = encoder.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokens = encoder.tokenize(["old river", " ".join(tiny_texts[:5])])
    ids, lengths = tokens.take([0, 1])
    layout = Layout.of(lengths)
    assert ids[layout.starts + layout.lengths - 1].tolist() == [end, end]
    assert lengths.max() <= 8
    states = torch.arange(len(ids), dtype=torch.float32)[:, None]
    assert pool(states, layout, "last").flatten().tolist() == (layout.starts + layout.lengths - 1).tolist()


def test_pooling_by_hand():
    tokens = torch.tensor([[1.0], [3.0], [10.0], [20.0], [60.0]])
    layout = Layout.of(torch.tensor([2, 3]))
    assert pool(tokens, layout, "cls").flatten().tolist() == [1, 10]
    assert pool(tokens, layout, "last").flatten().tolist() == [3, 60]
    assert pool(tokens, layout, "mean").flatten().tolist() == [2, 30]
    with pytest.raises(ValueError, match="'max' is not one of cls, mean, last"):
        pool(tokens, layout, "max")


def test_layout_by_hand():
    layout = Layout.of(torch.tensor([2, 1, 3]))
    assert layout.position.tolist() == [0, 1, 0, 0, 1, 2]
    assert layout.sentence.tolist() == [0, 0, 1, 2, 2, 2]
    tokens = torch.arange(6.0)[:, None]
    grid = layout.pad(tokens)
    assert grid[..., 0].tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]
    assert torch.equal(layout.unpad(grid), tokens)


def test_token_sequences_refuse_an_empty_sentence():
    with pytest.raises(ValueError, match="sentence 1 has no token"):
        TokenSequences.from_lists([[1], [], [2]])


def test_batches_by_length_cover_every_row_once():
    lengths = np.array([5, 1, 9, 2, 300, 7])
    batches = list(batches_by_length(lengths, 16))
    assert sorted(np.concatenate(batches).tolist()) == list(range(6))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 16 for b in batches)


@pytest.mark.parametrize("arch", ["bert", "mpnet", "xlm-r", "qwen3"])
def test_layer_reduction_keeps_the_chosen_blocks(arch, tiny_encoder_folder, tiny_texts):
    whole, cut = load(tiny_encoder_folder(arch), arch), load(tiny_encoder_folder(arch), arch, layers=[0, 2])
    assert (whole.num_layers, cut.num_layers) == (3, 2)
    names = [n for n in cut.parameters_by_name() if ".0." in n]
    for name in names:
        torch.testing.assert_close(cut.parameters_by_name()[name], whole.parameters_by_name()[name])
    second = {n: p for n, p in cut.parameters_by_name().items() if ".1." in n}
    for name, value in second.items():
        torch.testing.assert_close(value, whole.parameters_by_name()[name.replace(".1.", ".2.")])
    assert cut.encode(tiny_texts[:2]).shape == (2, cut.dim)


def test_layer_reduction_refuses_what_is_not_there(tiny_encoder_folder):
    encoder = load(tiny_encoder_folder("bert"), "bert")
    with pytest.raises(TalasError, match=r"layers \[0, 7\].*0 to 2"):
        keep_layers(encoder.model, [0, 7])


def test_equal_texts_are_computed_once_and_order_is_kept(tiny_encoder_folder, tiny_texts):
    encoder = load(tiny_encoder_folder("bert"), "bert")
    seen = []
    vectors = encoder.encode(["b c", "a", "b c"], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    assert np.array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(["a"], normalize=True)), 1, rtol=1e-6)
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_compact_vocabulary_is_invisible(tiny_encoder_folder, tiny_texts):
    encoder = load(tiny_encoder_folder("bert"), "bert")
    tokens = encoder.tokenize(tiny_texts[:4])
    before, full = encoder.encode(tiny_texts[:4]), encoder.model.get_input_embeddings().weight.detach().clone()
    used = torch.from_numpy(np.unique(tokens.ids).astype(np.int64))
    encoder.compact_vocabulary(used)
    assert encoder.model.get_input_embeddings().weight.shape[0] == len(used) < len(full)
    ids, lengths = tokens.take(np.arange(4))
    layout = Layout.of(lengths)
    with torch.no_grad():
        small = pool(encoder.eval()(torch.searchsorted(used, ids), layout)[-1], layout, encoder.pooling)
    np.testing.assert_allclose(small.numpy(), before, atol=1e-6)
    with pytest.raises(RuntimeError, match="before saving"):
        encoder.save_transformer(None)
    encoder.expand_vocabulary(decay=0.5)
    table = encoder.model.get_input_embeddings().weight
    torch.testing.assert_close(table[used], full[used])
    unused = torch.tensor([i for i in range(len(full)) if i not in set(used.tolist())])
    torch.testing.assert_close(table[unused], 0.5 * full[unused])


def test_folders_that_are_no_models(tmp_path, tiny_encoder_folder):
    with pytest.raises(TalasError, match=r"no config.json"):
        transformer_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(TalasError, match="Pickled weights can run code and are not read"):
        transformer_folder(tmp_path)
    with pytest.raises(TalasError, match="pooling 'max' is not one of"):
        Encoder.load(tiny_encoder_folder("bert"), pooling="max")


@pytest.mark.parametrize("arch", ARCHS)
def test_folder_says_its_pooling(arch, tiny_encoder_folder):
    assert pooling_of_folder(tiny_encoder_folder(arch)) == tiny.POOLING[arch]


def test_fingerprint_sees_every_changed_file(tmp_path, tiny_texts):
    folder = tiny.build("bert", tmp_path / "m", tiny_texts)
    before = folder_fingerprint(folder)
    for name, key in (("model.safetensors", "weights"), ("config.json", "config"), ("tokenizer.json", "tokenizer")):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        after = folder_fingerprint(folder)
        assert [k for k in before if before[k] != after[k]] == [key]
        (folder / name).write_bytes(content)
    assert folder_fingerprint(folder) == before


@pytest.mark.parametrize("kind", ["bert", "xlm-r"])
def test_the_last_block_at_the_first_token_alone(tiny_encoder_folder, tiny_texts, kind):
    """CLS pooling: the same vectors and the same gradients as the whole last block gives."""
    encoder = Encoder.load(tiny_encoder_folder(kind), pooling="cls").eval()
    ids, lengths = encoder.tokenize(tiny_texts[:24]).take(range(24))
    layout = Layout.of(lengths)
    short, _, _ = encoder.pooled(ids, layout)
    whole = [pool(h, layout, "cls") for h in encoder(ids, layout)]
    assert len(short) == len(whole) == encoder.num_layers + 1
    for ours, theirs in zip(short, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weights = list(encoder.parameters())
    seed = torch.randn(24, encoder.dim)
    ours = torch.autograd.grad((short[-1] * seed).sum(), weights, allow_unused=True)
    theirs = torch.autograd.grad((whole[-1] * seed).sum(), weights, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_token_states_of_the_last_block_need_all_of_it(tiny_encoder_folder, tiny_texts):
    encoder = Encoder.load(tiny_encoder_folder("bert"), pooling="cls").eval()
    ids, lengths = encoder.tokenize(tiny_texts[:5]).take(range(5))
    layout = Layout.of(lengths)
    layers, tokens, attention = encoder.pooled(ids, layout, tokens=(-1, -2), attention=(-1,))
    torch.testing.assert_close(tokens[-1][:, 0], layers[-1])
    assert tokens[-2].shape == tokens[-1].shape == (5, layout.longest, encoder.dim)
    torch.testing.assert_close(attention[-1].sum(-1), layout.valid.float())


@pytest.mark.parametrize("kind", ARCHS)
def test_attention_weights_equal_the_padded_models(tiny_encoder_folder, tiny_texts, kind):
    encoder = load(tiny_encoder_folder(kind), kind).eval()
    ids, lengths = encoder.tokenize(tiny_texts[:6]).take(range(6))
    layout = Layout.of(lengths)
    _, ours = encoder.states(ids, layout, (-1, -2))
    _, theirs = encoder.states_padded(ids, layout, (-1, -2))
    for block in (-1, -2):
        torch.testing.assert_close(ours[block], theirs[block], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["bert", "xlm-r", "qwen3"])
def test_a_tiny_model_is_the_same_in_every_process(tmp_path, tiny_texts, arch):
    """The trainers of `tokenizers` break ties by hash order, so a vocabulary trained in another process would differ."""
    code = "import pathlib, sys; from talas_lib import tiny; tiny.build(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])"
    subprocess.run([sys.executable, "-c", code, arch, str(tmp_path / "there"), *tiny_texts], check=True)
    tiny.build(arch, tmp_path / "here", tiny_texts)
    assert folder_fingerprint(tmp_path / "there") == folder_fingerprint(tmp_path / "here")


def test_many_texts_are_tokenised_in_parts(tiny_encoder_folder, tiny_texts, monkeypatch):
    encoder = load(tiny_encoder_folder("bert"), "bert")
    whole = encoder.tokenize(tiny_texts[:10])
    monkeypatch.setattr(tokenization, "_AT_ONCE", 3)
    parts = encoder.tokenize(tiny_texts[:10])
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_array_equal(parts.offsets, whole.offsets)
    assert (parts.ids.dtype, parts.offsets.dtype) == (np.int32, np.int64)


def test_a_text_without_tokens_is_named(tiny_encoder_folder, monkeypatch):
    encoder = load(tiny_encoder_folder("bert"), "bert")
    monkeypatch.setattr(tokenization, "_AT_ONCE", 2)
    monkeypatch.setattr(tokenization.TextTokenizer, "_ids", lambda self, texts: [[5] * len(text) for text in texts])
    with pytest.raises(TalasError, match="sentence 3 has no token: '' is empty after tokenisation"):
        encoder.tokenize(["a", "bb", "c", "", "d"])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_fillers_change_no_vector(tiny_encoder_folder, tiny_texts, arch, pooling):
    """Without gradients a batch is filled up to a multiple of 64 tokens; with gradients, in fp32, it is not."""
    encoder = load(tiny_encoder_folder(arch), arch, pooling=pooling).eval()
    ids, lengths = encoder.tokenize(tiny_texts[:7]).take(range(7))
    layout = Layout.of(lengths)
    plain, tokens, attention = encoder.pooled(ids, layout, (-1,), (-1,))
    with torch.no_grad():
        filled, more_tokens, more_attention = encoder.pooled(ids, layout, (-1,), (-1,))
    assert encoder._filled(ids, layout)[1] is layout
    torch.testing.assert_close(filled, plain)
    torch.testing.assert_close(more_tokens, tokens)
    torch.testing.assert_close(more_attention, attention)
