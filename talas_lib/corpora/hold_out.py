"""Sentences kept out of training, so that a student can be compared with its teacher on texts it has not seen.

Which ones is decided by each text alone: a corpus that grows keeps the sentences it has held out, and all copies of a sentence
fall on one side.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from talas_lib.errors import TalasError
from talas_lib.texts import comparison_key

if TYPE_CHECKING:
    from talas_lib.corpora import Corpus

_SALT = "hold-out"


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out share, 0 to 1: its letters and digits, hashed to a number in [0, 1), are below it.

    A text that is held out at one share is held out at every larger one.
    """
    digest = hashlib.sha256(f"{_SALT}\0{comparison_key(text)}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def training_part(corpus: Corpus, share: float) -> Corpus:
    """The corpus without its held-out share, rows in order; the corpus itself for a share of 0.

    TalasError when fewer than two sentences are left.
    """
    if share == 0:
        return corpus
    kept = [row for row, text in enumerate(corpus.texts) if not is_held_out(text, share)]
    if len(kept) < 2:
        raise TalasError(
            f"hold_out is {share}, and of the {len(corpus):,} sentences of corpus {corpus.name} {len(kept)} would be left to"
            " train on. Accepted: a smaller share, 0 to hold nothing out, or a larger corpus"
        )
    return corpus.rows(kept)


def unseen(whole: Corpus, training: Corpus) -> tuple[str, ...]:
    """Texts of a corpus, each once, of which the training part holds none with the same letters and digits; in order."""
    seen = {comparison_key(text) for text in training.texts} | {""}
    found: dict[str, str] = {}
    for text in whole.texts:
        key = comparison_key(text)
        if key not in seen:
            found.setdefault(key, text)
    return tuple(found.values())
