"""Builders over files of the user's: `<data_dir>/<folder>/<split>.jsonl.gz`, or the same data set from the hub.

A file holds one JSON object a line: `{text, label}` for classification and clustering, `{text1, text2, label}` with label 0 or 1
for pairs, `{text1, text2, score}` for similarity and for the regression of pairs, `{text, score}` for that of texts. Retrieval
has corpus.jsonl.gz and queries.jsonl.gz with `{id, text}` and qrels.tsv.gz with query id, document id and gain a line.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from talas_lib.corpora.split_files import Hub, local_file, missing, split_rows
from talas_lib.errors import TalasError
from talas_lib.tasks.data import (
    Classification,
    Clustering,
    PairRegression,
    Pairs,
    Regression,
    Retrieval,
    Similarity,
    Sources,
)
from talas_lib.texts import comparison_key, lines_of, number_fields, read_lines, text_fields

QRELS_HEADER = ["query-id", "corpus-id", "score"]  # a first line that BEIR's files have


def labelled(
    sources: Sources, *, folder: str, train: str = "train", test: str = "test", hub: Hub | None = None
) -> Classification:
    """Classification over a train and a test split."""
    columns = []
    for split in (train, test):
        where, rows = split_rows(sources.data_dir, folder, split, ("text", "label"), hub)
        columns += [tuple(text_fields(where, rows, "text")), tuple(str(row.fields["label"]) for row in rows)]
    return Classification(*columns)


def labelled_pairs(sources: Sources, *, folder: str, split: str = "test", hub: Hub | None = None) -> Pairs:
    """Pairs with label 1 or 0; with `hub.positive` that label is 1 and every other 0."""
    where, rows = split_rows(sources.data_dir, folder, split, ("text1", "text2", "label"), hub)
    wrong = [row for row in rows if row.fields["label"] not in (0, 1)]
    if wrong:
        raise TalasError(f"{where}, {lines_of(wrong)}: label {wrong[0].fields['label']!r} is neither 0 nor 1")
    left, right = tuple(text_fields(where, rows, "text1")), tuple(text_fields(where, rows, "text2"))
    return Pairs(left, right, tuple(int(row.fields["label"]) for row in rows))


def scored_pairs(sources: Sources, *, folder: str, split: str = "test", hub: Hub | None = None) -> Similarity:
    """Pairs with a human similarity score."""
    where, rows = split_rows(sources.data_dir, folder, split, ("text1", "text2", "score"), hub)
    left, right = tuple(text_fields(where, rows, "text1")), tuple(text_fields(where, rows, "text2"))
    return Similarity(left, right, tuple(number_fields(where, rows, "score")))


def labelled_clusters(sources: Sources, *, folder: str, split: str = "test", hub: Hub | None = None) -> Clustering:
    """The texts of one split of a classification set, to be found together by label."""
    where, rows = split_rows(sources.data_dir, folder, split, ("text", "label"), hub)
    return Clustering(tuple(text_fields(where, rows, "text")), tuple(str(row.fields["label"]) for row in rows))


def rated_texts(
    sources: Sources, *, folder: str, train: str = "train", test: str = "test", hub: Hub | None = None
) -> Regression:
    """Texts with a human rating, in two splits."""
    columns: list[tuple[Any, ...]] = []
    for split in (train, test):
        where, rows = split_rows(sources.data_dir, folder, split, ("text", "score"), hub)
        columns += [tuple(text_fields(where, rows, "text")), tuple(number_fields(where, rows, "score"))]
    return Regression(*columns)


def rated_pairs(
    sources: Sources, *, folder: str, train: str = "train", test: str = "test", hub: Hub | None = None
) -> PairRegression:
    """Pairs with a human score, in two splits."""
    return PairRegression(*(scored_pairs(sources, folder=folder, split=split, hub=hub) for split in (train, test)))


def paraphrases(sources: Sources, *, folder: str, split: str = "test", hub: Hub | None = None) -> Retrieval:
    """Pairs turned into a search: find a text's paraphrases among the right sides of all pairs, also of those with label 0.

    Queries are the left sides of pairs with label 1 that are not, by letters and digits, among the documents.
    """
    pairs = labelled_pairs(sources, folder=folder, split=split, hub=hub)
    documents: dict[str, str] = {}
    for text in pairs.right:
        documents.setdefault(comparison_key(text), text)
    place = {key: i for i, key in enumerate(documents)}
    texts: dict[str, str] = {}
    answers: dict[str, dict[int, float]] = {}
    for left, right, label in zip(pairs.left, pairs.right, pairs.labels, strict=True):
        key = comparison_key(left)
        if label and key not in place:
            texts.setdefault(key, left)
            answers.setdefault(key, {})[place[comparison_key(right)]] = 1.0
    return Retrieval(tuple(texts.values()), tuple(documents.values()), tuple(answers.values()))


def judged_documents(sources: Sources, *, folder: str) -> Retrieval:
    """Queries, documents and the gain of each relevant document; queries without one are left out.

    TalasError for an id that occurs twice or is not known, and for two different gains of one document.
    """
    documents, ids = _with_ids(sources, folder, "corpus")
    queries, query_ids = _with_ids(sources, folder, "queries")
    file = local_file(sources.data_dir, folder, "qrels", (".tsv.gz", ".tsv"))
    if file is None:
        raise missing(sources.data_dir, folder, "qrels.tsv.gz")
    relevant: list[dict[int, float]] = [{} for _ in queries]
    judged: dict[tuple[int, int], float] = {}
    for row in read_lines(file):
        parts = row.fields["text"].split("\t")
        if row.line == 1 and parts == QRELS_HEADER:
            continue
        try:
            query, document, gain = query_ids[parts[0]], ids[parts[1]], float(parts[2])
        except (KeyError, IndexError, ValueError):
            raise TalasError(
                f"{file}, line {row.line}: {row.fields['text']!r} is not a known query id, a known document id and a gain"
            ) from None
        if not np.isfinite(gain) or judged.setdefault((query, document), gain) != gain:
            raise TalasError(
                f"{file}, line {row.line}: {row.fields['text']!r} is no finite gain, or another one than before for the same "
                "query and document; keep one line for each"
            )
        if gain > 0:
            relevant[query][document] = gain
    answered = [i for i, gains in enumerate(relevant) if gains]
    return Retrieval(tuple(queries[i] for i in answered), tuple(documents), tuple(relevant[i] for i in answered))


def _with_ids(sources: Sources, folder: str, stem: str) -> tuple[list[str], dict[str, int]]:
    file, rows = split_rows(sources.data_dir, folder, stem, ("id", "text"), None)
    ids: dict[str, int] = {}
    for i, row in enumerate(rows):
        if ids.setdefault(str(row.fields["id"]), i) != i:
            raise TalasError(f"{file}, line {row.line}: the id {row.fields['id']!r} occurs twice; ids must differ")
    return text_fields(file, rows, "text"), ids
