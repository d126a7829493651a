"""How far a student agrees with its teacher on sentences it has not trained on: no labels are needed.

    python -m talas_lib.agreement [RUN] [--unseen FILE]

Three questions, each asked of the trained student and of the untrained one with either pooling: does it order pairs of sentences
as the teacher does, does it find the same neighbours, and does it rank the training sentences for a new one as the teacher does?
Agreement is no quality: where the teacher is wrong, a student that agrees is wrong with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import metrics, params, runs
from talas_lib.errors import TalasError
from talas_lib.texts import content_sha256, hash_order

if TYPE_CHECKING:
    import pandas as pd

    from talas_lib.encoders import Encoder
    from talas_lib.params import ResolvedParams, TeacherSpec

VERSION = 1  # raise it when a number changes its meaning: older records are then computed anew
DEPTH = 10  # neighbours and ranks that count
LEAST, PAIR_TEXTS, QUERIES, DOCUMENTS = 2 * DEPTH, 500, 2_000, 20_000
MEASURES = {
    "pair_spearman": "order of pairs (Spearman)",
    "overlap_at_10": "neighbours shared (of 10)",
    "ndcg_at_10": "search in the training sentences (nDCG@10)",
    "first_found": "the teacher's first among the ten",
}
MODELS = ("untrained_cls", "untrained_mean", "student")
Progress = Callable[[int, int], None]


# ---- the numbers: vectors of any length but zero, one row a text


def pair_spearman(teacher: np.ndarray, student: np.ndarray) -> tuple[float, float]:
    """Spearman correlation of the cosines of all pairs, in [-1, 1], and its standard error.

    teacher `[n, d_T]`, student `[n, d_S]`. Pairs that share a sentence are not independent, so the error is that of sentences: a
    jackknife that leaves out a tenth of them at a time. NaN for it below 20 sentences. ValueError for fewer than three.
    """
    if len(teacher) != len(student) or len(teacher) < 3:
        raise ValueError(
            f"pairs need the same three or more texts on both sides, got {len(teacher)} and {len(student)}"
        )
    cosines = [unit(vectors) @ unit(vectors).T for vectors in (teacher, student)]

    def correlation(rows: np.ndarray) -> float:
        upper = np.triu_indices(len(rows), 1)
        ours, theirs = (matrix[np.ix_(rows, rows)][upper] for matrix in cosines)
        return metrics.spearman(ours, theirs)[0] if np.ptp(theirs) > 0 else 0.0

    everyone = np.arange(len(teacher))
    if len(everyone) < 20:
        return correlation(everyone), float("nan")
    tenths = np.random.default_rng(0).permutation(everyone) % 10
    without = np.array([correlation(everyone[tenths != tenth]) for tenth in range(10)])
    return correlation(everyone), float(np.sqrt(0.9 * np.square(without - without.mean()).sum()))


def neighbour_overlap(teacher: np.ndarray, student: np.ndarray, depth: int = DEPTH) -> np.ndarray:
    """For each text, which share of the `depth` others nearest to it by the teacher is also among the student's, `[n]`.

    Chance gives depth / (n - 1). ValueError unless there are more than depth + 1 texts.
    """
    if len(teacher) <= depth + 1:
        raise ValueError(f"{depth} neighbours among others need more than {depth + 1} texts, got {len(teacher)}")
    near = [others_nearest(unit(vectors), depth) for vectors in (teacher, student)]
    return np.array([len(set(ours) & set(theirs)) / depth for ours, theirs in zip(*near, strict=True)])


def others_nearest(vectors: np.ndarray, depth: int) -> np.ndarray:
    """Positions of the `depth` nearest other rows of unit vectors, best first, int `[n, depth]`."""
    found = metrics.nearest(vectors, vectors, min(depth + 1, len(vectors)))
    return np.stack([row[row != i][:depth] for i, row in enumerate(found)])


def ranking_agreement(
    teacher: tuple[np.ndarray, np.ndarray], student: tuple[np.ndarray, np.ndarray], depth: int = DEPTH
) -> dict[str, np.ndarray]:
    """How the student's ranking of documents serves somebody who wants the teacher's; a value in [0, 1] for each query, `[q]`.

    ndcg_at_10: nDCG of the student's first ten, the teacher's first `depth` documents being worth depth, ..., 2, 1 and all
    others nothing. first_found: 1 where the teacher's best document is among the student's first ten. Both sides: vectors of the
    queries `[q, d]` and of the documents `[m, d]`. ValueError for fewer than depth + 1 documents, where nothing could be wrong.
    """
    if len(teacher[1]) <= depth:
        raise ValueError(f"a ranking to depth {depth} needs more than {depth} documents, got {len(teacher[1])}")
    (queries, documents), (own_queries, own_documents) = ([unit(v) for v in side] for side in (teacher, student))
    best = metrics.nearest(queries, documents, depth)
    worth = [{int(document): float(depth - rank) for rank, document in enumerate(row)} for row in best]
    found = metrics.nearest(own_queries, own_documents, metrics.NDCG_DEPTH)
    ndcg = metrics.retrieval_scores(own_queries, own_documents, worth)["ndcg_at_10"]
    return {"ndcg_at_10": ndcg, "first_found": (found == best[:, :1]).any(1).astype(float)}


def compare_vectors(
    teacher: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Every measure as {value, error}, 0 to 100 (the Spearman correlation may be negative); error is a standard error.

    Both sides: `texts`, vectors of unseen sentences, and `documents`, of the sentences to rank.
    """
    few = slice(PAIR_TEXTS)
    correlation, error = pair_spearman(teacher["texts"][few], student["texts"][few])
    found = {"pair_spearman": {"value": 100 * correlation, "error": 100 * error}}
    ranked = ranking_agreement((teacher["texts"], teacher["documents"]), (student["texts"], student["documents"]))
    for name, values in {"overlap_at_10": neighbour_overlap(teacher["texts"], student["texts"]), **ranked}.items():
        error = float(values.std(ddof=1)) / len(values) ** 0.5
        found[name] = {"value": 100 * float(values.mean()), "error": 100 * error}
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; a row of zeros stays."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# ---- a run


def unseen_texts(run: runs.Run, file: str | None = None) -> tuple[str, ...]:
    """Sentences the run has not trained on, each once: those of a file, or what its own corpus left out of training.

    A corpus leaves out what `hold_out` or `max_sentences` took away. Sentences whose letters and digits occur in training do not
    count. TalasError when fewer than 20 are left.
    """
    from talas_lib import sources, stages
    from talas_lib.corpora import hold_out

    p = run.params
    spec = p.corpus_spec
    if file is not None:
        own = params.load_corpus_spec(file)
        columns = {"text_column": spec.text_column} if spec.kind == "file" else {}
        spec = own.model_copy(update=columns)
    found = hold_out.unseen(sources.load_corpus(spec), stages.load_corpus(p))
    if len(found) < LEAST:
        where = f"file {file}" if file is not None else f"corpus {spec.name}, all of which but these was trained on,"
        raise TalasError(
            f"{where} holds {len(found)} sentences that run {run.id} has not seen, and {LEAST} are needed. Give a file of others"
            " (`--unseen FILE`, or the parameter `unseen` of notebook 09), or train with `-p hold_out 0.1`, which keeps a tenth"
            " of the corpus for this"
        )
    return found


def measure_run(
    run: runs.Run, *, unseen: str | None = None, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Agreement of a finished run with each of its teachers, recorded as `agreement`; not repeated for the same sentences.

    unseen: a file of sentences, None for `unseen_texts` of the corpus. The record names counts and sentences by hash, and has for
    each teacher the measures of the student and of the untrained one with CLS and with mean pooling. progress: told the models
    finished and all.
    """
    from talas_lib import stages

    p = run.params
    texts = hash_order(unseen_texts(run, unseen), "agreement")[:QUERIES]
    seen = list(dict.fromkeys(stages.load_corpus(p).texts))
    documents = hash_order(seen, "agreement")[:DOCUMENTS]
    if len(documents) <= DEPTH:
        raise TalasError(
            f"run {run.id} has trained on {len(documents)} different sentences; ranking them needs more than {DEPTH}"
        )
    content = {"version": VERSION, "texts": content_sha256(texts), "documents": content_sha256(documents)}
    record = run.read_record("agreement")
    if record is not None and {name: record.get(name) for name in content} == content:
        return record
    tell, total = progress or (lambda done, total: None), len(p.teacher_specs) + len(MODELS)
    taught, students = dict[str, dict[str, np.ndarray]](), dict[str, dict[str, np.ndarray]]()
    for spec in p.teacher_specs:
        taught[spec.name] = _teacher_vectors(p, spec, texts, documents)
        tell(len(taught), total)
    for name in MODELS:
        students[name] = _student_vectors(run, name, texts, documents, device)
        tell(len(taught) + len(students), total)
    record = {
        **content,
        "sentences": len(texts),
        "documents_ranked": len(documents),
        "from_file": unseen is not None,
        "chance_overlap": 100 * DEPTH / (len(texts) - 1),
        "teachers": {
            teacher: {name: compare_vectors(vectors, own) for name, own in students.items()}
            for teacher, vectors in taught.items()
        },
    }
    run.write_record("agreement", record)
    return record


def _teacher_vectors(
    p: ResolvedParams, spec: TeacherSpec, texts: Sequence[str], documents: Sequence[str]
) -> dict[str, np.ndarray]:
    """From the cache: that of the training corpus for the documents, one of their own for the unseen texts."""
    from talas_lib import caching, stages
    from talas_lib.corpora import Corpus

    corpus = stages.load_corpus(p)
    row = {text: number for number, text in enumerate(corpus.texts)}
    trained = caching.cache_teacher(p, corpus, spec).vectors([row[text] for text in documents])
    new = caching.cache_teacher(p, Corpus("unseen", tuple(texts), ("",) * len(texts)), spec)
    return {"texts": new.vectors(np.arange(len(texts))), "documents": trained}


def _student_vectors(
    run: runs.Run, name: str, texts: Sequence[str], documents: Sequence[str], device: str
) -> dict[str, np.ndarray]:
    encoder, pooling = load_model(run, name, device)
    vectors = encoder.encode([*texts, *documents], normalize=False, pooling=pooling)
    return {"texts": vectors[: len(texts)], "documents": vectors[len(texts) :]}


def load_model(run: runs.Run, name: str, device: str = "cpu") -> tuple[Encoder, str | None]:
    """A student of MODELS with the pooling to encode with, None for its own."""
    from talas_lib import sources, stages

    if name == "student":
        return stages.load_run_student(run).to(device), None
    return sources.load_student(run.params.student_spec, device=device), name.removeprefix("untrained_")


def table(record: Mapping[str, Any], teacher: str | None = None) -> pd.DataFrame:
    """One row a model, one column a measure, 0 to 100; teacher: the first one by default."""
    import pandas as pd

    from talas_lib.comparison import REFERENCE_LABELS

    rows = record["teachers"][teacher or next(iter(record["teachers"]))]
    labels = {**REFERENCE_LABELS, "student": "trained student"}
    values = {labels[model]: [row[name]["value"] for name in MEASURES] for model, row in rows.items()}
    return pd.DataFrame.from_dict(values, orient="index", columns=list(MEASURES.values()))


def in_words(record: Mapping[str, Any]) -> str:
    """What was compared, and how sure the numbers of the trained student are."""
    lines = []
    for teacher, rows in record["teachers"].items():
        found = rows["student"]
        parts = [f"{label} {found[n]['value']:.1f} +- {found[n]['error']:.1f}" for n, label in MEASURES.items()]
        lines.append(f"with {teacher}: " + ", ".join(parts))
    return (
        f"{record['sentences']:,} sentences that were not trained on, {record['documents_ranked']:,} training sentences to rank."
        f" Chance would share {record['chance_overlap']:.1f} of 100 neighbours. Trained student (+- one standard error),\n"
        + "\n".join(lines)
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure a run and print the table; the exit code is 2 for bad input."""
    from talas_lib import display

    parser = argparse.ArgumentParser(
        prog="python -m talas_lib.agreement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", default="latest", help="run id, or latest (the default)")
    parser.add_argument("--unseen", help="a .txt, .csv or .jsonl file of sentences the run has not trained on")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    given = parser.parse_args(words)
    try:
        from talas_lib import sources
        from talas_lib.release import model_card

        run = runs.find_run(given.run)
        where = sources.pick_device(given.device)
        record = measure_run(run, unseen=given.unseen, device=where, progress=display.progress("models"))
        model_card.write(run)
    except TalasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for teacher in record["teachers"]:
        display.say(
            f"\n{run.id}\nagreement with {teacher}, 0 to 100\n\n{table(record, teacher).round(1).to_string()}\n"
        )
    display.say(in_words(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
