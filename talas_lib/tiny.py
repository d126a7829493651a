"""Tiny random models of the real architectures, with a tokenizer trained on the spot: for tests, CI and the smoke preset.

They learn nothing useful; they make every code path run in seconds with the classes that the real models use.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from talas_lib.errors import TalasError
from talas_lib.pretrained import quiet

POOLING = {"bert": "mean", "mpnet": "mean", "xlm-r": "cls", "qwen3": "last", "qwen3-bidirectional": "mean"}


def build(arch: str, folder: Path, texts: Sequence[str], *, seed: int = 0, dim: int = 32, layers: int = 3) -> Path:
    """Write a random model and its tokenizer to `folder` as a sentence-transformers folder, and return the folder.

    arch: bert (WordPiece), mpnet (WordPiece), xlm-r (Unigram), qwen3 and qwen3-bidirectional (byte-level BPE). The weights
    depend on the seed alone, the vocabulary on the texts.
    """
    if arch not in _BUILDERS:
        raise TalasError(f"no tiny model {arch!r}; there are {', '.join(_BUILDERS)}")
    tokenizer = _TOKENIZERS[arch](list(texts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[arch](tokenizer, dim, layers)
        _spread(model)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    mode = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}[POOLING[arch]]
    pooling = {"word_embedding_dimension": dim, f"pooling_mode_{mode}": True}
    pooling |= {f"pooling_mode_{m}": False for m in ("cls_token", "mean_tokens", "lasttoken") if m != mode}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Random weights at std 0.02 give nearly equal vectors; larger token embeddings make sentences differ."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20.0)  # type: ignore[operator]


def _bert_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    return _wordpiece(texts, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")


def _mpnet_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    # the order matters: MPNet's position numbers rely on the padding id being 1
    return _wordpiece(texts, cls="<s>", pad="<pad>", sep="</s>", unk="[UNK]", mask="<mask>")


def _wordpiece(texts: list[str], **named: str) -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.WordPiece(unk_token=named["unk"]))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    pieces = [piece for piece, _ in _frequent_pieces(tok, texts, 600 - len(named), inside="##")]
    vocabulary = {piece: number for number, piece in enumerate([*named.values(), *pieces])}
    tok.model = models.WordPiece(vocabulary, unk_token=named["unk"])
    tok.add_special_tokens([*named.values()])
    cls, sep = named["cls"], named["sep"]
    ids = [(cls, tok.token_to_id(cls)), (sep, tok.token_to_id(sep))]
    tok.post_processor = processors.TemplateProcessing(single=f"{cls} $A {sep}", special_tokens=ids)
    names = {f"{kind}_token": token for kind, token in named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tok, model_max_length=512, **names)


def _frequent_pieces(tok: Tokenizer, texts: list[str], size: int, *, inside: str) -> list[tuple[str, int]]:
    """(piece, count) of every character and of the substrings that save most tokens; `inside` marks those within a word.

    The trainers of `tokenizers` for WordPiece and Unigram break ties by hash order, another one in every process; counting gives
    the same vocabulary each time.
    """
    words = Counter(
        word for text in texts for word, _ in tok.pre_tokenizer.pre_tokenize_str(tok.normalizer.normalize_str(text))
    )
    found: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for stop in range(start + 1, len(word) + 1):
                found[(inside if start else "") + word[start:stop]] += count

    def letters(piece: str) -> int:
        return len(piece.removeprefix(inside)) if inside else len(piece)

    def saved(item: tuple[str, int]) -> tuple[bool, int, str]:
        piece, count = item
        worth = 4 if piece in words else 1  # whole words first, as the trainers would have it
        return letters(piece) > 1, -count * worth * (letters(piece) - 1), piece

    return sorted(found.items(), key=saved)[:size]


def _unigram(texts: list[str]) -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.NFKC()
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    counts = _frequent_pieces(tok, texts, 600 - len(special), inside="")
    total = sum(count for _, count in counts)
    scored = [(piece, math.log(count / total)) for piece, count in counts]
    tok.model = models.Unigram([*((name, 0.0) for name in special), *scored], unk_id=special.index("<unk>"))
    tok.add_special_tokens(special)
    ids = [("<s>", tok.token_to_id("<s>")), ("</s>", tok.token_to_id("</s>"))]
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tok, model_max_length=512, **names)


def _byte_bpe(texts: list[str]) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_end|>"]
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(texts, trainer)
    ids = [("<|endoftext|>", tok.token_to_id("<|endoftext|>"))]
    tok.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=ids)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tok, model_max_length=512, **names)


def _bert(tok: Any, dim: int, layers: int) -> BertModel:
    return BertModel(BertConfig(pad_token_id=tok.pad_token_id, **_sizes(tok, dim, layers)))


def _mpnet(tok: Any, dim: int, layers: int) -> MPNetModel:
    return MPNetModel(MPNetConfig(pad_token_id=tok.pad_token_id, **_sizes(tok, dim, layers)))


def _xlmr(tok: Any, dim: int, layers: int) -> XLMRobertaModel:
    return XLMRobertaModel(XLMRobertaConfig(pad_token_id=tok.pad_token_id, **_sizes(tok, dim, layers)))


def _qwen3(tok: Any, dim: int, layers: int) -> Qwen3Model:
    sizes = _sizes(tok, dim, layers)
    return Qwen3Model(Qwen3Config(num_key_value_heads=2, head_dim=dim // 4, pad_token_id=tok.pad_token_id, **sizes))


def _sizes(tok: Any, dim: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tok),
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * dim,
        "max_position_embeddings": 514,
    }


_TOKENIZERS: dict[str, Callable[[list[str]], PreTrainedTokenizerFast]] = {
    "bert": _bert_tokenizer,
    "mpnet": _mpnet_tokenizer,
    "xlm-r": _unigram,
    "qwen3": _byte_bpe,
    "qwen3-bidirectional": _byte_bpe,
}
_BUILDERS: dict[str, Callable[[Any, int, int], Any]] = {
    "bert": _bert,
    "mpnet": _mpnet,
    "xlm-r": _xlmr,
    "qwen3": _qwen3,
    "qwen3-bidirectional": _qwen3,
}
