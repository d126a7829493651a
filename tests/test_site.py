"""The site of `make docs`: what it shows is all there is, its links hold, and, where its packages are installed, it builds."""

from __future__ import annotations

import re
import shutil
import tomllib
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.website import execute, hooks, linking, links, pages, reference, tables

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"results/": tables.nav(), "api/": reference.api_nav()}
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
HAVE_MKDOCS = all(find_spec(name) for name in ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings", "mathjax"))


def written_nav() -> list[Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]


def shown() -> list[str]:
    return list(pages.files_of(pages.navigation(GENERATED)))


# ---- navigation


def test_every_entry_of_the_navigation_is_there() -> None:
    for path in pages.files_of(written_nav()):
        assert path in GENERATED or (ROOT / path).is_file(), path
    generated = {path for path, _ in reference.api_pages()} | set(tables.pages())
    assert {path for path in shown() if path not in generated and not (ROOT / path).is_file()} == set()


def test_notebooks_come_in_the_order_of_the_course() -> None:
    course = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    order = dict.fromkeys(re.findall(r"\]\(\.\./(notebooks/\w+\.ipynb)\)", course))
    assert [path for path in shown() if path.endswith(".ipynb")] == list(order)


def test_nothing_is_shown_twice() -> None:
    assert len(shown()) == len(set(shown()))


def test_every_notebook_page_and_module_is_in_the_navigation() -> None:
    listed = set(shown())
    assert {f"notebooks/{file.name}" for file in (ROOT / "notebooks").glob("*.ipynb")} <= listed
    assert set(pages.texts()) <= listed
    assert {reference.api_page(name) for name in reference.modules()} <= listed
    assert {path.relative_to(ROOT / "results").parts[0] for path in (ROOT / "results").glob("*/")} >= {
        folder.name for folder in tables.folders()
    }


def test_modules_are_the_packages_files() -> None:
    files = {file for file in (ROOT / "talas_lib").rglob("*.py") if not re.match(r"_(?!_)", file.name)}
    assert set(reference.modules().values()) == files
    assert all(reference.summary(file) for file in files), "a module without a docstring"


def test_the_groups_are_the_rows_of_the_architecture_page() -> None:
    found = reference.groups()
    assert len(found) == 5
    assert sorted(name for row in found.values() for name in row) == sorted(
        {name.partition(".")[0] for name in reference.modules() if name}
    )


# ---- execution


def test_every_notebook_is_executed_once_and_shown() -> None:
    jobs = [*execute.chain(), *execute.alone()]
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.name for job in jobs} >= {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")}
    for job in jobs:
        assert dict(job.values).get("student", "tiny") == "tiny"


def test_a_change_of_what_is_read_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("one")
    before = execute.key(["*.py"], {"epochs": 1})
    assert execute.key(["*.py"], {"epochs": 1}) == before
    assert execute.key(["*.py"], {"epochs": 2}) != before
    (tmp_path / "a.py").write_text("two")
    changed = execute.key(["*.py"], {"epochs": 1})
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, execute.key(["*.py"], {"epochs": 1})}) == 3


BROKEN = nbformat.v4.new_notebook(
    cells=[nbformat.v4.new_code_cell("raise ValueError('no such thing')")],
    metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
)


@pytest.mark.slow
def test_a_notebook_that_fails_is_named_and_executed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    nbformat.write(BROKEN, tmp_path / "notebooks" / "broken.ipynb")
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path / "notebooks")
    for _ in range(2):
        with pytest.raises(execute.NotebookFailed, match=r"notebooks/broken\.ipynb failed[\s\S]*no such thing"):
            execute._lane(tmp_path / "made", [execute.Job("broken")])


# ---- pages


def outside_of_code(text: str) -> Iterator[str]:
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", linking.FENCE.sub("", text))


def test_the_glossary_names_what_is_there() -> None:
    linker = linking.Linker()
    for span in outside_of_code(GLOSSARY):
        if "." in span or "/" in span:
            assert linker.target(span, "docs/glossary.md"), span
    terms = re.findall(r"^### (.+)$", GLOSSARY, re.MULTILINE)
    assert len(terms) == len(set(terms)) > 50


def slugs(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", linking.FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("path", pages.texts())
def test_links_between_texts_hold(path: str) -> None:
    text = linking.FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = (ROOT / path).parent / file if file else ROOT / path
            assert target.exists(), link
            if anchor and target.suffix == ".md":
                assert anchor in slugs(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("`losses.tamd`", "docs/method.md", "[`losses.tamd`](../api/losses.md#talas_lib.losses.tamd)"),
        ("`runs.Run`", "README.md", "[`runs.Run`](api/runs.md#talas_lib.runs.Run)"),
        ("`train.TrainingResult`", "a/b/c.md", "[`train.TrainingResult`](../../api/train.md#talas_lib.train.TrainingResult)"),
        ("`talas_lib/losses.py`", "docs/x.md", "[`talas_lib/losses.py`](../api/losses.md)"),
        ("`talas_lib/methods/`", "docs/x.md", "[`talas_lib/methods/`](../api/methods/README.md)"),
        ("`params/presets/smoke.yaml`", "docs/x.md", "[`params/presets/smoke.yaml`](../files/params/presets/smoke.yaml.md)"),
        ("`losses`", "docs/architecture.md", "[`losses`](../api/losses.md)"),
        ("`losses`", "docs/method.md", "`losses`"),  # a word there
        ("`no.such`, `outputs/x.yaml`", "docs/x.md", "`no.such`, `outputs/x.yaml`"),
        ("[b](../results/bench)", "docs/x.md", "[b](../results/bench/README.md)"),
        ("[`losses.tamd`](y.md)", "docs/x.md", "[`losses.tamd`](y.md)"),
        ("    `losses.tamd`", "docs/x.md", "    `losses.tamd`"),
        ("```\n`losses.tamd`\n```", "docs/x.md", "```\n`losses.tamd`\n```"),
    ],
)  # fmt: skip
def test_what_a_text_names_is_linked(text: str, page: str, expected: str) -> None:
    assert linking.Linker().linked(text, page) == expected


def test_links_of_notebooks_lead_to_built_pages() -> None:
    linked = linking.Linker().linked("[b](01_data.ipynb) `losses.tamd`", "notebooks/00_quickstart.ipynb", pages.as_html)
    assert linked == "[b](01_data.html) [`losses.tamd`](../api/losses.html#talas_lib.losses.tamd)"
    assert pages.as_html("results/README.md") == "results/index.html"


def test_an_executed_notebook_shows_no_path_and_no_progress_bar(tmp_path: Path) -> None:
    outputs = tmp_path / "key" / "outputs"
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        nbformat.v4.new_output("stream", text=f"{outputs}/run/model\n{ROOT}/params/x"),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "100%"}),
    ]
    (tmp_path / "key" / "nb").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "key" / "nb" / "x.ipynb")
    book = nbformat.reads(pages.notebook_page("x", tmp_path / "key" / "nb" / "x.ipynb", linking.Linker()), as_version=4)
    (output,) = book.cells[0].outputs
    assert output.text == "outputs/run/model\nparams/x"


def test_each_notebook_says_how_it_was_executed() -> None:
    assert "numbers mean nothing" in hooks.notice("03_train.ipynb")
    assert "random weights" in hooks.notice("a1_asam_in_two_dimensions.ipynb")
    assert "in the repository" in hooks.notice("07_efficiency.ipynb")


def test_slim_notebooks_keep_their_code() -> None:
    styles: list[str] = []
    code = '<div class="highlight-ipynb hl-python "><pre><span></span>x = 1\n</pre></div>'
    html = f'<script src="https://a.b/c.js"></script><style>p {{}}</style><style>p {{}}</style>{code}'
    assert hooks.slimmed(html, styles) == (
        '<div class="language-python highlight"><pre><code><span></span>x = 1\n</code></pre></div>'
    )
    assert styles == ["p {}"]


# ---- results


@pytest.mark.parametrize(
    "file", sorted((ROOT / "results").rglob("*.csv")), ids=lambda file: str(file.relative_to(ROOT))
)
def test_every_results_table_is_shown_with_all_its_rows(file: Path) -> None:
    head, rows = tables.read(file)
    constant, left = tables.split_constant(head, rows)
    html = tables.table(file)
    assert html.count("<tr>") == (1 + len(rows) if rows else 0)
    for number, name in enumerate(head):
        if number not in left:
            assert {row[number] for row in rows} == {constant.get(name, "")}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("62.0425", "62.0425"), ("3.172103641735011", "3.1721"), ("9.096e-05", "9.096e-05"), ("16779.92123", "16779.9"),
     ("8.123456789e-06", "8.1235e-06"), ("80.66 ± 0.58", "80.66 ± 0.58"), ("d88db7c+", "d88db7c+"), ("1234567", "1234567")],
)  # fmt: skip
def test_numbers_are_shown_short(cell: str, expected: str) -> None:
    assert tables.shown(cell) == expected


# ---- the link checker


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html#there">x</a><img src="p.png"><a href="https://example.org">x</a>', None),
        ('<a href="none.html">x</a>', "leads nowhere"),
        ('<a href="b.html#gone">x</a>', "without this anchor"),
        ('<a href="#gone">x</a>', "without this anchor"),
        ('<img src="none.png">', "leads nowhere"),
        ('<img src="https://example.org/p.png">', "fetched from elsewhere"),
        ('<script src="//example.org/x.js"></script>', "fetched from elsewhere"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "fetched from elsewhere"),
        ("<style>@import 'https://example.org/x.css';</style>", "fetched from elsewhere"),
        ('<a href="/root.html">x</a>', "only works on one machine"),
        ("results/<report>/x", "no HTML"),
    ],
)
def test_the_checker_finds_what_is_wrong(body: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<html><body>{body}</body></html>")
    (tmp_path / "b.html").write_text('<html><body><h1 id="there">x</h1></body></html>')
    (tmp_path / "p.png").touch()
    found = links.faults(tmp_path)
    assert len(found) == (fault is not None), found
    assert fault is None or fault in found[0]


# ---- packages and build


def test_the_docs_lock_holds_what_the_extra_asks_for_and_nothing_of_the_other_lock() -> None:
    pins = {}
    for name in ("requirements.lock", "requirements-docs.lock"):
        found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE)
        pins[name] = {canonicalize_name(package): version for package, version in found}
    assert not pins["requirements.lock"].keys() & pins["requirements-docs.lock"].keys()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in map(Requirement, extras["docs"]):
        assert pins["requirements-docs.lock"][canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.slow
@pytest.mark.skipif(not HAVE_MKDOCS, reason="needs the packages of requirements-docs.lock (make docs installs them)")
def test_the_site_builds_without_a_warning_and_all_links_hold(tmp_path: Path) -> None:
    from tools.website import __main__ as website

    for file in (ROOT / "notebooks").glob("*.ipynb"):  # not executed: the other tests do that
        (tmp_path / "key" / "nb").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / "key" / "nb" / file.name)
    executed = {file.stem: file for file in (tmp_path / "key" / "nb").glob("*.ipynb")}
    pages.lay_out(tmp_path / "pages", executed, tables.pages(), website.HERE / "assets")
    website.add_mathjax(tmp_path / "pages")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # deprecations inside mkdocs and its plugins; their log's warnings are errors (strict)
        website.build(tmp_path / "pages", tmp_path / "html")
    assert links.faults(tmp_path / "html") == []
    assert "tamd" in (tmp_path / "html" / "search" / "search_index.json").read_text(encoding="utf-8")
