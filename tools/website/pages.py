"""The pages mkdocs reads: the repository's own texts where they are, and what is generated beside them.

The folder of pages has the repository's layout, so links between texts hold as they are written. What a browser could not show
gets a page: a module its part of the API reference, another text file its listing. Code spans that name such a thing become
links to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml

from tools.website.linking import IMAGES, Linker
from tools.website.reference import Nav, api_pages

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "mkdocs.yml"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".cff": "yaml"}


# ---- navigation


def navigation(generated: dict[str, Nav]) -> Nav:
    """The nav of mkdocs.yml without files that are not there, and with generated pages in the place of their folders."""
    return _filled(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"], generated)


def _filled(entries: Nav, generated: dict[str, Nav]) -> Nav:
    kept: Nav = []
    for entry in entries:
        title, what = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(what, list):
            kept.append({title: _filled(what, generated)})
        elif what in generated:
            kept.append({title: generated[what]})
        elif (ROOT / what).is_file():
            kept.append(entry)
    return kept


def files_of(nav: Nav) -> Iterator[str]:
    """Every file a nav names, in order."""
    for entry in nav:
        what = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(what, list):
            yield from files_of(what)
        else:
            yield what


# ---- the folder of pages


def lay_out(folder: Path, executed: dict[str, Path], results: dict[str, str], assets: Path) -> None:
    """Write all pages into an empty folder. executed: notebooks by name; results: generated pages by path."""
    if folder.exists():
        shutil.rmtree(folder)
    linker, written = Linker(), dict(results)
    for path in texts():
        text = (ROOT / path).read_text(encoding="utf-8")
        written[path] = linker.linked(results.get(path, text), path)
    for path in set(results) - set(texts()):
        written[path] = linker.linked(results[path], path)
    for path, text in api_pages():
        written[path] = text
    for name, file in executed.items():
        written[f"notebooks/{name}.ipynb"] = notebook_page(name, file, linker)
    folders = {path for path in linker.wanted if (ROOT / path).is_dir()}
    for path in folders:
        written[f"files/{path}/README.md"] = index(path, linker)
    for path in linker.wanted - folders:
        written[f"files/{path}.md"] = listing(path)
    for path, text in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(search_weight(path) + text, encoding="utf-8")
    for file in [*ROOT.glob("docs/**/*"), *ROOT.glob("results/**/*"), *ROOT.glob("*.cff"), ROOT / "LICENSE"]:
        if file.suffix in {".csv", ".cff", "", *IMAGES} and file.is_file():
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copytree(assets, folder / "assets", dirs_exist_ok=True)


def search_weight(path: str) -> str:
    """Front matter that says how search ranks a page: explanations before reference, neither listings nor long tables."""
    if path.startswith("files/") or path.endswith(".table.md"):
        return "---\nsearch:\n  exclude: true\n---\n\n"
    weight = 0.5 if path.startswith("api/") else 3 if path == "docs/glossary.md" else None
    return f"---\nsearch:\n  boost: {weight}\n---\n\n" if weight else ""


def texts() -> list[str]:
    """The Markdown files of the repository that are pages of the site."""
    folders = [ROOT.glob("*.md"), ROOT.glob("docs/**/*.md"), ROOT.glob("results/**/*.md"), ROOT.glob("benchmarks/*.md")]
    return sorted(file.relative_to(ROOT).as_posix() for found in folders for file in found)


def listing(path: str) -> str:
    """A page that shows a text file."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"# {path}\n\n`````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n`````\n"


def index(folder: str, linker: Linker) -> str:
    """A page that links the files of a folder."""
    names = sorted(file.name for file in (ROOT / folder).glob("*.yaml"))
    linker.wanted |= {f"{folder}/{name}" for name in names}
    return "\n".join([f"# {folder}", "", *(f"- [{name}]({name}.md)" for name in names), ""])


def notebook_page(name: str, executed: Path, linker: Linker) -> str:
    """An executed notebook for reading: linked, without progress bars and without paths of the machine it ran on."""
    book = nbformat.read(executed, as_version=4)
    outputs = executed.parent.parent / "outputs"
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = linker.linked(cell.source, f"notebooks/{name}.ipynb", as_html)
            continue
        widget = "application/vnd.jupyter.widget-view+json"
        cell.outputs = [output for output in cell.outputs if widget not in output.get("data", {})]
        for output in cell.outputs:
            for holder, field in [
                (output, "text"),
                *((output.get("data", {}), kind) for kind in ("text/plain", "text/html")),
            ]:
                if isinstance(holder.get(field), str):
                    holder[field] = holder[field].replace(str(outputs), "outputs").replace(f"{ROOT}{os.sep}", "")
    book.metadata.pop("widgets", None)
    book.metadata.pop("papermill", None)
    return nbformat.writes(book) + "\n"


def as_html(path: str) -> str:
    """The file that mkdocs makes of a page."""
    file = Path(path)
    if file.suffix not in (".md", ".ipynb"):
        return path
    return (file.with_name("index") if file.stem in ("README", "index") else file).with_suffix(".html").as_posix()
