"""Caching a teacher's vectors: sentences a second against SentenceTransformer.encode, and memory as the corpus grows.

    python -m benchmarks.encode [--sentences 1024] [--rounds 5] [--teacher minilm-l6] [--corpus mini]
    python -m benchmarks.encode --flat 10000 100000 1000000

Throughput: both encode the same sentences in turn, round by round; SentenceTransformer.encode as it comes (fp32, 32 sentences a
batch), the library through `teacher_cache.build` into an empty folder, so hashing and writing count. The vectors are
compared by the smallest cosine of a sentence's two.

Memory (`--flat`): made-up short sentences and the tiny teacher, each size in a process of its own, into an empty folder. `beside
the texts` is the most memory the process had while it built the cache, less what it had before, when the texts were
there and the teacher had encoded a batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.common import OUT, default_corpus, forget_peak, in_own_process, memory_mb, row, save
from talas_lib import params, sources, teacher_cache
from talas_lib.encoders import quiet
from talas_lib.tiny_texts import SLOTS, TOPICS

THEIRS = "SentenceTransformer.encode"
BEFORE_AND_AFTER = [
    ("", "."),
    ("we saw that ", "."),
    ("everybody noticed how ", "."),
    ("yesterday ", ", as usual."),
]
_STRIDE = 750_361  # shares no factor with the number of sentences there are: neighbours differ in every word


# ---- throughput


def cached(encode: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Seconds to build a cache of the texts, and its vectors."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cache = teacher_cache.build(Path(folder), {"teacher": "benchmark"}, texts, encode)
        seconds = time.perf_counter() - began
        return seconds, cache.vectors(np.arange(len(texts)))


def throughput(
    teacher: str, texts: Sequence[str], rounds: int, tokens: Sequence[int] = (4096,)
) -> list[dict[str, object]]:
    """Rows of both ways. tokens: of a batch, where 4096 is what the library takes by itself; others show what it would give."""
    from sentence_transformers import SentenceTransformer

    spec = params.load_teacher(teacher)
    ours = sources.load_teacher(spec)
    with quiet():
        theirs = SentenceTransformer(str(sources.model_folder(spec)), device="cpu", local_files_only=True)
    theirs.max_seq_length = spec.max_length

    def reference() -> tuple[float, np.ndarray]:
        began = time.perf_counter()
        vectors = theirs.encode(list(texts), normalize_embeddings=spec.normalize, show_progress_bar=False)
        return time.perf_counter() - began, np.asarray(vectors)

    def library(precision: str, size: int) -> tuple[float, np.ndarray]:
        return cached(lambda some: ours.encode(some, precision=precision, tokens_per_batch=size), texts)

    ways: dict[str, Callable[[], tuple[float, np.ndarray]]] = {THEIRS: reference}
    for precision, size in product(("fp32", "bf16"), tokens):
        name = precision if size == 4096 else f"{precision}, {size} tokens a batch"
        ways[name] = lambda precision=precision, size=size: library(precision, size)
    theirs.encode(list(texts[:64]), show_progress_bar=False)
    ours.encode(texts[:64])
    speed: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds, vectors[name] = way()
            speed[name].append(len(texts) / seconds)
    rows = []
    for name, values in speed.items():
        rows.append(row("encode", name, "throughput", "sentences/s", values))
        rows.append(row("encode", name, "speedup", "x", [v / b for v, b in zip(values, speed[THEIRS], strict=True)]))
        rows.append(row("encode", name, "smallest cosine", "", [smallest_cosine(vectors[name], vectors[THEIRS])]))
    return rows


def smallest_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Over the rows of two arrays."""
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left.astype(np.float64), right.astype(np.float64)))
    return float((u * v).sum(1).min())


# ---- memory


def made_up(count: int) -> list[str]:
    """Distinct short sentences from the words of the tiny corpus, topics mixed; always the same. ValueError beyond 1,327,104."""
    words = [[text for topic in TOPICS.values() for text in topic[slot]] for slot in SLOTS]
    sizes = [len(BEFORE_AND_AFTER), *map(len, words)]
    there = int(np.prod(sizes))
    if count > there:
        raise ValueError(f"there are only {there} such sentences, {count} are wanted")
    found = []
    for number in range(count):
        frame, *picked = np.unravel_index(number * _STRIDE % there, sizes)
        before, after = BEFORE_AND_AFTER[frame]
        found.append(before + " ".join(w[i] for w, i in zip(words, picked, strict=True)) + after)
    return found


def building(teacher: str, count: int) -> list[dict[str, object]]:
    """Rows of one size, measured in this process."""
    texts = made_up(count)
    encoder = sources.load_teacher(params.load_teacher(teacher))
    encoder.encode(texts[:1024])
    before = memory_mb("VmRSS")
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        teacher_cache.build(Path(folder), {"teacher": "benchmark"}, texts, encoder.encode)
        seconds = time.perf_counter() - began
    variant = f"{count:,} sentences"
    values = {
        "throughput": ("sentences/s", count / seconds),
        "memory, before": ("MB", before),
        "memory, beside the texts": ("MB", memory_mb("VmHWM") - before),
        "memory, left afterwards": ("MB", memory_mb("VmRSS") - before),
    }
    return [row("encode-flat", variant, name, unit, [v], sentences=count) for name, (unit, v) in values.items()]


def memory(teacher: str, counts: Sequence[int]) -> list[dict[str, object]]:
    """Rows of several sizes."""
    sources.model_folder(params.load_teacher(teacher))  # built once, before anything is measured
    return [found for count in counts for found in in_own_process(building, teacher, count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flat", type=int, nargs="+", default=None, help="measure memory at these sizes instead")
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teacher", default="minilm-l6")
    parser.add_argument("--corpus", default=None, help="default: talas15k where TALAS_DATA holds it, else mini")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096], help="tokens a batch, to compare several")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    if chosen.flat:
        save(memory("tiny", chosen.flat), "flat", chosen.out, teacher="tiny")
        return
    corpus = chosen.corpus or default_corpus()
    texts = sources.load_corpus(params.load_corpus_spec(corpus)).texts
    distinct = list(dict.fromkeys(texts))
    spread = np.linspace(0, len(distinct) - 1, min(chosen.sentences, len(distinct))).astype(int)
    rows = throughput(chosen.teacher, [distinct[i] for i in spread], chosen.rounds, chosen.tokens)
    save(rows, "encode", chosen.out, teacher=chosen.teacher, corpus=corpus)


if __name__ == "__main__":
    main()
