"""A corpus built out of data sets that lie elsewhere: drawn part by part with a seed, pairs flattened to their sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talas_lib.corpora.split_files import split_rows, with_text
from talas_lib.errors import TalasError
from talas_lib.texts import comparison_key, hash_order, text_fields

if TYPE_CHECKING:
    from talas_lib.params.specs import CorpusPart, CorpusSpec

FIELDS = {"texts": ("text",), "pairs": ("text1", "text2")}


@dataclass(frozen=True)
class Drawn:
    """Sentences in order with the part each is from; left_out counts the records that could not be drawn, by reason."""

    texts: tuple[str, ...]
    sources: tuple[str, ...]
    left_out: dict[str, int]


def draw_parts(spec: CorpusSpec, held_out: Collection[str], data_dir: Path | None) -> Drawn:
    """The parts of a `built` corpus, one after the other; the two sentences of a pair follow one another.

    Records without a text, and those with a text of held_out (by letters and digits), are left out before the draw. The
    draw depends on the spec's seed, the part's name and the texts, not on the order of a file; a smaller count is the
    beginning of a larger one. TalasError names the part whose data is missing, malformed or too little.
    """
    barred = {comparison_key(text) for text in held_out}
    texts, sources, left_out = list[str](), list[str](), dict[str, int]()
    for part in spec.parts:
        try:
            records = _draw(part, spec.seed, barred, data_dir, left_out)
        except TalasError as error:
            raise TalasError(f"corpus {spec.name}, part {part.name}: {error}") from error
        sentences = [text for record in records for text in record]
        texts += sentences
        sources += [part.name] * len(sentences)
    return Drawn(tuple(texts), tuple(sources), left_out)


def _draw(
    part: CorpusPart, seed: int, barred: Collection[str], data_dir: Path | None, left_out: dict[str, int]
) -> list[tuple[str, ...]]:
    fields = FIELDS[part.kind]
    hub = None if part.hub is None else part.hub.model_dump(exclude_none=True)
    where, rows = split_rows(data_dir, part.place, part.split, fields, hub, keep_empty=True)
    filled = with_text(rows, fields)
    records = list(zip(*(text_fields(where, filled, field) for field in fields), strict=True))
    free = [r for r in records if not (barred and any(comparison_key(text) in barred for text in r))]
    found = {"without a text": len(rows) - len(filled), "held out": len(filled) - len(free)}
    left_out |= {f"{part.name}, {reason}": count for reason, count in found.items() if count}
    if len(free) < part.count:
        unit = "sentences" if part.kind == "texts" else "pairs"
        reasons = "".join(f", {count:,} {reason}" for reason, count in found.items() if count)
        raise TalasError(
            f"{part.count:,} {unit} are asked for, and {where} has {len(free):,} (of {len(rows):,} records{reasons}); set"
            f" `count` to at most {len(free):,}"
        )
    return _shuffled(free, f"corpus-{seed}-{part.name}")[: part.count]


def _shuffled(records: Sequence[tuple[str, ...]], salt: str) -> list[tuple[str, ...]]:
    """Records in the order of their hashes. Copies are numbered, so that each is drawn or not for itself."""
    copies: Counter[str] = Counter()
    numbered = []
    for record in sorted(records):
        text = " ".join(record)
        key = comparison_key(text)
        numbered.append((f"{text} {copies[key] or ''}", record))
        copies[key] += 1
    return [record for _, record in hash_order(numbered, salt, lambda pair: pair[0])]
