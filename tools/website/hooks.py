"""mkdocs hooks: what notebooks need beyond mkdocs-jupyter.

Its pages carry their style sheet and load MathJax and Mermaid from the network, each page anew. Here the sheet is a file that
all share, the scripts go, and every page says how it was executed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
SHEET = "assets/notebook.css"
SMOKE = """<div class="admonition warning"><p class="admonition-title">Executed on tiny random models</p>
<p>This page was made with the preset <code>smoke</code>: teacher and student have random weights and read a few dozen
synthetic sentences. It shows how the notebook runs and what it draws; its numbers mean nothing. What real models give is under
<a href="../results/index.html">Results</a>.</p></div>"""
AS_IS = """<div class="admonition note"><p class="admonition-title">Executed as it is</p>
<p>{what} What real models give is under <a href="../results/index.html">Results</a>.</p></div>"""
OTHERS = {
    "07": "This notebook shows the measurements that are in the repository (<code>results/bench</code>), not new ones.",
    "a": "This notebook needs nothing but itself; where a model occurs, it is a tiny one with random weights.",
}
PROMPTS = re.compile(r'<div class="zeroclipboard-container">.*?</clipboard-copy>\s*</div>', re.DOTALL)
COPIES = re.compile(r'<div (?=[^>]*class="clipboard-copy-txt")[^>]*>[^<]*</div>')
CODE = re.compile(r'<div class="highlight-ipynb hl-(\w+)\s*"><pre>(.*?)</pre></div>', re.DOTALL)
HEADING = re.compile(r'<h([1-3])([^>]*?) id="([^"]*)"')
NO_ALT = "No description has been provided for this image"  # what nbconvert writes
_styles: list[str] = []


def on_pre_build(config: Any) -> None:
    _styles.clear()
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert's warnings of figures without a description


def notice(name: str) -> str:
    """What a notebook's page says about its execution."""
    for start, what in OTHERS.items():
        if name.startswith(start):
            return AS_IS.format(what=what)
    return SMOKE


def slimmed(html: str, styles: list[str]) -> str:
    """A notebook's HTML without scripts and styles, its code as the theme shows code; new styles are added to the list."""
    for style in STYLE.findall(html):
        if style.strip() and style not in styles:
            styles.append(style)
    bare = COPIES.sub("", PROMPTS.sub("", STYLE.sub("", SCRIPT.sub("", html))))
    bare = bare.replace(NO_ALT, "figure made by the cell above")
    return CODE.sub(r'<div class="language-\1 highlight"><pre><code>\2</code></pre></div>', bare)


def _flat(items: Any) -> Iterator[Any]:
    for item in items:
        yield item
        yield from _flat(item.children)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str | None:
    if not page.file.src_path.endswith(".ipynb"):
        return None
    body = slimmed(html, _styles)
    # the contents beside the page are made from another reading of the notebook, whose anchors differ for some headings
    for item, (level, _, anchor) in zip(_flat(page.toc), HEADING.findall(body), strict=True):
        assert item.level == int(level), f"{page.file.src_path}: contents and headings differ at {item.title}"
        item.id = anchor
    title, end = body.partition("</h1>")[::2]
    return f'<link rel="stylesheet" href="../{SHEET}">\n{title}</h1>{notice(Path(page.file.src_path).name)}{end}'


def on_post_build(config: Any) -> None:
    site = Path(config["site_dir"])
    (site / SHEET).write_text("\n".join(_styles), encoding="utf-8")
    (site / "404.html").unlink(missing_ok=True)  # its links need to know where the site is
