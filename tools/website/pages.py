"""The pages mkdocs reads: the repository's own texts where they are, and what is generated beside them.

The folder of pages has the repository's layout, so links between texts hold as they are written. What a browser could not show
gets a page: a module its part of the API reference, another text file its listing. Code spans that name such a thing become
links to it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "mkdocs.yml"
PACKAGE = ROOT / "talas_lib"
IMAGES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".cff": "yaml"}
GENERATED = ("results/", "api/")  # entries of mkdocs.yml's nav that stand for generated pages

Nav = list[Any]


# ---- navigation


def navigation(generated: dict[str, Nav]) -> Nav:
    """The nav of mkdocs.yml without files that are not there, and with generated pages in the place of their folders."""
    return _filled(yaml.load(CONFIG.read_text(encoding="utf-8"), Loader=_Lenient)["nav"], generated)


class _Lenient(yaml.SafeLoader):
    """Reads mkdocs.yml without the packages that its python tags name."""


_Lenient.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
_Lenient.add_constructor("!relative", lambda loader, node: loader.construct_scalar(node))


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


# ---- API reference


@cache
def modules() -> dict[str, Path]:
    """Source file by dotted name below talas_lib (`losses`, `methods`, `methods.talas`) of every public module."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") and part != "__main__" for part in parts):
            found[".".join(parts)] = file
    return found


def api_page(module: str) -> str:
    """Path of a module's page; a package's is the first of its folder."""
    if not module:
        return "api/README.md"
    file = modules()[module]
    return "api/" + module.replace(".", "/") + ("/README.md" if file.name == "__init__.py" else ".md")


def summary(file: Path) -> str:
    """First line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


@cache
def public_names(module: str) -> frozenset[str]:
    """Functions and classes, methods as `Class.method`, that a module defines and its page shows."""
    names = set()
    for node in ast.parse(modules()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {
                f"{node.name}.{one.name}" for one in inner if isinstance(one, ast.FunctionDef) and one.name[0] != "_"
            }
    return frozenset(names)


def groups() -> dict[str, list[str]]:
    """Top-level modules by row of the table in docs/architecture.md; what it does not name is last of all."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+?) \| (.*`.*) \|$", text, re.MULTILINE)
    top = {name.partition(".")[0] for name in modules() if name}
    found: dict[str, list[str]] = {}
    for title, cell in rows:
        names = [name.rstrip("/") for name in re.findall(r"`([\w/]+)`", cell)]
        if chosen := [name for name in names if name in top and not any(name in row for row in found.values())]:
            found[title[0].upper() + title[1:]] = chosen
    rest = sorted(top - {name for row in found.values() for name in row})
    found[next(reversed(found))] += rest
    return found


def api_nav() -> Nav:
    """The reference's part of the navigation, in the groups of docs/architecture.md."""
    nav: Nav = [api_page("")]
    for title, names in groups().items():
        entries: Nav = []
        for name in names:
            inner = [module for module in modules() if module.startswith(f"{name}.")]
            own = {name: api_page(name)}
            entries.append(
                {name: [api_page(name), *({one.partition(".")[2]: api_page(one)} for one in inner)]} if inner else own
            )
        nav.append({title: entries})
    return nav


def api_pages() -> Iterator[tuple[str, str]]:
    """(path, text) of every page of the reference."""
    lines = [
        "# API reference",
        "",
        "Every public module of `talas_lib`, in the order of [architecture](../docs/architecture.md):",
    ]
    lines += ["each row imports from those above it. The text is that of the docstrings.", ""]
    lines += ["::: talas_lib", "    options:", "      members: false", "      heading_level: 2", ""]
    for title, names in groups().items():
        lines += [f"## {title}", "", "| module | |", "| --- | --- |"]
        for name in [module for top in names for module in modules() if module == top or module.startswith(f"{top}.")]:
            about = summary(modules()[name]).replace("|", "\\|")
            lines.append(f"| [{name}]({api_page(name).removeprefix('api/')}) | {about} |")
        lines.append("")
    yield api_page(""), "\n".join(lines)
    for name in modules():
        if name:
            escaped = name.replace("__", "\\_\\_")
            yield api_page(name), f"# talas_lib.{escaped}\n\n::: talas_lib.{name}\n"


# ---- links of code spans


SPAN = re.compile(r"(?<![`\[\\])`([\w./*-]+)`(?!`)(?!\])")
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


class Linker:
    """Turns what a text names into links. wanted: files that get a listing because something names them."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()

    def target(self, span: str, page: str) -> str | None:
        """The page, from the root of the pages, and anchor that a code span names; None when it names nothing."""
        name = span.removeprefix("talas_lib.")
        module, _, rest = name.rpartition(".")
        for owner, attribute in ((module, rest), (module.rpartition(".")[0], f"{module.rpartition('.')[2]}.{rest}")):
            if owner in modules() and attribute in public_names(owner):
                return f"{api_page(owner)}#talas_lib.{owner + '.' if owner else ''}{attribute}"
        dotted = name.strip("/").replace("/", ".")
        if dotted in modules() and (page == "docs/architecture.md" or "/" in name or "." in name) and dotted:
            return api_page(dotted)
        inside = f"results/{span}README.md"
        if re.fullmatch(r"params/\w+/", span) and (ROOT / span).is_dir():
            self.wanted.add(span.rstrip("/"))
            return f"files/{span}README.md"
        if span.endswith("/") and page == "results/README.md" and (ROOT / "results" / span).is_dir():
            return inside
        return self.file(span.rstrip("/"))

    def file(self, path: str) -> str | None:
        """The page of a file or folder of the repository."""
        if path.startswith("talas_lib/") and (ROOT / path).suffix in ("", ".py"):
            module = path.removeprefix("talas_lib/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            return api_page(module) if module in modules() else None
        file = ROOT / path
        if "/" not in path or not file.resolve().is_relative_to(ROOT) or path.startswith("outputs/"):
            return None
        if file.is_dir() and path.startswith("results/"):
            return f"{path}/README.md"
        if not file.is_file():
            return None
        if file.suffix in {".md", ".ipynb", ".csv", *IMAGES}:
            return path
        self.wanted.add(path)
        return f"files/{path}.md"

    def linked(self, text: str, page: str, final: Callable[[str], str] = str) -> str:
        """A page's Markdown with its code spans linked and links to files led to their pages.

        final: from a path below the root of the pages to what the link shall hold, for pages that mkdocs does not read.
        """
        here = Path(page).parent

        def relative(target: str) -> str:
            path, mark, anchor = target.partition("#")
            return os.path.relpath(final(path), here) + mark + anchor

        def spanned(match: re.Match[str]) -> str:
            target = self.target(match[1], page)
            if target is None or target.partition("#")[0] == page:
                return match[0]
            return f"[{match[0]}]({relative(target)})"

        def redirected(match: re.Match[str]) -> str:
            path, mark, anchor = match[2].partition("#")
            if not path or "://" in path or path.startswith("mailto:"):
                return match[0]
            target = self.file(os.path.normpath(here / path))
            return match[0] if target is None else f"{match[1]}{relative(target)}{mark}{anchor}{match[3]}"

        pieces, last = [], 0
        for fence in [*FENCE.finditer(text), None]:
            prose = text[last : fence.start() if fence else len(text)]
            lines = [
                line
                if line.startswith("    ") and "|" not in line[:6]
                else SPAN.sub(spanned, LINK.sub(redirected, line))
                for line in prose.split("\n")
            ]
            pieces.append("\n".join(lines))
            if fence:
                pieces.append(fence[0])
                last = fence.end()
        return "".join(pieces)


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
        (folder / path).write_text(text, encoding="utf-8")
    for file in [*ROOT.glob("docs/**/*"), *ROOT.glob("results/**/*"), *ROOT.glob("*.cff"), ROOT / "LICENSE"]:
        if file.suffix in {".csv", ".cff", "", *IMAGES} and file.is_file():
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copytree(assets, folder / "assets", dirs_exist_ok=True)


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
