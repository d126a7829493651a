"""Tiny synthetic tasks of every kind, over the topics of the tiny corpus: for tests and the smoke preset."""

from __future__ import annotations

import random

from talas_lib.tasks.data import Classification, Clustering, Pairs, Regression, Retrieval, Similarity, Sources
from talas_lib.tasks.packaged import balanced
from talas_lib.tiny_texts import SLOTS, TOPICS, TinySentence, tiny_sentences


def tiny_topics(
    sources: Sources, *, train_per_label: int = 10, test_per_label: int = 10, seed: int = 1
) -> Classification:
    """Which topic is a sentence about?"""
    sentences = tiny_sentences(len(TOPICS) * (train_per_label + test_per_label), seed)
    texts = {topic: [s.text for s in sentences if s.topic == topic] for topic in TOPICS}
    return balanced(texts, f"tiny-{seed}", train_per_label, test_per_label)


def tiny_clusters(sources: Sources, *, sentences: int = 60, seed: int = 5) -> Clustering:
    """Sentences to be found together by topic."""
    drawn = tiny_sentences(sentences, seed)
    return Clustering(tuple(s.text for s in drawn), tuple(s.topic for s in drawn))


def tiny_ratings(sources: Sources, *, train: int = 60, test: int = 60, seed: int = 6) -> Regression:
    """How far down its topic's lists of words a sentence's words stand, 0 to 12."""
    drawn = tiny_sentences(train + test, seed)
    texts, scores = tuple(s.text for s in drawn), tuple(float(sum(s.choice)) for s in drawn)
    return Regression(texts[:train], scores[:train], texts[train:], scores[train:])


def tiny_pairs(sources: Sources, *, pairs: int = 60, seed: int = 2) -> Pairs:
    """The same content in other words (1) against a sentence of another topic (0), in turn."""
    rng = random.Random(f"tiny-pairs-{seed}")
    sentences = tiny_sentences(2 * pairs, seed)
    rows: list[tuple[str, str, int]] = []
    for i in range(pairs):
        left, other = sentences[2 * i], sentences[2 * i + 1]  # neighbours differ in topic
        rows.append((left.text, left.changed(1, rng).text, 1) if i % 2 else (left.text, other.text, 0))
    left_column, right_column, labels = zip(*rows, strict=True)
    return Pairs(left_column, right_column, labels)


def tiny_similarity(sources: Sources, *, pairs: int = 60, seed: int = 3) -> Similarity:
    """How many of the four content slots two sentences share: 0 to 4."""
    rng = random.Random(f"tiny-similarity-{seed}")
    sentences = tiny_sentences(pairs, seed)
    rows: list[tuple[str, str, float]] = []
    for i, sentence in enumerate(sentences):
        different = i % (len(SLOTS) + 1)
        rows.append((sentence.text, sentence.changed(different, rng).text, float(len(SLOTS) - different)))
    left_column, right_column, scores = zip(*rows, strict=True)
    return Similarity(left_column, right_column, scores)


def tiny_retrieval(sources: Sources, *, queries: int = 30, documents: int = 60, seed: int = 4) -> Retrieval:
    """Find the sentence with the same content in another frame."""
    rng = random.Random(f"tiny-retrieval-{seed}")
    contents: dict[tuple[str, tuple[int, ...]], TinySentence] = {}
    for sentence in tiny_sentences(2 * documents, seed):
        contents.setdefault((sentence.topic, sentence.choice), sentence)
    chosen = list(contents.values())[:documents]
    return Retrieval(
        queries=tuple(sentence.reframed(rng).text for sentence in chosen[:queries]),
        documents=tuple(sentence.text for sentence in chosen),
        relevant=tuple({i: 1.0} for i in range(min(queries, len(chosen)))),
    )
