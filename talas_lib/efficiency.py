"""What an encoder costs: its parameters, and the time it takes to encode a sentence on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

SENTENCES = 256  # measured on
_PASSES, _ENOUGH_S = 3, 10.0  # a slow encoder is measured in one pass


def count_parameters(encoder: Any) -> dict[str, int]:
    """`parameters`, all of them, and `parameters_without_embeddings`, without the table of token vectors.

    encoder: `encoders.Encoder` or `static_encoder.StaticEncoder`. The table is looked up, not computed with, so the second
    number is the one that goes with the time.
    """
    total = sum(p.numel() for p in encoder.parameters())
    model = getattr(encoder, "model", None)
    table = encoder.table if model is None else model.get_input_embeddings().weight
    return {"parameters": total, "parameters_without_embeddings": total - table.numel()}


def sample(texts: Sequence[str], count: int = SENTENCES) -> list[str]:
    """`count` of the distinct texts, evenly spaced, or all when there are fewer."""
    distinct = list(dict.fromkeys(texts))
    return [distinct[i] for i in np.linspace(0, len(distinct) - 1, min(count, len(distinct))).astype(int)]


def ms_per_sentence(
    encode: Callable[[Sequence[str]], Any], texts: Sequence[str], *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Wall milliseconds a text, tokenising included: the median of three passes over the texts, or one of over 10 s.

    encode returns when the vectors are there. Texts have to differ, as equal ones are computed once.
    """
    seconds: list[float] = []
    while len(seconds) < _PASSES and sum(seconds) < _ENOUGH_S:
        began = clock()
        encode(texts)
        seconds.append(clock() - began)
    return 1000 * median(seconds) / len(texts)


def measure(encoder: Any, encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> dict[str, Any]:
    """Parameters, milliseconds a sentence, and what that was measured on: sentences, threads, device.

    encode: the encoder as it is evaluated. texts: those of the suite; a sample of them is encoded.
    """
    chosen = sample(texts)
    return {
        **count_parameters(encoder),
        "ms_per_sentence": ms_per_sentence(encode, chosen),
        "sentences": len(chosen),
        "threads": torch.get_num_threads(),
        "device": str(encoder.device),
    }


def with_score(measured: Mapping[str, Any], score: float) -> dict[str, Any]:
    """What `measure` gave, with the score (a suite's average) for each million parameters and for each millisecond."""
    millions, ms = measured["parameters"] / 1e6, measured["ms_per_sentence"]
    return {**measured, "score_per_million_parameters": score / millions, "score_per_ms": score / ms}
