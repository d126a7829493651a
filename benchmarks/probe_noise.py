"""How far a classification score moves when nothing has changed: the same vectors with rounding noise.

    TALAS_DATA=... python -m benchmarks.probe_noise [--tasks paper] [--noise 1e-6] [--draws 3] [--iterations 200 2000]

Every number of the fp32 vectors is multiplied by 1 + noise * z, z standard normal, which is what another order of summation does
to them; bf16 stands beside. Each variant's macro-F1 less that of the untouched vectors, and how many predictions differ, with the
protocol's 200 iterations of the probe and with enough for it to converge. Not timed, so it may run beside other work; not part
of `make bench`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.common import OUT, default_corpus, row, save
from talas_lib import params, probes, sources
from talas_lib.evaluate import PROTOCOLS, Vectors
from talas_lib.tasks import Classification, Task

BENCH = "probe-noise"


def of_task(task: Task, vectors: dict[str, Vectors], *, iterations: int) -> list[dict[str, object]]:
    """Rows of one task: variants against the first of `vectors`, which is the exact one."""
    data = task.data
    assert isinstance(data, Classification)
    raw = PROTOCOLS[task.protocol] == "raw"
    found: dict[str, tuple[float, np.ndarray]] = {}
    converged = {}
    before, probes.MAX_ITER = probes.MAX_ITER, iterations
    try:
        for name, of in vectors.items():
            features = of if raw else of.unit
            f1, details, items = probes.probe_macro_f1(
                features(data.train_texts), data.train_labels, features(data.test_texts), data.test_labels
            )
            found[name], converged[name] = (100 * f1, items["predicted"]), float(details["converged"])
    finally:
        probes.MAX_ITER = before
    exact_f1, exact = found.pop(next(iter(vectors)))
    rows = []
    for kind in dict.fromkeys(name.split("#")[0] for name in found):
        part = {name: value for name, value in found.items() if name.split("#")[0] == kind}
        values = {
            ("difference of macro-F1", "points"): [abs(f1 - exact_f1) for f1, _ in part.values()],
            ("predictions that differ", ""): [float(np.count_nonzero(p != exact)) for _, p in part.values()],
            ("converged", "share"): [converged[name] for name in part],
        }
        beside = {"task": task.name, "items": len(exact), "iterations": iterations}
        rows += [row(BENCH, kind, metric, unit, v) | beside for (metric, unit), v in values.items()]
    return rows


def measure(student: str, suite: str, *, noise: float, draws: int, iterations: list[int]) -> list[dict[str, object]]:
    """Tidy rows over the suite's classification tasks."""
    tasks = [t for t in sources.load_tasks(params.load_tasks(suite)) if isinstance(t.data, Classification)]
    encoder = sources.load_student(params.load_student(student)).eval()
    rows = []
    for task in tasks:
        exact = Vectors.of(lambda texts: encoder.encode(texts, normalize=False), [task])
        vectors = {"fp32": exact}
        texts = list(exact.row)
        for draw in range(draws):
            z = np.random.default_rng(draw).standard_normal(exact.raw.shape).astype(np.float32)
            vectors[f"noise {noise:g}#{draw}"] = Vectors(texts, exact.raw * (1 + np.float32(noise) * z))
        vectors["bf16"] = Vectors(texts, encoder.encode(texts, normalize=False, precision="bf16"))
        for limit in iterations:
            rows += of_task(task, vectors, iterations=limit)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="minilm-l3")
    parser.add_argument("--tasks", default=None, help="default: paper where TALAS_DATA holds it, else mini")
    parser.add_argument("--noise", type=float, default=1e-6)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--iterations", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    suite = chosen.tasks or ("paper" if default_corpus() == "talas15k" else "mini")
    rows = measure(chosen.student, suite, noise=chosen.noise, draws=chosen.draws, iterations=list(chosen.iterations))
    save(rows, "probe_noise", chosen.out, student=chosen.student, suite=suite)


if __name__ == "__main__":
    main()
