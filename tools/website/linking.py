"""What a text names in code spans and links, led to the page that shows it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from tools.website.reference import api_page, modules, public_names

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {".png", ".svg", ".jpg"}
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
