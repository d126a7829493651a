"""Checks the built site: every link inside it leads somewhere, and no page asks another machine for anything."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# what a browser fetches to show a page; only `a` may lead away
FETCHED = {"src", "srcset", "poster", "data"}
CSS_URL = re.compile(r"""url\(\s*['"]?(?:https?:)?//|@import\s+['"](?:https?:)?//""")


@dataclass
class Found(HTMLParser):
    """What one page holds."""

    page: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._style = False
        self._svg = 0
        self.feed(self.page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self._svg += tag == "svg"
        if not self._svg:
            self.tags.add(tag)
        self.ids |= {given[name] for name in ("id", "name") if name in given and (name == "id" or tag == "a")}
        if "href" in given or "xlink:href" in given:
            href = given.get("href") or given.get("xlink:href", "")
            fetched = tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate")
            (self.fetched if fetched or tag in ("use", "image") else self.links).append(href)
        self.fetched += [given[name].split()[0] for name in FETCHED if given.get(name) and name in given]
        if CSS_URL.search(given.get("style", "")):
            self.fetched.append("https:" + given["style"])

    def handle_endtag(self, tag: str) -> None:
        self._style = False
        self._svg -= tag == "svg"

    def handle_data(self, data: str) -> None:
        if self._style and (match := CSS_URL.search(data)):
            self.fetched.append("https:" + match[0])


TAGS = """a abbr article aside audio b blockquote body br button caption center cite code col colgroup data dd del details dfn div
dl dt em fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins kbd label legend li
link main mark meta nav noscript object ol option output p picture pre progress q s samp script section select small source span
strong style sub summary sup svg table tbody td template textarea tfoot th thead time title tr tt u ul var video wbr autoref"""
KNOWN_TAGS = frozenset(TAGS.split())


def faults(site: Path) -> list[str]:
    """One line for each thing wrong in a built site."""
    pages = {file.resolve(): Found(file) for file in sorted(site.rglob("*.html"))}
    wrong = []
    for file, page in pages.items():
        name = file.relative_to(site.resolve()).as_posix()
        wrong += [f"{name}: {link} is fetched from elsewhere" for link in page.fetched if _elsewhere(link)]
        wrong += [
            f"{name}: <{tag}> is no HTML: a text in angle brackets that is not code" for tag in page.tags - KNOWN_TAGS
        ]
        for link in dict.fromkeys([*page.links, *page.fetched]):
            if (fault := _fault(link, file, site.resolve(), pages)) is not None:
                wrong.append(f"{name}: {fault}")
    for sheet in site.rglob("*.css"):
        if match := CSS_URL.search(sheet.read_text(encoding="utf-8")):
            wrong.append(f"{sheet.relative_to(site)}: {match[0]} is fetched from elsewhere")
    return wrong


def _elsewhere(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def _fault(link: str, file: Path, site: Path, pages: dict[Path, Found]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto", "http", "https", "javascript") or parts.netloc:
        return "a script as a link" if parts.scheme == "javascript" else None
    if parts.scheme or parts.path.startswith("/"):
        return f"{link} only works on one machine"
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        target /= "index.html"
    if not target.is_file() or not target.is_relative_to(site):
        return f"{link} leads nowhere"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids and not anchor.startswith("__"):
        return f"{link} leads to a page without this anchor"
    return None
