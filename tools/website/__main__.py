"""`make docs`: execute the notebooks, lay out the pages, run mkdocs, check the links. Nothing is done twice."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from talas_lib import paths
from tools.website import execute, links, pages, reference, tables

HERE = Path(__file__).resolve().parent
TOOLS = ("mkdocs", "mkdocs-material", "mkdocs-jupyter", "mkdocstrings", "mkdocstrings-python", "django-static-mathjax")


def digest(folder: Path) -> str:
    """Hash of all that decides what mkdocs makes: pages, library (for its docstrings), settings and versions."""
    found = hashlib.sha256(" ".join(f"{name}=={metadata.version(name)}" for name in TOOLS).encode())
    package = [(pages.ROOT, file) for file in sorted(reference.PACKAGE.rglob("*.py"))]
    own = [(pages.ROOT, file) for file in [*sorted(HERE.rglob("*.*")), pages.CONFIG] if "__pycache__" not in file.parts]
    staged = [(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
    for root, file in [*package, *own, *staged]:
        found.update(f"\0{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return found.hexdigest()


def add_mathjax(folder: Path) -> None:
    """The one script that sets mathematics, out of its package; it needs no other file."""
    (place,) = find_spec("mathjax").submodule_search_locations  # type: ignore[union-attr]
    source, target = Path(place) / "static" / "mathjax", folder / "assets" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "es5" / "tex-svg.js", target / "tex-svg.js")
    shutil.copyfile(source / "LICENSE", target / "LICENSE")


def build(staged: Path, html: Path) -> None:
    """mkdocs, strictly: a warning ends it."""
    from mkdocs.commands import build as mkdocs_build
    from mkdocs.config import load_config

    nav = pages.navigation({"results/": tables.nav(), "api/": reference.api_nav()})
    config = load_config(str(pages.CONFIG), docs_dir=str(staged), site_dir=str(html), nav=nav)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        mkdocs_build.build(config)
    finally:
        config.plugins.on_shutdown()


def main() -> int:
    import logging

    started, folder = time.monotonic(), paths.outputs() / "site"
    print("site 1/4: notebooks", flush=True)
    try:
        executed = execute.execute_all(folder / "executed")
    except execute.NotebookFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    print("site 2/4: pages", flush=True)
    pages.lay_out(folder / "pages", executed, tables.pages(), HERE / "assets")
    add_mathjax(folder / "pages")
    html, mark = folder / "html", folder / "built"
    current = digest(folder / "pages")
    if mark.exists() and mark.read_text() == current and (html / "index.html").exists():
        print(f"site: up to date, {html / 'index.html'}")
        return 0
    mark.unlink(missing_ok=True)
    print("site 3/4: mkdocs", flush=True)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        build(folder / "pages", html)
    except Exception as failed:
        from mkdocs.exceptions import MkDocsException

        if not isinstance(failed, MkDocsException):
            raise
        print(f"mkdocs: {failed}", file=sys.stderr)
        return 1
    print("site 4/4: links", flush=True)
    if wrong := links.faults(html):
        print("\n".join(wrong), file=sys.stderr)
        print(f"{len(wrong)} faults in the built pages", file=sys.stderr)
        return 1
    mark.write_text(current)
    count = sum(1 for _ in html.rglob("*.html"))
    print(f"site: {count} pages in {time.monotonic() - started:.0f} s, {html / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
