"""A Markdown extension: a word in angle brackets that is no HTML tag, as in results/<study>/runs, is shown as it is written."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import HTML_RE, HtmlInlineProcessor

from tools.website.links import KNOWN_TAGS


class OnlyHtml(HtmlInlineProcessor):
    """Leaves to Markdown's own what is HTML, and escapes the rest."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str | None, int | None, int | None]:
        name = re.match(r"</?([^\s>/!]+)", m[0])
        if name is None or name[1].lower() in KNOWN_TAGS:
            return super().handleMatch(m, data)
        return self.md.htmlStash.store(m[0].replace("<", "&lt;").replace(">", "&gt;")), m.start(0), m.end(0)


class AngleBrackets(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(OnlyHtml(HTML_RE, md), "html", 90)


def makeExtension(**given: Any) -> AngleBrackets:
    return AngleBrackets(**given)
