"""Which tokens of student and teacher correspond, for every text of a corpus: computed once for two tokenizers, kept on disk.

A cache is a folder `<root>/alignment-<key>`. The pairs of all distinct texts lie end to end in one array; `meta.json` comes last.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from talas_lib import alignment, distribution
from talas_lib.cache_files import (
    content_key,
    distinct_texts,
    load_array,
    ragged_index,
    read_record,
    save_array,
    taking_turns,
    texts_sha256,
    write_record,
)
from talas_lib.errors import TalasError
from talas_lib.tokenization import TextTokenizer, tokens_sha256

if TYPE_CHECKING:
    from talas_lib.encoders import Encoder
    from talas_lib.packed import TokenSequences

FORMAT = 1
WHAT = "token alignment file"
CELLS = 1 << 20  # student tokens times teacher tokens that are aligned at a time
ARRAYS = ("pairs", "offsets", "place")


@dataclass(frozen=True)
class Alignment:
    """A finished cache. pairs(rows) gives the aligned tokens of a batch."""

    folder: Path
    meta: Mapping[str, Any]
    _pairs: np.ndarray  # (student position, teacher position), distinct texts end to end
    _offsets: np.ndarray
    _place: np.ndarray  # corpus row -> distinct text

    @classmethod
    def open(cls, folder: Path) -> Alignment | None:
        """Open and verify; None for a folder that is unfinished or not there. TalasError names a damaged file."""
        if not (folder / "meta.json").is_file():
            return None
        meta = read_record(folder / "meta.json", WHAT)
        return cls(folder, meta, *(load_array(folder / f"{name}.npy", meta["sha256"][name], WHAT) for name in ARRAYS))

    def __len__(self) -> int:
        return len(self._place)

    @property
    def seconds(self) -> float:
        """Time the alignment took when it was computed."""
        return float(self.meta["seconds"])

    def pairs(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """(number of the sentence in `rows`, student position, teacher position), int64 `[P, 3]`, in this order."""
        texts = self._place[np.asarray(rows)]
        starts = self._offsets[texts]
        counts = self._offsets[texts + 1] - starts
        out = np.empty((int(counts.sum()), 3), np.int64)
        out[:, 0] = np.repeat(np.arange(len(texts)), counts)
        out[:, 1:] = self._pairs[ragged_index(starts, counts)]
        return torch.from_numpy(out)


def build(
    root: Path,
    kind: str,
    student: Encoder | TextTokenizer,
    teacher: Encoder | TextTokenizer,
    texts: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """The alignment of these texts' tokens, of one kind (see `alignment.align`): opened when it is there, else computed.

    Only tokenizers are used, so a teacher's weights need not be loaded. Positions count special tokens and prompt, which are
    never aligned. `progress(done, all)` counts distinct texts. TalasError for a kind that does not exist.
    """
    if kind not in alignment.KINDS:
        raise TalasError(f"alignment {kind!r} is not one of {', '.join(alignment.KINDS)}")
    sides = [t if isinstance(t, TextTokenizer) else TextTokenizer.of(t) for t in (student, teacher)]
    content = {"kind": kind, "student": sides[0].fingerprint(), "teacher": sides[1].fingerprint()}
    content |= {"texts": texts_sha256(texts)}
    folder = root / f"alignment-{content_key({'format': FORMAT, **content})}"
    root.mkdir(parents=True, exist_ok=True)
    with taking_turns(root / f"{folder.name}.lock"):
        return distribution.first_then_all(lambda: _open_or_build(folder, kind, sides, texts, content, progress))


def _open_or_build(
    folder: Path,
    kind: str,
    sides: Sequence[TextTokenizer],
    texts: Sequence[str],
    content: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> Alignment:
    with contextlib.suppress(TalasError):  # damaged: made again
        if (found := Alignment.open(folder)) is not None:
            return found
    began = time.perf_counter()
    distinct, place = distinct_texts(texts)
    tokens = [side.tokenize(distinct) for side in sides]
    pairs, offsets = _align(kind, sides, tokens, progress)
    arrays = {"pairs": pairs, "offsets": offsets, "place": place}
    folder.mkdir(exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    meta = {
        "format": FORMAT,
        **content,
        "sentences": len(texts),
        "distinct": len(distinct),
        "pairs": len(pairs),
        "student_tokens_sha256": tokens_sha256(tokens[0]),
        "teacher_tokens_sha256": tokens_sha256(tokens[1]),  # the token cache's, when both belong together
        "sha256": {name: save_array(folder / f"{name}.npy", array) for name, array in arrays.items()},
        "seconds": time.perf_counter() - began,
    }
    write_record(folder / "meta.json", meta)
    finished = Alignment.open(folder)
    assert finished is not None
    return finished


def _align(
    kind: str,
    sides: Sequence[TextTokenizer],
    tokens: Sequence[TokenSequences],
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of all texts end to end, `[P, 2]`, and where each text's begin, `[texts + 1]`."""
    (student, student_at), (teacher, teacher_at) = (
        _text_pieces(side, sequences) for side, sequences in zip(sides, tokens, strict=True)
    )
    count, done, parts = len(student), 0, [np.zeros((0, 3), np.int64)]
    for rows in _groups(np.array([[len(s), len(t)] for s, t in zip(student, teacher, strict=True)]).reshape(-1, 2)):
        found = alignment.align(kind, [teacher[i] for i in rows], [student[i] for i in rows])
        text = rows[found[:, 0]]
        parts.append(np.stack([text, student_at.of(text, found[:, 2]), teacher_at.of(text, found[:, 1])], 1))
        done += len(rows)
        if progress is not None:
            progress(done, count)
    pairs = np.concatenate(parts)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=count))]).astype(np.int64)
    longest = max(int(sequences.lengths.max(initial=0)) for sequences in tokens)
    return pairs[:, 1:].astype(np.int16 if longest <= np.iinfo(np.int16).max else np.int32), offsets


@dataclass(frozen=True)
class _Positions:
    """Where the tokens that are text lie in their sentences. positions: `[text tokens]`; starts: `[texts]`."""

    positions: np.ndarray
    starts: np.ndarray

    def of(self, text: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Position in the whole sentence of a sentence's text token of this number."""
        return self.positions[self.starts[text] + number]


def _text_pieces(side: TextTokenizer, tokens: TokenSequences) -> tuple[list[list[str]], _Positions]:
    """The plain pieces of every sentence without special tokens, and where they lie."""
    kept = ~side.special(tokens)
    counts = np.add.reduceat(kept.astype(np.int64), tokens.offsets[:-1]) if len(tokens) else np.zeros(0, np.int64)
    ends = np.cumsum(counts)
    flat = np.array(side.pieces(tokens), dtype=object)[kept]
    position = np.arange(len(tokens.ids)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    pieces = [part.tolist() for part in np.split(flat, ends[:-1])] if len(tokens) else []
    return pieces, _Positions(position[kept], ends - counts)


def _groups(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Sentences of like size together, so many that their largest alignment times their number stays below CELLS.

    sizes: tokens on both sides, `[texts, 2]`.
    """
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    start = 0
    while start < len(order):
        stop, largest = start, np.ones(2, np.int64)
        while stop < len(order):
            largest = np.maximum(largest, sizes[order[stop]])
            if stop > start and (stop + 1 - start) * largest.prod() > CELLS:
                break
            stop += 1
        yield order[start:stop]
        start = stop
