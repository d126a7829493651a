"""What the pages under docs name is there, and what is there is named."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from test_architecture import PACKAGE, ROWS, modules, room

from talas_lib import methods, params

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHOD, ARCHITECTURE = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("method", "architecture"))


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells, without their rule."""
    found, rows = [], list[list[str]]()
    for line in [*text.splitlines(), ""]:
        if re.match(r" {0,3}\|", line):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]])
        elif rows:
            found.append([row for row in rows if not re.fullmatch(r":?-+:?", row[0])])
            rows = []
    return found


def table(text: str, first: str) -> list[list[str]]:
    """The body of the one table whose first column has this heading."""
    (found,) = [rows[1:] for rows in tables(text) if rows[0][0] == first]
    return found


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_readme_s_tables_are_those_of_their_files() -> None:
    """`<!-- table: file -->` stands above a table: the same rows by name, and numbers that are the file's, rounded.

    With `columns: a b` after the file, numbers of these columns alone, of the rows that the column `row` names.
    """
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    marked = re.findall(r"<!-- table: (\S+)(?: columns: (.+))? -->\n((?:\|.*\n)+)", text)
    assert marked
    assert len(marked) == text.count("<!-- table:")
    for file, columns, shown in marked:
        with (DOCS.parent / file).open(encoding="utf-8", newline="") as stream:
            found = list(csv.DictReader(stream))
        rows = {row["row" if columns else next(iter(row))]: row for row in found}
        for name, *cells in tables(shown)[0][1:]:
            values = [rows[name][column] for column in columns.split()] if columns else list(rows[name].values())[1:]
            known = [value for value in values if _is_number(value)]
            assert cells == [f"{float(value):.{_digits(cell)}f}" for value, cell in zip(known, cells, strict=True)], (
                file,
                name,
            )
        assert not columns or set(rows) == {name for name, *_ in tables(shown)[0][1:]}, file


def _digits(number: str) -> int:
    return len(number.partition(".")[2])


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", cell) is not None


def test_tables_are_whole() -> None:
    for page in DOCS.glob("*.md"):
        for rows in tables(page.read_text(encoding="utf-8")):
            assert {len(row) for row in rows} == {len(rows[0])}, (page.name, rows[0])


def test_the_module_table_is_the_direction_of_imports() -> None:
    rows = table(ARCHITECTURE, "row")
    found = [{name.rstrip("/") for name in named(cells)} for _, cells in rows]
    found[2] &= {"methods"}  # named with a word about what is inside
    edges = {room(file) for file in modules()} - {"__init__", "errors"} - {n for names in ROWS for n in names.split()}
    assert found == [*(set(names.split()) for names in ROWS), edges]


def test_every_method_has_a_row_and_a_section() -> None:
    rows = table(METHOD, "method")
    assert sorted(named(row[0])[0] for row in rows) == methods.available()
    sections = [name for line in METHOD.splitlines() if line.startswith("#") for name in named(line)]
    assert sorted(sections) == methods.available()


@pytest.mark.parametrize("name", methods.available())
def test_the_table_says_what_the_method_asks_for(name: str) -> None:
    _, signal, _, _, views, strong = next(row for row in table(METHOD, "method") if named(row[0]) == [name])
    config = params.load_method(name)
    if strong != "-":
        assert params.load_method(name, yaml.safe_load(named(strong)[0])) != config
    if methods.builds_student(name):
        return
    needs = methods.needs(name, config)
    assert ("vector" in signal) == (needs.teachers[0] > 0 and name != "emo")  # whose loss reads tokens only
    assert ("token states" in signal) == bool(needs.teacher_tokens)
    assert ("attention" in signal) == bool(needs.teacher_attention)
    assert ("pairs" in signal) == (needs.alignment is not None)
    assert needs.alignment is None or needs.alignment in named(signal)
    sizes = {"student_dim": 8, "teacher_dims": (8,) * max(needs.teachers[0], 1), "num_layers": 3}
    method = methods.method_class(name)(config, **sizes, generator=torch.Generator())  # type: ignore[call-arg]
    assert views.endswith(str(method.views))


def test_the_functions_of_the_table_of_terms_are_there() -> None:
    for *_, functions in table(METHOD, "term"):
        for name in named(functions):
            path, _, attribute = name.rpartition(".")
            assert callable(getattr(importlib.import_module(f"talas_lib.{path}"), attribute)), name


def test_every_optimizer_is_described() -> None:
    section = METHOD[METHOD.index("## Optimizers") : METHOD.index("## The largest eigenvalue")]
    assert set(params.available("optimizers")) <= set(named(section))


def test_other_files_that_the_pages_name_are_there() -> None:
    root = PACKAGE.parent
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (DOCS / link).exists(), (page.name, link)
        for path in re.findall(r"`((?:talas_lib|tests|params|notebooks)/[\w/.]+)`", text):
            assert (root / path).exists() or "mine" in path, (page.name, path)


# ---- docs/reliability.md


def named_tests(page: str) -> list[tuple[str, str]]:
    """(file, words of `-k`) of a page, in order: words alone belong to the file that was named last; no words mean all of it."""
    found, file = [], ""
    for quoted in re.findall(r"`([^`]+)`", page):
        file = (re.findall(r"tests/test_\w+\.py", quoted) or [file])[0]
        words = re.search(r"-k (?:\"([^\"]+)\"|(\w+))", quoted)
        if words or "tests/test_" in quoted:
            found.append((file, (words[1] or words[2]) if words else ""))
    return found


def test_every_test_that_the_reliability_page_names_is_there() -> None:
    """Each word of each `-k` selects a test of its file by the test's name, as pytest would; nothing is collected for it."""
    found = named_tests((DOCS / "reliability.md").read_text(encoding="utf-8"))
    assert len(found) > 30
    for file, words in found:
        source = (PACKAGE.parent / file).read_text(encoding="utf-8")
        names = [name.lower() for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)]
        assert names, file
        for word in words.lower().split(" or ") if words else []:
            assert re.fullmatch(r"\w+", word), (file, words)
            assert any(word in name for name in names), (file, word)


# ---- docs/scale.md

SECONDS = {"minutes": 60, "hours": 3600, "days": 86_400}
MEASURED = {
    "caching in fp32": ("encode", "encode", "fp32", "throughput"),
    "caching in bf16": ("encode", "encode", "bf16", "throughput"),
    "an epoch, AdamW, bf16": ("steps", "step-adamw", "bf16", "time"),
    "an epoch, ASAM, bf16": ("steps", "step-asam", "bf16", "time"),
    "an epoch, ASAM, fp32": ("steps", "step-asam", "fp32", "time"),
    "memory of caching beside the texts": ("flat", "encode-flat", "1,000,000 sentences", "memory, beside the texts"),
}


def number(text: str) -> float:
    return float(re.findall(r"[\d,.]*\d", text)[0].replace(",", ""))


def test_the_costs_are_reckoned_from_what_was_measured() -> None:
    """The measured column is that of results/bench (a tenth for another day), the others follow from it but for rounding."""
    scale = (DOCS / "scale.md").read_text(encoding="utf-8")
    (rows,) = [found[1:] for found in tables(scale) if "batches of 32" in found[0][0]]
    left = dict(MEASURED)
    for what, measured, million, hundred in rows:
        if what not in left:
            continue
        file, *key = left.pop(what)
        record = pd.read_csv(
            PACKAGE.parent / "results" / "bench" / f"{file}.csv", index_col=["bench", "variant", "metric"]
        )
        assert number(measured) == pytest.approx(float(record["median"][tuple(key)]), rel=0.1), what
        if "memory" in what:
            continue
        one = 1e6 / number(measured) if "second" in measured else 1e6 / 32 * number(measured) / 1000
        for text, seconds in ((million, one), (hundred, 100 * one)):
            unit = SECONDS[text.split()[1]]
            digits = len(text.split()[0].partition(".")[2])
            assert number(text) == pytest.approx(seconds / unit, abs=0.51 * 10**-digits), (what, text)
    assert not left
