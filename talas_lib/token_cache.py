"""A teacher's token states on disk: fp16, ragged, each signal in a file of its own that every method can share.

A cache is a folder `<root>/tokens-<key>` for one teacher and one list of texts. `meta.json` says which tokens there are; a
signal, a layer's hidden states or a block's attention weights, is `<signal>.npy` with `<signal>.json` beside it. A method
that needs one signal more has only that one computed.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talas_lib import distribution
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
from talas_lib.methods.base import Needs, TeacherTokens
from talas_lib.packed import Layout, TokenSequences
from talas_lib.signal_files import Signal, SignalFile, encode_signals
from talas_lib.tokenization import TextTokenizer, tokens_sha256

if TYPE_CHECKING:
    from talas_lib.encoders import Encoder

FORMAT = 1
SHARD = 1 << 23  # weight of a shard (see _shards): 32,768 tokens in sentences of at most 256
RESERVE = 256 << 20  # bytes left free on the disk
WHAT = "token cache file"
ARRAYS = ("lengths", "special", "place")
Written = tuple[Signal, int, str, float]  # signal, shard, sha256, seconds
log = logging.getLogger(__name__)


def signals(needs: Needs) -> list[Signal]:
    """The signals a method reads."""
    hidden = [Signal("hidden", level) for level in needs.teacher_tokens]
    return sorted({*hidden, *(Signal("attention", block) for block in needs.teacher_attention)})


def estimate(lengths: np.ndarray, dim: int, needs: Needs) -> int:
    """Bytes on disk for sentences of these many tokens and a teacher of width `dim`."""
    tokens, cells = int(lengths.sum()), int(np.square(lengths.astype(np.int64)).sum())
    wanted = signals(needs)
    values = sum(tokens * dim if s.kind == "hidden" else cells for s in wanted)
    return 2 * values + tokens + 16 * len(lengths)  # fp16; special, lengths, place


@dataclass(frozen=True)
class TokenCache:
    """A finished cache, opened for some signals. tokens(rows) gives a batch of them."""

    folder: Path
    meta: Mapping[str, Any]
    _lengths: np.ndarray  # tokens of each distinct text
    _special: np.ndarray  # bool, all tokens end to end
    _place: np.ndarray  # corpus row -> distinct text
    _offsets: np.ndarray  # first token of each distinct text
    _cells: np.ndarray  # first attention cell of each distinct text
    _arrays: Mapping[Signal, np.ndarray]
    seconds: float  # time the encoding of these signals took, over all attempts

    @classmethod
    def open(cls, root: Path, identity: Mapping[str, Any], texts: Sequence[str], needs: Needs) -> TokenCache | None:
        """Open and verify what a method needs; None when a part of it is not there or unfinished.

        Every file is hashed against its record. TalasError names a damaged file and the way out.
        """
        folder = cache_folder(root, identity, texts)
        if not (folder / "meta.json").is_file():
            return None
        meta = read_record(folder / "meta.json", WHAT)
        lengths, special, place = _load_index(folder, meta)
        offsets, cells = _offsets(lengths), _offsets(lengths**2)
        files = _files(folder, meta, lengths, signals(needs))
        found = {file.signal: array for file in files if (array := file.open()) is not None}
        if len(found) < len(files):
            return None
        seconds = sum(file.seconds for file in files)
        return cls(folder, meta, lengths, special, place, offsets[:-1], cells[:-1], found, seconds)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def dim(self) -> int:
        return int(self.meta["dim"])

    @property
    def bytes(self) -> int:
        """Bytes on disk of the opened signals and of what all signals share."""
        names = [*(f"{name}.npy" for name in ARRAYS), *(f"{signal.name}.npy" for signal in self._arrays)]
        return sum((self.folder / name).stat().st_size for name in names)

    def tokens(self, rows: Sequence[int] | np.ndarray) -> TeacherTokens:
        """The token states of corpus rows, padded on the right, fp32."""
        texts = self._place[np.asarray(rows)]
        lengths = self._lengths[texts]
        at = ragged_index(self._offsets[texts], lengths)
        layout = Layout.of(torch.from_numpy(lengths))
        special = torch.zeros_like(layout.valid)
        special[layout.valid] = torch.from_numpy(self._special[at])
        states = {s.level: layout.pad(_fp32(a[at])) for s, a in self._arrays.items() if s.kind == "hidden"}
        attention = {}
        if len(states) < len(self._arrays):
            square = layout.valid[:, :, None] & layout.valid[:, None]
            at = ragged_index(self._cells[texts], lengths**2)
            for signal, array in self._arrays.items():
                if signal.kind == "attention":
                    attention[signal.level] = torch.zeros(square.shape).masked_scatter_(square, _fp32(array[at]))
        return TeacherTokens(layout.valid, special, states, attention)


def cache_folder(root: Path, identity: Mapping[str, Any], texts: Sequence[str]) -> Path:
    """The folder of a teacher's tokens of these texts. identity: all that changes them, the precision included."""
    key = content_key({"format": FORMAT, "teacher": dict(identity), "texts": texts_sha256(texts)})
    return root / f"tokens-{key}"


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def build(
    root: Path,
    identity: Mapping[str, Any],
    texts: Sequence[str],
    needs: Needs,
    load: Callable[[], Encoder],
    *,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
    free_bytes: Callable[[Path], int] = _free_bytes,
    shard: int = SHARD,
) -> TokenCache:
    """The cache of these texts under this teacher: opened when all signals are there, else the missing ones are computed.

    load: gives the teacher, and is called only then. Each distinct text is encoded once for all missing signals, in
    batches of equal length; after a kill, building again goes on at the first unfinished shard. Two processes that build the
    same cache take turns; those of one launch share the shards (see distribution). `progress(done, all)` counts distinct texts.
    TalasError when the disk cannot hold it, before anything is encoded, for a layer the teacher does not have, and for states
    that fp16 cannot hold, by text.
    """
    if identity.get("precision", precision) != precision:
        raise ValueError(f"the identity says precision {identity['precision']!r}, the call {precision!r}")
    folder = cache_folder(root, identity, texts)
    root.mkdir(parents=True, exist_ok=True)
    with taking_turns(root / f"{folder.name}.lock"):
        cache = None
        with contextlib.suppress(TalasError):  # what is damaged is made again, and only that
            cache = TokenCache.open(root, identity, texts, needs)
        if cache is not None:
            return cache
        teacher = load()
        _check_levels(teacher, needs)
        distinct, place = distinct_texts(texts)
        tokens = teacher.tokenize(distinct)
        folder.mkdir(exist_ok=True)
        about = {"teacher": dict(identity), "texts_sha256": texts_sha256(texts), "shard": shard}
        meta = distribution.first_then_all(lambda: _index(folder, teacher, tokens, place, about))
        files = _files(folder, meta, tokens.lengths, signals(needs))
        gone = {file: numbers for file in files if (numbers := file.missing())}
        _check_disk(folder, tokens, gone, free_bytes(folder))
        distribution.wait()
        if distribution.is_first():
            for file in gone:
                file.begin(gone[file])
        distribution.wait()

        def write(number: int, start: int, stop: int) -> list[Written]:
            writing = [file for file in gone if number in gone[file]]
            return _write(writing, number, teacher, distinct[start:stop], _part(tokens, start, stop), precision)

        _fill(gone, _shards(tokens.lengths, meta["shard"]).tolist(), write, progress)
        distribution.wait()
        finished = TokenCache.open(root, identity, texts, needs)
        if finished is None:
            raise RuntimeError(f"{folder} was changed while it was being built")
        return finished


def _fill(
    files: Iterable[SignalFile],
    bounds: Sequence[int],
    write: Callable[[int, int, int], list[Written]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Have every shard written and then entered into the records; of several processes each writes every so many-th, the first
    keeps the records."""
    ranks, by_signal = distribution.current(), {file.signal: file for file in files}
    own, count = (0, 1) if ranks is None else (ranks.number, ranks.count)
    for start in range(0, len(bounds) - 1, count):
        number = start + own
        written = write(number, bounds[number], bounds[number + 1]) if number < len(bounds) - 1 else []
        for signal, shard, sha256, seconds in written if ranks is None else chain(*ranks.exchange(written)):
            if own == 0:
                by_signal[signal].note(shard, sha256, seconds)
        if progress is not None and own == 0:
            progress(bounds[min(start + count, len(bounds) - 1)], bounds[-1])


def _write(
    files: Sequence[SignalFile],
    number: int,
    teacher: Encoder,
    texts: Sequence[str],
    tokens: TokenSequences,
    precision: str,
) -> list[Written]:
    """Compute one shard of some signals in one pass, and write it; what is to be entered into their records."""
    if not files:
        return []
    began = time.perf_counter()
    values = encode_signals(teacher, texts, tokens, [file.signal for file in files], precision)
    seconds = (time.perf_counter() - began) / len(files)
    return [(file.signal, number, file.put(number, values[file.signal]), seconds) for file in files]


def _part(tokens: TokenSequences, start: int, stop: int) -> TokenSequences:
    """Sentences start to stop."""
    offsets = tokens.offsets[start : stop + 1]
    return TokenSequences(tokens.ids[offsets[0] : offsets[-1]], offsets - offsets[0])


def _index(
    folder: Path, teacher: Encoder, tokens: TokenSequences, place: np.ndarray, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What all signals share: written unless it is there for these tokens. The record's content."""
    meta_file, sha256 = folder / "meta.json", tokens_sha256(tokens)
    with contextlib.suppress(TalasError):
        meta = read_record(meta_file, WHAT)
        if meta["tokens_sha256"] == sha256:
            about = {**about, "shard": meta["shard"]}  # what the signals that are there were written by
            _load_index(folder, meta)
            return meta
    special = TextTokenizer.of(teacher).special(tokens)
    arrays = {"lengths": tokens.lengths, "special": special, "place": place}
    meta = {
        "format": FORMAT,
        **about,
        "sentences": len(place),
        "distinct": len(tokens),
        "tokens": len(tokens.ids),
        "tokens_sha256": sha256,
        "dim": teacher.dim,
        "sha256": {name: save_array(folder / f"{name}.npy", array) for name, array in arrays.items()},
    }
    write_record(meta_file, meta)
    return meta


def _load_index(folder: Path, meta: Mapping[str, Any]) -> list[np.ndarray]:
    return [np.asarray(load_array(folder / f"{n}.npy", meta["sha256"][n], WHAT)) for n in ARRAYS]


def _files(folder: Path, meta: Mapping[str, Any], lengths: np.ndarray, wanted: Sequence[Signal]) -> list[SignalFile]:
    bounds = _shards(lengths, meta["shard"])
    tokens, cells = _offsets(lengths)[bounds], _offsets(lengths**2)[bounds]
    sizes = {"hidden": (tokens, meta["dim"]), "attention": (cells, None)}
    return [SignalFile(folder, signal, *sizes[signal.kind], meta["tokens_sha256"]) for signal in wanted]


def _shards(lengths: np.ndarray, shard: int) -> np.ndarray:
    """First sentence of each shard and the end. A sentence weighs its attention cells, a short one as if of 256 tokens a
    row; a shard begins where the weight before it passes a multiple of `shard`."""
    weight = lengths * np.maximum(lengths, 256)
    number = (np.cumsum(weight) - weight) // shard
    return np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(lengths))


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _fp32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float()


def _check_levels(teacher: Encoder, needs: Needs) -> None:
    """TalasError for a layer or block the teacher does not have."""
    for signal in signals(needs):
        count = teacher.num_layers + (signal.kind == "hidden")
        if not -count <= signal.level <= -1:
            raise TalasError(
                f"the method reads {signal.name} of a teacher that has {signal.kind}-1 to {signal.kind}-{count}"
            )


def _check_disk(folder: Path, tokens: TokenSequences, gone: Mapping[SignalFile, set[int]], free: int) -> None:
    """TalasError when what is missing does not fit; otherwise the estimate is logged."""
    needed = sum(file.shard_bytes(number) for file, numbers in gone.items() for number in numbers)
    names = ", ".join(file.signal.name for file in gone) or "no states"
    what = f"{names} of {len(tokens):,} texts with {len(tokens.ids):,} tokens"
    if needed + RESERVE > free:
        raise TalasError(
            f"the token cache needs {needed:,} bytes for {what}, and {folder} has {free:,} free, of which {RESERVE:,} are"
            " kept; take fewer texts (max_sentences) or a smaller max_length of the teacher, put the outputs on another disk"
            " (TALAS_OUTPUTS), or make room with `make clean-cache`"
        )
    log.info("token cache %s: %s bytes for %s", folder.name, f"{needed:,}", what)
