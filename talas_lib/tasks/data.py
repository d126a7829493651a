"""The kinds of evaluation data and the task around them. Rows of a test split come in no meaningful order."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from talas_lib.errors import TalasError
from talas_lib.texts import comparison_key, content_sha256


class _Split:
    """What tasks with a train and a test split of texts share; the fields are the subclass's."""

    train_texts: tuple[str, ...]
    test_texts: tuple[str, ...]

    @property
    def all_texts(self) -> tuple[str, ...]:
        return self.train_texts + self.test_texts

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.test_texts

    def __len__(self) -> int:
        return len(self.test_texts)


@dataclass(frozen=True)
class Classification(_Split):
    """Labelled texts: a probe is fitted on the train split and scored on the test split."""

    train_texts: tuple[str, ...]
    train_labels: tuple[str, ...]
    test_texts: tuple[str, ...]
    test_labels: tuple[str, ...]

    kind: ClassVar[str] = "classification"

    @property
    def counts(self) -> dict[str, int]:
        labels = {f"test {label}": n for label, n in sorted(Counter(self.test_labels).items())}
        few = labels if len(labels) <= 10 else {}
        return {"train": len(self.train_texts), "test": len(self), "labels": len(labels), **few}


@dataclass(frozen=True)
class _TwoSided:
    left: tuple[str, ...]
    right: tuple[str, ...]

    @property
    def all_texts(self) -> tuple[str, ...]:
        return self.left + self.right

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.all_texts

    def __len__(self) -> int:
        return len(self.left)

    def unseen_rows(self, keys: Collection[str]) -> list[int]:
        """Pairs of which neither side is, by its comparison key, among the keys."""
        pairs = zip(self.left, self.right, strict=True)
        return [i for i, pair in enumerate(pairs) if not any(comparison_key(side) in keys for side in pair)]


@dataclass(frozen=True)
class Pairs(_TwoSided):
    """Pairs that belong together (1) or not (0)."""

    labels: tuple[int, ...]

    kind: ClassVar[str] = "pair"

    @property
    def counts(self) -> dict[str, int]:
        return {"pairs": len(self), "positive": sum(self.labels), "texts": len(set(self.all_texts))}


@dataclass(frozen=True)
class Similarity(_TwoSided):
    """Pairs with a human similarity on any increasing scale."""

    scores: tuple[float, ...]

    kind: ClassVar[str] = "similarity"

    @property
    def counts(self) -> dict[str, int]:
        return {"pairs": len(self), "texts": len(set(self.all_texts))}


@dataclass(frozen=True)
class Retrieval:
    """Queries, documents, and for each query the gain (> 0) of its relevant documents by their position."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[Mapping[int, float], ...]

    kind: ClassVar[str] = "retrieval"

    @property
    def all_texts(self) -> tuple[str, ...]:
        return self.queries + self.documents

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.all_texts

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def counts(self) -> dict[str, int]:
        gains = sum(len(row) for row in self.relevant)
        return {"queries": len(self), "documents": len(self.documents), "relevant": gains}


@dataclass(frozen=True)
class Clustering:
    """Labelled texts to be grouped without their labels, of which there are at least two."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    kind: ClassVar[str] = "clustering"

    def __post_init__(self) -> None:
        if self.texts and len(set(self.labels)) < 2:
            raise TalasError(
                f"all {len(self)} texts to cluster have the label {self.labels[0]!r}; two labels are needed"
            )

    @property
    def all_texts(self) -> tuple[str, ...]:
        return self.texts

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.texts

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def counts(self) -> dict[str, int]:
        return {"texts": len(self), "labels": len(set(self.labels))}


@dataclass(frozen=True)
class Regression(_Split):
    """Texts with a human rating: a ridge regression is fitted on the train split and scored on the test split."""

    train_texts: tuple[str, ...]
    train_scores: tuple[float, ...]
    test_texts: tuple[str, ...]
    test_scores: tuple[float, ...]

    kind: ClassVar[str] = "regression"

    @property
    def counts(self) -> dict[str, int]:
        return {"train": len(self.train_texts), "test": len(self)}


@dataclass(frozen=True)
class PairRegression:
    """Pairs of texts with a human score, in a train and a test split: the regression sees |u - v| and u * v."""

    train: Similarity
    test: Similarity

    kind: ClassVar[str] = "regression"

    @property
    def all_texts(self) -> tuple[str, ...]:
        return self.train.all_texts + self.test.all_texts

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.test.all_texts

    def __len__(self) -> int:
        return len(self.test)

    @property
    def counts(self) -> dict[str, int]:
        return {"train": len(self.train), "test": len(self)}


TaskData = Classification | Pairs | Similarity | Retrieval | Clustering | Regression | PairRegression


@dataclass(frozen=True)
class Sources:
    """Where builders find files: a packaged asset's folder by name, and the root of local data, if there is one."""

    assets: Callable[[str], Path]
    data_dir: Path | None = None


@dataclass(frozen=True)
class Task:
    """Evaluation data with its name, metric and provenance.

    in_domain: whether its texts come from the corpus's sources, None if that is not said. in_average: counts in the suite's
    averages. protocol: how its suite is scored. sha256 is over the content, so equal hashes mean equal texts, labels and
    order.
    """

    name: str
    metric: str
    data: TaskData
    in_domain: bool | None = None
    in_average: bool = True
    protocol: str = "mini"
    source: str = ""
    licence: str | None = None

    def __post_init__(self) -> None:
        columns = [getattr(self.data, column.name) for column in dataclasses.fields(self.data)]
        if not len(self.data) or not all(columns):
            raise TalasError(f"task {self.name} holds an empty column: {self.data.counts}")

    @property
    def kind(self) -> str:
        """classification, pair, similarity, retrieval, clustering or regression."""
        return self.data.kind

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, texts and labels there are."""
        return self.data.counts

    @property
    def sha256(self) -> str:
        """Identity of the content."""
        if isinstance(self.data, PairRegression):
            return content_sha256([dataclasses.asdict(self.data.train), dataclasses.asdict(self.data.test)])
        columns = dataclasses.fields(self.data)
        values = {column.name: getattr(self.data, column.name) for column in columns if column.name != "relevant"}
        if isinstance(self.data, Retrieval):
            values["relevant"] = [sorted(row.items()) for row in self.data.relevant]
        return content_sha256(values)


def held_out_texts(tasks: Collection[Task]) -> frozenset[str]:
    """Every text of a test split: what a training corpus must not hold."""
    return frozenset(text for task in tasks for text in task.data.held_out)
