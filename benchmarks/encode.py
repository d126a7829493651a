"""Sentences a second when a teacher's vectors are cached: the library against SentenceTransformer.encode, in turn.

python -m benchmarks.encode [--sentences 2048] [--teacher minilm-l6] [--corpus mini]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import cpu_name, git_revision, row
from talas_lib import params, sources


def measure(teacher_name: str, corpus: str, sentences: int, rounds: int) -> pd.DataFrame:
    """Throughput of both, the ratio pair by pair, and the smallest cosine between their vectors."""
    from sentence_transformers import SentenceTransformer

    spec = params.load_teacher(teacher_name)
    texts = list(sources.load_corpus(params.load_corpus_spec(corpus)).texts)[:sentences]
    ours = sources.load_teacher(spec)
    theirs = SentenceTransformer(str(sources.model_folder(spec)), device="cpu", local_files_only=True)
    theirs.max_seq_length = spec.max_length
    speed: dict[str, list[float]] = {"SentenceTransformer.encode": [], "fp32": [], "bf16": []}
    vectors = {}
    for _ in range(rounds):
        for name in speed:
            began = time.perf_counter()
            if name == "SentenceTransformer.encode":
                vectors[name] = np.asarray(theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False))
            else:
                vectors[name] = ours.encode(texts, normalize=True, precision=name)
            speed[name].append(len(texts) / (time.perf_counter() - began))
    base = speed["SentenceTransformer.encode"]
    rows = []
    for name, values in speed.items():
        rows.append(row("encode", name, "throughput", "sentences/s", values))
        rows.append(row("encode", name, "speedup", "x", [v / b for v, b in zip(values, base, strict=True)]))
        cosine = (vectors[name] * vectors["SentenceTransformer.encode"]).sum(1)
        rows.append(row("encode", name, "smallest cosine", "", [float(cosine.min())]))
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=2048)
    parser.add_argument("--teacher", default="minilm-l6")
    parser.add_argument("--corpus", default="mini")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    chosen = parser.parse_args()
    table = measure(chosen.teacher, chosen.corpus, chosen.sentences, chosen.rounds)
    table = table.assign(teacher=chosen.teacher, corpus=chosen.corpus, git=git_revision(), cpu=cpu_name())
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "encode.csv", index=False, float_format="%.7g")
    print(table.drop(columns=["git", "cpu"]).to_string(index=False))


if __name__ == "__main__":
    main()
