"""Sentence encoders: a transformers model, its tokenizer and a pooling, computed packed wherever the model allows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from talas_lib.blocks import blocks, first_token_states, has_bert_blocks, is_bert_like, keep_layers, uses_sliding_window
from talas_lib.errors import TalasError
from talas_lib.model_folders import transformer_folder
from talas_lib.packed import Layout, TokenSequences, packed_attention, use_fast_dropout
from talas_lib.pooling import POOLINGS, pool
from talas_lib.pretrained import quiet as quiet
from talas_lib.pretrained import read_model, read_tokenizer
from talas_lib.tokenization import TextTokenizer

PACKED = "talas_packed"
AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)  # the layout replaces the mask


class Encoder(nn.Module):
    """Texts or token ids in, sentence vectors out.

    model: a transformers base model (BERT, XLM-R, MPNet, Qwen3, ...). pooling: cls, mean or last. `padding_side`
    matters only to models without packed attention. `attention="bidirectional"` lets every token of a decoder see the
    whole sentence (LLM2Vec). `normalize` is whether `encode` returns unit vectors unless told otherwise. The attribute
    `projection`, a module `[n, dim] -> [n, d]` or None, is what a method leaves behind the pooling; `encode` applies it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: str,
        max_length: int = 256,
        padding_side: str = "right",
        prompt: str = "",
        attention: str = "native",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise TalasError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_length = max_length
        self.prompt = prompt
        self.bidirectional = attention == "bidirectional"
        self.normalize = normalize
        self.used_vocabulary: Tensor | None = None
        self.projection: nn.Module | None = None
        self._padding_side = padding_side
        # the pooler takes no part in the vector: kept in a tuple, where it is no submodule, until the model is saved
        self._aside = (getattr(model, "pooler", None),)
        if self._aside[0] is not None:
            model.pooler = None
        use_fast_dropout(model)
        self.packed = bool(model._supports_attention_backend) and not uses_sliding_window(model.config)
        model.set_attn_implementation(PACKED if self.packed else "eager")

    @classmethod
    def load(cls, folder: Path | str, *, layers: Sequence[int] | None = None, **options: Any) -> Encoder:
        """From a local folder in transformers or sentence-transformers form, in fp32.

        layers: block indices to keep, in order (layer reduction); None keeps all. Only safetensors weights are read and
        no code from the folder is run. TalasError says what is wrong when the folder holds no such model, a damaged one, or one
        without some of its weights.
        """
        folder = transformer_folder(folder)
        model, tokenizer = read_model(folder), read_tokenizer(folder)
        table = len(model.get_input_embeddings().weight)
        if len(tokenizer) > table:
            raise TalasError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model vectors for {table}; they do not belong"
                " together"
            )
        if layers is not None:
            keep_layers(model, layers)
        return cls(model, tokenizer, **options)

    @property
    def dim(self) -> int:
        """Width of the hidden states and of the pooled vector."""
        return int(self.model.config.hidden_size)

    @property
    def output_dim(self) -> int:
        """Width of what `encode` returns: `dim`, unless a projection follows the pooling."""
        if self.projection is None:
            return self.dim
        with torch.no_grad():
            return int(self.projection(torch.zeros(1, self.dim, device=self.device)).shape[1])

    @property
    def num_layers(self) -> int:
        """Transformer blocks L; there are L + 1 hidden states, number 0 being the embedding output."""
        return len(blocks(self.model))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The trained parameters, named as in the model's own state dict."""
        return dict(self.model.named_parameters())

    # ---- tokens

    def tokenize(self, texts: Sequence[str]) -> TokenSequences:
        """Token ids with special tokens, prompt in front, cut to max_length; with last pooling the last id is end-of-text.

        TalasError for a text without tokens, by its index.
        """
        return TextTokenizer.of(self).tokenize(texts)

    def end_of_text_ids(self) -> list[int]:
        """Ids that may close a sentence for last-token pooling, the one to append first. TalasError for a tokenizer without."""
        return TextTokenizer.of(self).end_of_text_ids()

    # ---- forward

    def forward(self, ids: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """All hidden states of a packed batch: L + 1 tensors `[T, dim]`, the last one being the model's output.

        ids: int64 `[T]`. Models without packed attention (MPNet) are padded inside and give the same tensors.
        """
        return self.states(ids, layout)[0]

    def states(
        self, ids: Tensor, layout: Layout, attention: Sequence[int] = ()
    ) -> tuple[tuple[Tensor, ...], dict[int, Tensor]]:
        """Hidden states as `forward` gives them, and the head-averaged attention weights of the blocks asked for.

        attention: blocks counted from the top (-1 the last). Weights are `[B, longest, longest]`, rows are queries, before
        dropout, zero in empty cells.
        """
        if not self.packed:
            return self.states_padded(ids, layout, attention)
        watch = {self.num_layers + block: block for block in attention}
        found: dict[int, Tensor] = {}
        layout = replace(layout, bidirectional=self.bidirectional, watch=(watch, found))
        out = self.model(
            input_ids=ids[None],
            position_ids=self._positions(layout)[None],
            layout=layout,
            output_hidden_states=True,
            **self._no_cache,
        )
        return tuple(h[0] for h in out.hidden_states), found

    def pooled(
        self, ids: Tensor, layout: Layout, tokens: Sequence[int] = (), attention: Sequence[int] = ()
    ) -> tuple[tuple[Tensor, ...], dict[int, Tensor], dict[int, Tensor]]:
        """Pooled vectors `[B, dim]` of every hidden state, in fp32 or the model's wider dtype.

        With them, when asked for by layer or block from the top: hidden states `[B, longest, dim]`, zeros in empty cells, and
        attention weights as `states` gives them. With CLS pooling a BERT-like model computes its last block at the first
        token only.
        """
        count = len(layout.lengths)
        ids, layout = self._filled(ids, layout)
        if self._at_first_token(self.pooling) and -1 not in tokens and not attention:
            hidden = first_token_states(self.model, ids, self._positions(layout), layout)
            weights: dict[int, Tensor] = {}
            vectors = [*(pool(at_least_fp32(h), layout, "cls") for h in hidden[:-1]), at_least_fp32(hidden[-1])]
        else:
            hidden, weights = self.states(ids, layout, attention)
            vectors = [pool(at_least_fp32(h), layout, self.pooling) for h in hidden]
        padded = {k: layout.pad(at_least_fp32(hidden[k]))[:count] for k in tokens}
        return tuple(v[:count] for v in vectors), padded, {k: at_least_fp32(w)[:count] for k, w in weights.items()}

    def _sentence_vectors(self, ids: Tensor, layout: Layout, pooling: str) -> Tensor:
        """Pooled vectors of the last hidden state, fp32 `[B, dim]`."""
        count = len(layout.lengths)
        ids, layout = self._filled(ids, layout)
        if self._at_first_token(pooling):
            return first_token_states(self.model, ids, self._positions(layout), layout)[-1][:count].float()
        return pool(self(ids, layout)[-1].float(), layout, pooling)[:count]

    def _filled(self, ids: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """With fillers (`Layout.filled`) where new shapes are costly: on a CPU in bf16, and without gradients."""
        costly = ids.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled())
        return layout.filled(ids) if costly and self.packed else (ids, layout)

    def _at_first_token(self, pooling: str) -> bool:
        return pooling == "cls" and self.packed and has_bert_blocks(self.model)

    def _positions(self, layout: Layout) -> Tensor:
        return layout.position + self._first_position

    def states_padded(
        self, ids: Tensor, layout: Layout, attention: Sequence[int] = ()
    ) -> tuple[tuple[Tensor, ...], dict[int, Tensor]]:
        """The same tensors through an ordinary padded batch, padded on `padding_side`."""
        grid = layout.pad(ids + 1) - 1  # -1 marks an empty cell
        left = self._padding_side == "left"
        shift = layout.longest - layout.lengths if left else 0 * layout.lengths
        source = torch.arange(layout.longest, device=ids.device)[None] - shift[:, None]
        valid = (source >= 0) & (source < layout.lengths[:, None])
        pad_id = self.tokenizer.pad_token_id or 0
        grid = torch.where(valid, grid.gather(1, source.clamp(0, layout.longest - 1)), pad_id)
        mask: Tensor = valid.long()
        if self.bidirectional:
            allowed = valid[:, None, None].expand(-1, 1, layout.longest, -1)
            mask = torch.zeros(allowed.shape, device=ids.device).masked_fill(~allowed, torch.finfo(torch.float32).min)
        wanted = {"output_attentions": True} if attention else {}
        with self._attention("eager"):
            out = self.model(input_ids=grid, attention_mask=mask, output_hidden_states=True, **wanted, **self._no_cache)
        rows = layout.sentence
        cols = layout.position + shift[rows]
        hidden = tuple(h[rows, cols] for h in out.hidden_states)
        return hidden, {block: _unshift(out.attentions[block].mean(1), layout, shift) for block in attention}

    @property
    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if hasattr(self.model.config, "use_cache") and not is_bert_like(self.model) else {}

    @property
    def _first_position(self) -> int:
        """RoBERTa counts positions from padding_idx + 1."""
        embeddings = getattr(self.model, "embeddings", None)
        offset = getattr(embeddings, "padding_idx", None) if "roberta" in self.model.config.model_type else None
        return 0 if offset is None else offset + 1

    @contextmanager
    def _attention(self, implementation: str) -> Any:
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(implementation)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    # ---- vectors

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        pooling: str | None = None,
        tokens_per_batch: int = 4096,
        precision: str = "fp32",
        progress: Any = None,
    ) -> np.ndarray:
        """Sentence vectors, float32 `[texts, output_dim]`, in evaluation mode; equal texts are computed once.

        Sentences are sorted by length and packed up to `tokens_per_batch`; precision fp32 or bf16 (autocast).
        `progress`, when given, is called with the number of distinct texts finished so far and in all.
        """
        distinct = list(dict.fromkeys(texts))
        where = {t: i for i, t in enumerate(distinct)}
        tokens = self.tokenize(distinct)
        out = np.empty((len(distinct), self.output_dim), dtype=np.float32)
        was_training, done = self.training, 0
        self.eval()
        try:
            for rows in batches_by_length(tokens.lengths, tokens_per_batch):
                ids, lengths = tokens.take(rows)
                layout = Layout.of(lengths).to(self.device)
                with autocast(self.device, precision):
                    vectors = self._sentence_vectors(ids.to(self.device), layout, pooling or self.pooling)
                if self.projection is not None:
                    vectors = self.projection(vectors)
                if self.normalize if normalize is None else normalize:
                    vectors = nn.functional.normalize(vectors, dim=-1)
                out[rows] = vectors.cpu().numpy()
                done += len(rows)
                if progress is not None:
                    progress(done, len(distinct))
        finally:
            self.train(was_training)
        return out[[where[t] for t in texts]]

    # ---- vocabulary

    def compact_vocabulary(self, used: Tensor, *, sparse_gradient: bool = False) -> None:
        """Keep only the embedding rows in `used` (sorted distinct ids, int64) while training; ids must be renumbered to match.

        A row that no training sentence uses has no gradient, so ASAM never moves it and AdamW only decays it:
        `expand_vocabulary` does that decay at once. Same mathematics, a fraction of the memory traffic. sparse_gradient: the
        gradient of the table is a sparse tensor of the rows in the batch (it cannot be differentiated again).
        """
        if self.used_vocabulary is not None:
            raise RuntimeError("the vocabulary is compact already")
        table = self.model.get_input_embeddings()
        self._full_table = table.weight.detach().clone()
        self._padding_idx = table.padding_idx
        kind = {"device": table.weight.device, "dtype": table.weight.dtype}
        small = nn.Embedding(len(used), self.dim, sparse=sparse_gradient, **kind)
        small.weight.data.copy_(table.weight.data[used])
        self.model.set_input_embeddings(small)
        self.used_vocabulary = used

    def expand_vocabulary(self, decay: float = 1.0) -> None:
        """Undo `compact_vocabulary`: trained rows in their places, all others times `decay`."""
        if self.used_vocabulary is None:
            return
        weight = self._whole_table(decay)
        table = nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=self._padding_idx)
        self.model.set_input_embeddings(table)
        self.used_vocabulary = None
        del self._full_table

    def whole_state(self, decay: float = 1.0) -> dict[str, Tensor]:
        """The model's state dict as it would be after `expand_vocabulary(decay)`; the encoder stays as it is."""
        state = dict(self.model.state_dict())
        if self.used_vocabulary is not None:
            small = self.model.get_input_embeddings().weight
            name = next(name for name, parameter in self.model.named_parameters() if parameter is small)
            state[name] = self._whole_table(decay)
        return state

    def _whole_table(self, decay: float) -> Tensor:
        weight = self._full_table.to(self.device) * decay
        weight[self.used_vocabulary] = self.model.get_input_embeddings().weight.detach()
        return weight

    # ---- files

    def save_transformer(self, folder: Path) -> None:
        """Model, config and tokenizer in transformers form (safetensors)."""
        if self.used_vocabulary is not None:
            raise RuntimeError("expand_vocabulary() before saving")
        if self._aside[0] is not None:
            self.model.pooler = self._aside[0].to(self.device)
        try:
            with quiet():
                self.model.save_pretrained(folder, safe_serialization=True)
            self.tokenizer.save_pretrained(folder)
        finally:
            if self._aside[0] is not None:
                self.model.pooler = None


def autocast(device: torch.device, precision: str) -> Any:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 and fp16 to fp32; fp32 and fp64 as they are."""
    return x.float() if x.element_size() < 4 else x


def batches_by_length(lengths: np.ndarray, tokens_per_batch: int) -> Iterable[np.ndarray]:
    """Row numbers in batches of similar length, longest first, each of at most `tokens_per_batch` tokens (at least one row)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(1, tokens_per_batch // longest)
        yield order[start : start + size]
        start += size


def _unshift(weights: Tensor, layout: Layout, shift: Tensor) -> Tensor:
    """Attention weights `[B, longest, longest]` of a batch padded by `shift` on the left, moved right; empty cells zero."""
    index = (torch.arange(layout.longest, device=weights.device) + shift[:, None]).clamp_max(layout.longest - 1)
    weights = weights.gather(1, index[:, :, None].expand_as(weights)).gather(2, index[:, None].expand_as(weights))
    return weights * (layout.valid[:, :, None] & layout.valid[:, None])
