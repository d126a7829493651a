"""ms per step and memory over the steps, method by method, each in a process of its own: the form of the paper's Table 3.

    python -m benchmarks.methods [--steps 5] [--student minilm-l3 bert-base-shape] [--methods simcse talas ...] [--corpus mini]

The memory of a step is the most its process had resident during that step (VmHWM, begun anew before each one), everything
included: libraries, weights, optimizer state, activations. `before the student` is what the process had when it began to load
the student.

`bert-base-shape` is the paper's largest student with random weights, beside a teacher as wide as Qwen3-4B (2,560): as fast and as
large as the trained one, without a download. By default it trains the methods of the paper's table, minilm-l3 all there are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.common import OUT, default_corpus, forget_peak, in_own_process, memory_mb, row, save
from benchmarks.phases import variants
from benchmarks.workload import BERT_BASE, Variant, Workload, trained_methods

IN_THE_PAPER = ["simcse", "distillcse", "jasper_stella", "emo", "dskd", "cdm", "talas"]
QWEN3_4B, MPNET = 2560, 768  # widths of the paper's largest teacher, and of ours
WARMUP = 2
LARGE_STEPS, LARGE_WARMUP = 3, 1  # a step of the large student takes seconds


def one(name: str, variant: Variant, work: Workload, steps: int, warmup: int = WARMUP) -> list[dict[str, object]]:
    """Rows of one method, measured in this process."""
    work.tokens  # noqa: B018 (read before the memory is looked at)
    before = memory_mb("VmRSS")
    trainer = work.trainer(variant)
    times, peaks = [], []
    for rows in work.batches(warmup + steps):
        forget_peak()
        began = time.perf_counter()
        trainer.step(rows)
        times.append(1e3 * (time.perf_counter() - began))
        peaks.append(memory_mb("VmHWM"))
    times, peaks = times[warmup:], peaks[warmup:]
    spread = float(np.std(peaks, ddof=1)) if len(peaks) > 1 else 0.0
    about = {"student": work.student, "teacher_dim": trainer.teacher_dim}
    over_steps = about | {"n": len(peaks)}
    return [
        row("methods", name, "time", "ms", times, **about),
        row("methods", name, "memory", "MB", peaks, **about),
        row("methods", name, "memory, mean", "MB", [float(np.mean(peaks))]) | over_steps,
        row("methods", name, "memory, peak", "MB", [max(peaks)]) | over_steps,
        row("methods", name, "memory, standard deviation", "MB", [spread]) | over_steps,
        row("methods", name, "memory, before the student", "MB", [before], **about),
    ]


def measure(work: Workload, names: list[str], steps: int, warmup: int) -> list[dict[str, object]]:
    """Rows of several methods for one student."""
    return [
        found
        for name, variant in variants(names).items()
        for found in in_own_process(one, name, variant, work, steps, warmup)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help=f"of {BERT_BASE} at most {LARGE_STEPS}")
    parser.add_argument("--student", nargs="+", default=["minilm-l3", BERT_BASE])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--corpus", default=None, help="default: talas15k where TALAS_DATA holds it, else mini")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    corpus = chosen.corpus or default_corpus()
    rows = []
    for student in chosen.student:
        large = student == BERT_BASE
        names = chosen.methods or (IN_THE_PAPER if large else trained_methods())
        steps = min(chosen.steps, LARGE_STEPS) if large else chosen.steps
        work = Workload(student, corpus, QWEN3_4B if large else MPNET)
        rows += measure(work, names, steps, LARGE_WARMUP if large else WARMUP)
    save(rows, "methods", chosen.out, corpus=corpus)


if __name__ == "__main__":
    main()
