"""Memory of a process that goes on for long: training steps with ASAM and probes, reads of caches of vectors and token states.

    python -m benchmarks.soak

Tiny random models, so that what grows is what the library itself keeps: each variant runs in a process of its own, and VmRSS is
written down a hundred times. `growth` is the median of the last third less that of the third before it. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from benchmarks.common import OUT, in_own_process, memory_mb, row, save
from talas_lib import params, plots, sources, stages, teacher_cache, token_cache
from talas_lib.methods.base import Needs, Objective
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import Perturbation
from talas_lib.train import train

POINTS = 100


def growth(memory: list[float]) -> float:
    """MB between the medians of the second and of the last third."""
    third = len(memory) // 3
    return float(np.median(memory[-third:]) - np.median(memory[-2 * third : -third]))


def table(variant: str, unit: str, at: list[int], memory: list[float]) -> list[dict[str, object]]:
    """A row for each point, and the growth."""
    rows = [row("soak", variant, "memory", "MB", [m], at=n) for n, m in zip(at, memory, strict=True)]
    return [*rows, row("soak", variant, f"growth over a third of {at[-1]:,} {unit}", "MB", [growth(memory)], at=at[-1])]


def training(steps: int) -> list[dict[str, object]]:
    """ASAM on the tiny pair, a probe every 25 steps and a checkpoint every 100."""
    torch.set_num_threads(1)
    p = params.resolve("03_train", {"teacher": "tiny", "student": "tiny", "corpus": "tiny", "device": "cpu"})
    corpus = stages.load_corpus(p)
    student = sources.load_student(p.student_spec)
    vectors = np.random.default_rng(0).normal(size=(len(corpus), 32)).astype(np.float32)
    method = stages.build_method(p, student=student, teacher_dims=(32,))
    data = stages.training_data(p, student, corpus, stages.Caches())
    data = type(data)(data.tokens, (lambda rows: vectors[rows],), data.text_ids, data.sources)
    per_epoch = -(-len(corpus) // 8)
    epochs = -(-steps // per_epoch)
    at: list[int] = []
    memory: list[float] = []
    every = max(1, steps // POINTS)

    def watch(found: dict[str, float]) -> None:
        at.append(int(found["step"]))
        memory.append(memory_mb("VmRSS"))

    settings = Settings(epochs=epochs, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=Perturbation("asam", 0.5))
    with tempfile.TemporaryDirectory() as folder:
        train(
            Objective(student, method, needs=p.needs),
            data,
            settings,
            checkpoint=Path(folder) / "last.safetensors",
            checkpoint_every=100,
            log_every=every,
            on_log=watch,
        )
    return table("training, ASAM", "steps", at, memory)


def reading(reads: int) -> list[dict[str, object]]:
    """Batches of 32 rows from a cache of vectors in many shards, and of 8 from token states and attention."""
    torch.set_num_threads(1)
    texts = [f"{i} {text}" for i in range(4) for text in sources.load_corpus(params.load_corpus_spec("tiny")).texts]
    teacher = sources.load_teacher(params.load_teacher("tiny"))
    needs = Needs(teacher_tokens=(-1, -2), teacher_attention=(-1,))
    rng, every = np.random.default_rng(0), max(1, reads // POINTS)
    at: list[int] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        vectors = teacher_cache.build(Path(folder), {"weights": "w"}, texts, teacher.encode, shard_size=4)
        tokens = token_cache.build(Path(folder), {"weights": "w"}, texts, needs, lambda: teacher)
        for number in range(1, reads + 1):
            vectors.vectors(rng.integers(0, len(texts), 32))
            tokens.tokens(rng.integers(0, len(texts), 8))
            if number % every == 0:
                at.append(number)
                memory.append(memory_mb("VmRSS"))
    return table("reading, vectors and token states", "reads", at, memory)


def figure(rows: list[dict[str, object]]) -> plt.Figure:
    """Memory as it goes, one panel a variant, from zero up."""
    found = pd.DataFrame(rows)
    found = found[found["metric"] == "memory"]
    variants = list(dict.fromkeys(found["variant"]))
    drawn, panels = plt.subplots(1, len(variants), figsize=(5 * len(variants), 3), layout="constrained", squeeze=False)
    for axes, variant in zip(panels[0], variants, strict=True):
        here = found[found["variant"] == variant]
        axes.plot(here["at"], here["median"])
        axes.set(
            title=variant,
            xlabel="reads" if "reading" in variant else "steps",
            ylabel="memory (MB)",
            ylim=(0, 1.2 * here["median"].max()),
        )
    drawn.suptitle("Memory stays where it is after the first steps")
    return drawn


def measure(steps: int, reads: int, run: Callable[..., list[dict[str, object]]]) -> list[dict[str, object]]:
    """Rows of both variants; run: calls a function with arguments, such as in_own_process."""
    for spec in (params.load_teacher("tiny"), params.load_student("tiny")):
        sources.model_folder(spec)  # built once, before anything is measured
    return [*run(training, steps), *run(reading, reads)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    rows = measure(chosen.steps, chosen.reads, in_own_process)
    save(rows, "soak", chosen.out)
    plots.save(figure(rows), chosen.out / "soak.png")


if __name__ == "__main__":
    main()
