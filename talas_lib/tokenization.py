"""Texts to token ids as an encoder sees them, without the encoder's weights: which tokens are special, what text a token is."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from talas_lib.alignment import UNREADABLE
from talas_lib.errors import TalasError
from talas_lib.model_folders import transformer_folder
from talas_lib.packed import TokenSequences
from talas_lib.pretrained import read_tokenizer

_AT_ONCE = 4096  # sentences tokenised together
_BEFORE = "x"  # a token is decoded behind this letter, since decoders treat the first token of a text in their own way


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with what else decides the token ids of a sentence: pooling, maximum length and prompt of its encoder."""

    tokenizer: Any
    pooling: str
    max_length: int
    prompt: str = ""

    @classmethod
    def load(cls, folder: Path | str, *, pooling: str, max_length: int, prompt: str = "") -> TextTokenizer:
        """From a model folder, whose weights are not read."""
        tokenizer = read_tokenizer(transformer_folder(folder))
        return cls(tokenizer, pooling, max_length, prompt)

    @classmethod
    def of(cls, encoder: Any) -> TextTokenizer:
        """That of an Encoder."""
        return cls(encoder.tokenizer, encoder.pooling, encoder.max_length, encoder.prompt)

    # ---- ids

    def tokenize(self, texts: Sequence[str]) -> TokenSequences:
        """Token ids with special tokens, prompt in front, cut to max_length; with last pooling the last id is end-of-text.

        TalasError for a text without tokens, by its index.
        """
        if not len(texts):
            return TokenSequences(np.zeros(0, np.int32), np.zeros(1, np.int64))
        ids, lengths = [], []
        for start in range(0, len(texts), _AT_ONCE):
            try:
                found = self._ids(texts[start : start + _AT_ONCE])
            except (TypeError, UnicodeError):
                _refuse_halves(texts)
                raise
            lengths.append(np.fromiter(map(len, found), dtype=np.int64, count=len(found)))
            ids.append(np.fromiter(chain.from_iterable(found), dtype=np.int32, count=int(lengths[-1].sum())))
        counts = np.concatenate(lengths)
        if not counts.all():
            empty = int(np.argmin(counts))
            raise TalasError(f"sentence {empty} has no token: {texts[empty]!r} is empty after tokenisation; remove it")
        return TokenSequences(np.concatenate(ids), np.concatenate([[0], np.cumsum(counts)]))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Lists of ids. The tokenizer keeps kilobytes a sentence beside them, so that it is not given many at a time."""
        ids: list[list[int]] = self.tokenizer(
            [self.prompt + t for t in texts],
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [self._end(row) for row in ids] if self.pooling == "last" else ids

    def end_of_text_ids(self) -> list[int]:
        """Ids that may close a sentence for last-token pooling, the one to append first."""
        tok = self.tokenizer
        named = tok.convert_tokens_to_ids("<|endoftext|>") if "<|endoftext|>" in tok.get_vocab() else None
        ids = [i for i in (named, tok.eos_token_id, tok.sep_token_id) if i is not None]
        if not ids:
            raise TalasError("last-token pooling needs a tokenizer with an end-of-text token, and this one has none")
        return ids

    def _end(self, ids: list[int]) -> list[int]:
        ends = self.end_of_text_ids()
        return ids if ids and ids[-1] in ends else [*ids[: self.max_length - 1], ends[0]]

    # ---- what a token is

    def special_ids(self) -> list[int]:
        """Ids that stand for no text: beginning, end, padding, mask and the like, but not the unknown word. Ascending."""
        tok = self.tokenizer
        ids = set(tok.all_special_ids) | {i for i, token in tok.added_tokens_decoder.items() if token.special}
        if self.pooling == "last":
            ids.add(self.end_of_text_ids()[0])
        marks = {tok.bos_token_id, tok.eos_token_id, tok.cls_token_id, tok.sep_token_id, tok.pad_token_id}
        if tok.unk_token_id not in marks:  # some tokenizers name one token for everything
            ids.discard(tok.unk_token_id)
        return sorted(ids)

    def special(self, tokens: TokenSequences) -> np.ndarray:
        """True for the tokens that stand for no part of the text, special ones and those of the prompt; bool `[tokens]`."""
        found = np.isin(tokens.ids, self.special_ids())
        if self.prompt:
            _mark_beginning(found, tokens, self._prompt_ids())
        return found

    def pieces(self, tokens: TokenSequences) -> list[str]:
        """The text of every token, sentences end to end, as tokenizers can be compared by: see `plain`."""
        ids, where = np.unique(tokens.ids, return_inverse=True)
        plain = [self.plain(int(i)) for i in ids]
        return [plain[number] for number in where]

    def plain(self, token_id: int) -> str:
        """A token as text: marks of words and continuations gone, bytes decoded, in lower case, without accents.

        Its own tokenizer decodes it, so that nothing is assumed about the marks. Accents go because most lower-casing tokenizers
        drop them. The unknown word, and bytes that are no whole character, give or hold U+FFFD.
        """
        tok = self.tokenizer
        if token_id == tok.unk_token_id:
            return UNREADABLE
        token = tok.convert_ids_to_tokens(token_id)
        decoded = tok.convert_tokens_to_string([_BEFORE, token])
        text = decoded[len(_BEFORE) :] if decoded.startswith(_BEFORE) else token
        letters = unicodedata.normalize("NFKD", text).lower()  # first NFKD, which may give capitals
        return "".join(c for c in letters if not unicodedata.combining(c)).strip()

    def _prompt_ids(self) -> np.ndarray:
        """The ids every sentence begins with: of the prompt alone, up to its last token that is not special."""
        ids = np.array(self.tokenizer(self.prompt, truncation=True, max_length=self.max_length)["input_ids"])
        text = np.flatnonzero(~np.isin(ids, self.special_ids()))
        return ids[: text[-1] + 1] if len(text) else ids[:0]

    def fingerprint(self) -> str:
        """sha256 of all that decides ids and pieces; the same before and after use."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = sorted(self.tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
        if isinstance(rules, dict):  # set by every call, and set again by ours
            rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
        used = [rules, self.special_ids(), self.pooling == "last", self.max_length, self.prompt]
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def _refuse_halves(texts: Sequence[str]) -> None:
    """TalasError for the first text that has no UTF-8 form, which is what a tokenizer is given."""
    for place, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TalasError(
                f"sentence {place} holds half of a surrogate pair, which no tokenizer takes: {text!r}; remove it"
            ) from None


def tokens_sha256(tokens: TokenSequences) -> str:
    """Hash of tokenised sentences: equal where token positions mean the same."""
    content = np.asarray(tokens.offsets, np.int64).tobytes() + np.asarray(tokens.ids, np.int32).tobytes()
    return hashlib.sha256(content).hexdigest()


def _mark_beginning(found: np.ndarray, tokens: TokenSequences, beginning: np.ndarray) -> None:
    """Set `found` where a sentence's first tokens equal those of `beginning`, up to the first that differs."""
    at = tokens.offsets[:-1, None] + np.arange(len(beginning))
    inside = at < tokens.offsets[1:, None]
    at = np.where(inside, at, 0)
    same = np.logical_and.accumulate(inside & (tokens.ids[at] == beginning), axis=1)
    found[at[same]] = True
