"""A static encoder from a teacher, the end of the scale without a transformer (after model2vec, Tulkens and van Dongen 2024).

    x = mean over the tokens w of a sentence of v_w,    v_w = a / (a + p_w) * C (t_w - mean t)

t_w is the teacher's vector of the vocabulary entry w read as a text, C the first principal components over the vocabulary,
p_w the probability of w and a / (a + p_w) its SIF weight (Arora, Liang and Ma 2017), which takes weight from frequent words.
Nothing is trained: there is no loss and no step. Of the student only the tokenizer is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.errors import TalasError
from talas_lib.methods.base import Method

if TYPE_CHECKING:
    import numpy as np

    from talas_lib.static_encoder import StaticEncoder

_UNUSED = re.compile(r"[\[<|]+_?(unused|extra_id|reserved)\w*[\]>|]+")
_UNDECODABLE = "\ufffd"


class Config(BaseModel):
    """Settings of the static encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dim: int = Field(default=256, ge=1, description="width of the vectors; at most the teacher's")
    sif: float = Field(default=1e-4, gt=0, description="a of the weights a / (a + p)")
    probabilities: Literal["corpus", "zipf"] = Field(
        default="corpus", description="p: shares of the corpus's tokens, or Zipf's law over the order of the vocabulary"
    )


class Static(Method):
    """The method object. It has no terms: `vocabulary` says what the teacher has to embed, `build_student` makes the student."""

    builds_student = True

    def __init__(self, config: Config, **_sizes: Any) -> None:
        from torch import nn

        self.config = config
        self.weights = {}
        self.heads = nn.ModuleList()

    def vocabulary(self, tokenizer: Any) -> list[str]:
        """The texts whose teacher vectors `build_student` takes. TalasError when there are less than two."""
        texts = list(entries(tokenizer).values())
        if len(texts) < 2:
            raise TalasError(
                f"the student's vocabulary has {len(texts)} entries that stand for text; static needs two at least"
            )
        return texts

    def build_student(self, tokenizer: Any, sentences: Sequence[str], vectors: np.ndarray) -> StaticEncoder:
        """The finished student. vectors: the teacher's of `vocabulary(tokenizer)`, float32 `[n, d_T]`.

        Entries that are left out (see `entries`), the unknown token among them, get the mean vector of the corpus's tokens: an
        unknown word then says nothing that sets a sentence apart, and a sentence of unknown words still has a vector.
        """
        import numpy as np
        import torch

        from talas_lib.static_encoder import StaticEncoder, plain_tokenizer

        ids = np.fromiter(entries(tokenizer), np.int64)
        core = plain_tokenizer(tokenizer)
        size = max(core.get_vocab(with_added_tokens=True).values()) + 1
        p = token_probabilities(self.config, core, sentences, ids, size)[ids]
        rows = _reduced(self.config.dim, vectors) * (self.config.sif / (self.config.sif + p))[:, None]
        share = p / p.sum() if p.sum() > 0 else np.full(len(p), 1 / len(p))
        table = np.tile(share @ rows, (size, 1))
        table[ids] = rows
        return StaticEncoder(torch.from_numpy(table.astype(np.float32)), core)


def entries(tokenizer: Any) -> dict[int, str]:
    """The entries of a vocabulary that stand for text, as the text the teacher reads: token id to string, ids ascending.

    Left out: special tokens, entries kept free for later use ([unused7]), pieces of characters, and entries that are nothing
    but a space. Marks of word start or continuation (`##`, `▁`, `Ġ`) are taken off, so `##ing` and `ing` read the same.
    """
    from talas_lib.static_encoder import plain_tokenizer

    core = plain_tokenizer(tokenizer)
    added = {i for i, token in core.get_added_tokens_decoder().items() if token.special}
    barred = added | set(getattr(tokenizer, "all_special_ids", ()))
    found = {}
    for token, i in sorted(core.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
        if i in barred or _UNUSED.fullmatch(token):
            continue
        text = _as_text(core, token)
        if text and _UNDECODABLE not in text:
            found[i] = text
    return found


def _as_text(core: Any, token: str) -> str:
    prefix = getattr(core.model, "continuing_subword_prefix", None)  # WordPiece
    if prefix:
        return token.removeprefix(prefix) or token
    return str(token if core.decoder is None else core.decoder.decode([token])).strip()


def token_probabilities(config: Config, core: Any, sentences: Sequence[str], ids: np.ndarray, size: int) -> np.ndarray:
    """p of every token id, float64 `[size]`: its share of the corpus's tokens, 0 for one that does not occur; or by Zipf's law.

    By Zipf's law entry number r of `ids`, counted from 1, has p in proportion to 1 / (r + 1): most vocabularies are
    roughly in the order of frequency.
    """
    import numpy as np

    from talas_lib.static_encoder import tokenize

    if config.probabilities == "corpus":
        counts = np.bincount(tokenize(core, sentences).ids, minlength=size).astype(np.float64)
        return np.asarray(counts / max(counts.sum(), 1))
    zipf = 1 / np.arange(2, len(ids) + 2)
    probability = np.zeros(size)
    probability[ids] = zipf / zipf.sum()
    return probability


def _reduced(dim: int, vectors: np.ndarray) -> np.ndarray:
    """Centred vectors along their principal components, `[n, d_T]` to `[n, min(dim, d_T, n - 1)]`."""
    from talas_lib import reduction

    try:
        components = reduction.principal_components(vectors[reduction.fit_rows(len(vectors))], dim)
    except ValueError as error:
        raise TalasError(f"the teacher does not tell the vocabulary's entries apart: {error}") from error
    return vectors @ components.directions.astype(vectors.dtype) - components.mean @ components.directions


METHOD = Static
