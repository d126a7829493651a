"""One signal of a token cache on disk: a layer's hidden states or a block's attention weights of all texts, end to end.

The array is one file, filled shard by shard; the record beside it names the shards that are there, each by its hash, and is
rewritten atomically after each. A shard counts when the record says so and its bytes agree.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from talas_lib.cache_files import ragged_index, read_record, write_record
from talas_lib.encoders import autocast, batches_by_length
from talas_lib.errors import TalasError
from talas_lib.packed import Layout, TokenSequences

if TYPE_CHECKING:
    from talas_lib.encoders import Encoder

LARGEST = float(torch.finfo(torch.float16).max)  # 65504


@dataclass(frozen=True, order=True)
class Signal:
    """Hidden states of a layer, or head-averaged attention of a block, counted from the top: -1 is the last."""

    kind: Literal["hidden", "attention"]
    level: int

    @property
    def name(self) -> str:
        """hidden-1, attention-2, ..."""
        return f"{self.kind}{self.level}"


class SignalFile:
    """`<name>.npy`, fp16 `[tokens, dim]` or `[cells]`, and its record `<name>.json`.

    bounds: first row of each shard and the end, int64 `[shards + 1]`; dim: width of the rows, None for attention; tokens: hash of
    the tokenised texts. A file with another shape or of other tokens counts as not there.
    """

    def __init__(self, folder: Path, signal: Signal, bounds: np.ndarray, dim: int | None, tokens: str) -> None:
        self.signal = signal
        self.bounds = bounds
        self.file = folder / f"{signal.name}.npy"
        self._record_file = folder / f"{signal.name}.json"
        self._shape = [int(bounds[-1])] if dim is None else [int(bounds[-1]), dim]
        self._tokens = tokens

    @cached_property
    def _record(self) -> dict[str, Any]:
        """What is on disk, or the record of a file with nothing in it."""
        empty: dict[str, Any] = {
            "shape": self._shape,
            "tokens": self._tokens,
            "seconds": 0.0,
            "shards": [None] * (len(self.bounds) - 1),
        }
        if not (self._record_file.is_file() and self.file.is_file()):
            return empty
        try:
            found = read_record(self._record_file, "token cache record")
        except TalasError:
            return empty
        same = all(found.get(key) == empty[key] for key in ("shape", "tokens"))
        return found if same and len(found.get("shards", [])) == len(empty["shards"]) else empty

    @property
    def seconds(self) -> float:
        return float(self._record["seconds"])

    def shard_bytes(self, shard: int) -> int:
        return 2 * int(self.bounds[shard + 1] - self.bounds[shard]) * int(np.prod(self._shape[1:]))

    def open(self) -> np.ndarray | None:
        """The memory-mapped array, every shard verified; None while some are missing. TalasError for a damaged file."""
        if None in self._record["shards"]:
            return None
        if self.missing():
            raise TalasError(f"token cache file {self.file} is damaged; delete it and cache again")
        return np.asarray(self._array())

    def missing(self) -> set[int]:
        """Shards that are not recorded or whose bytes are not those recorded."""
        array, shards = self._array(), self._record["shards"]
        if array is None:
            return set(range(len(shards)))
        parts = [array[i:j] for i, j in zip(self.bounds[:-1], self.bounds[1:], strict=True)]
        return {n for n, known in enumerate(shards) if known is None or _sha256(parts[n]) != known}

    def begin(self, gone: set[int]) -> None:
        """Make the file and its record ready for `write`; gone: the shards to come."""
        if self._array() is None:
            staging = self.file.with_name(f".{self.file.name}.{uuid.uuid4().hex[:8]}.tmp")
            np.lib.format.open_memmap(staging, mode="w+", dtype=np.float16, shape=tuple(self._shape))
            os.replace(staging, self.file)
        shards = [None if n in gone else known for n, known in enumerate(self._record["shards"])]
        self._record |= {"shards": shards}
        write_record(self._record_file, self._record)

    def put(self, shard: int, values: np.ndarray) -> str:
        """Write a shard in its place; its hash. As a file and not through a map: a full disk is then an OSError and no crash."""
        array = self._array()
        assert array is not None
        row_bytes = 2 * int(np.prod(self._shape[1:]))
        with self.file.open("r+b") as stream:
            stream.seek(array.offset + int(self.bounds[shard]) * row_bytes)  # type: ignore[attr-defined]
            stream.write(values.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        return _sha256(values)

    def note(self, shard: int, sha256: str, seconds: float) -> None:
        """Enter a shard that is in its place into the record."""
        self._record["shards"][shard] = sha256
        self._record["seconds"] += seconds
        write_record(self._record_file, self._record)

    def _array(self) -> np.ndarray | None:
        """The array as it lies there; None when there is none of this shape."""
        try:
            array = np.load(self.file, mmap_mode="r")
        except (OSError, ValueError):
            return None
        return array if list(array.shape) == self._shape and array.dtype == np.float16 else None


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


@torch.no_grad()
def encode_signals(
    encoder: Encoder, texts: Sequence[str], tokens: TokenSequences, wanted: Sequence[Signal], precision: str
) -> dict[Signal, np.ndarray]:
    """The signals of some texts, fp16, texts end to end; one pass in evaluation mode, packed by length.

    tokens: of these texts. TalasError, by text, for values that are not finite or beyond fp16.
    """
    lengths = tokens.lengths
    counts = {s: lengths if s.kind == "hidden" else lengths**2 for s in wanted}
    starts = {s: np.cumsum(n) - n for s, n in counts.items()}
    tails = {s: (encoder.dim,) if s.kind == "hidden" else () for s in wanted}
    out = {s: np.empty((int(counts[s].sum()), *tails[s]), np.float16) for s in wanted}
    blocks = [s.level for s in wanted if s.kind == "attention"]
    was_training = encoder.training
    encoder.eval()
    try:
        for rows in batches_by_length(lengths, 4096):
            ids, taken = tokens.take(rows)
            layout = Layout.of(taken).to(encoder.device)
            with autocast(encoder.device, precision):
                hidden, attention = encoder.states(ids.to(encoder.device), layout, blocks)
            square = layout.valid[:, :, None] & layout.valid[:, None]
            for signal in wanted:
                values = hidden[signal.level] if signal.kind == "hidden" else attention[signal.level][square]
                values = values.float()  # 65504 is no bf16 number
                _check_range(values, counts[signal][rows], [texts[i] for i in rows], signal)
                out[signal][ragged_index(starts[signal][rows], counts[signal][rows])] = values.half().cpu().numpy()
    finally:
        encoder.train(was_training)
    return out


def _check_range(values: Tensor, counts: np.ndarray, texts: Sequence[str], signal: Signal) -> None:
    bad = ~(values.abs() <= LARGEST)  # NaN as well
    if not bad.any():
        return
    first = int(bad.flatten(1).any(1).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
    text = texts[int(np.searchsorted(np.cumsum(counts), first, side="right"))]
    worst = float(values[first].abs().max())
    raise TalasError(
        f"the teacher's {signal.name} holds {worst:g} for {text!r}, and the cache keeps numbers up to {LARGEST:g} (fp16);"
        " remove the text, or take a teacher, method or layer without such outliers"
    )
