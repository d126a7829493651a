"""The API reference: a page for every public module, grouped as docs/architecture.md groups them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "talas_lib"
Nav = list[Any]


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
