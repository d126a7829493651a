"""Sentence vectors without a transformer: a table of token vectors, averaged over a sentence's tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from talas_lib.encoders import batches_by_length
from talas_lib.errors import TalasError
from talas_lib.packed import TokenSequences


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """A copy of a transformers tokenizer's fast core that neither cuts nor pads. TalasError when it has no such core."""
    core = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(core, Tokenizer):
        raise TalasError(
            f"{type(tokenizer).__name__} has no fast tokenizer behind it, and a static encoder is saved with one;"
            " use a student whose folder holds a tokenizer.json"
        )
    copy = Tokenizer.from_str(core.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenSequences:
    """Token ids without special tokens, all of them however long the text; a text may have none."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids], dtype=np.int64)]).astype(np.int64)
    return TokenSequences(np.fromiter((i for row in ids for i in row), np.int32, int(offsets[-1])), offsets)


class StaticEncoder(nn.Module):
    """The mean of a sentence's token vectors; what evaluation, export and loading use of `encoders.Encoder`.

    table: `[entries, dim]`, one row a token id (ValueError when the tokenizer has ids beyond it). A text without any token gets
    the mean of the table, so that it has a direction (sentence-transformers gives it zeros).
    """

    pooling = "mean"
    normalize = False
    projection = None

    def __init__(self, table: Tensor, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = plain_tokenizer(tokenizer)
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= len(table):
            raise ValueError(f"the tokenizer has id {largest}, and the table only {len(table)} rows")
        self.table = nn.Parameter(table.detach().float().contiguous(), requires_grad=False)

    @classmethod
    def load(cls, folder: Path | str) -> StaticEncoder:
        """From a sentence-transformers folder whose only module is a StaticEmbedding. TalasError when it is none."""
        folder = Path(folder).expanduser()
        listing = folder / "modules.json"
        modules = json.loads(listing.read_text()) if listing.is_file() else []
        if len(modules) != 1 or not modules[0]["type"].endswith("StaticEmbedding"):
            raise TalasError(
                f"{folder} holds no static encoder: its modules.json does not list one StaticEmbedding alone"
            )
        inner = folder / modules[0]["path"]
        table = load_file(inner / "model.safetensors")["embedding.weight"]
        return cls(table, Tokenizer.from_file(str(inner / "tokenizer.json")))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.table.shape[1])

    @property
    def output_dim(self) -> int:
        """The same as `dim`: nothing follows the pooling."""
        return self.dim

    @property
    def device(self) -> torch.device:
        return self.table.device

    def tokenize(self, texts: Sequence[str]) -> TokenSequences:
        """Token ids without special tokens, nothing cut off; a text may have none."""
        return tokenize(self.tokenizer, texts)

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        pooling: str | None = None,
        tokens_per_batch: int = 1 << 16,
        precision: str = "fp32",
        progress: Any = None,
    ) -> np.ndarray:
        """Sentence vectors, float32 `[texts, dim]`, as `Encoder.encode` gives them; equal texts are computed once.

        precision changes nothing: a mean is computed in fp32. TalasError for a pooling other than mean.
        """
        if pooling not in (None, "mean"):
            raise TalasError(f"pooling {pooling!r}: a static encoder has no first or last token to take; only mean")
        distinct = list(dict.fromkeys(texts))
        where = {t: i for i, t in enumerate(distinct)}
        tokens = self.tokenize(distinct)
        out, done = np.empty((len(distinct), self.dim), dtype=np.float32), 0
        nothing = self.table.mean(0)
        for rows in batches_by_length(tokens.lengths, tokens_per_batch):
            ids, lengths = (t.to(self.device) for t in tokens.take(rows))
            vectors = nn.functional.embedding_bag(ids, self.table, torch.cumsum(lengths, 0) - lengths, mode="mean")
            vectors = torch.where(lengths[:, None] > 0, vectors, nothing)
            if self.normalize if normalize is None else normalize:
                vectors = nn.functional.normalize(vectors, dim=-1)
            out[rows] = vectors.cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress(done, len(distinct))
        return out[[where[t] for t in texts]]

    def save(self, folder: Path) -> None:
        """A folder that SentenceTransformer(...) loads: one StaticEmbedding, safetensors, and the tokenizer."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        module = StaticEmbedding(plain_tokenizer(self.tokenizer), embedding_weights=self.table.detach().cpu().clone())
        SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(folder), create_model_card=False)
