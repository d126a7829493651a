"""The results as pages: a page a folder of `results/`, with its figures and every CSV as a table that sorts."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
LONG = 60  # rows; a longer table has a page of its own
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
APART = {"runs", "references"}  # records that the tables are made of


def read(file: Path) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a CSV; short rows are filled up."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    head = rows[0] if rows else []
    return head, [row + [""] * (len(head) - len(row)) for row in rows[1:]]


def shown(cell: str) -> str:
    """A number with at most five significant digits, anything else as it is."""
    if NUMBER.fullmatch(cell) and len(re.sub(r"\D", "", cell.partition("e")[0])) > 6 and "." in cell:
        value = float(cell)
        return f"{value:.5g}" if "e" in f"{value:.5g}" or abs(value) < 1e4 else f"{value:.1f}"
    return cell


def split_constant(head: list[str], rows: list[list[str]]) -> tuple[dict[str, str], list[int]]:
    """What is the same in every row of a longer table, by column, and the columns left. Empty columns are in neither."""
    constant, left = {}, []
    for number, name in enumerate(head):
        values = {row[number] for row in rows}
        if number > 0 and len(rows) > 3 and len(values) == 1:
            constant[name] = next(iter(values))
        elif values - {""} or not rows or number == 0:
            left.append(number)
    return {name: value for name, value in constant.items() if value}, left


def table(file: Path) -> str:
    """A CSV as HTML, with what is the same in every row said above it."""
    head, rows = read(file)
    if not rows:
        return "No rows yet."
    constant, left = split_constant(head, rows)
    said = "; ".join(f"{html.escape(name)} {html.escape(value)}" for name, value in constant.items())
    numeric = {n for n in left if all(NUMBER.match(row[n]) or row[n] in ("", "–") for row in rows)}
    lines = [f"<p>The same in every row: {said}.</p>"] if said else []
    lines += ['<div class="results-table"><table>', "<thead><tr>"]
    lines += [f"<th{' class=number' if n in numeric else ''}>{html.escape(head[n]) or '&nbsp;'}</th>" for n in left]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        cells = (f"<td{' class=number' if n in numeric else ''}>{html.escape(shown(row[n]))}</td>" for n in left)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def about() -> dict[str, tuple[str, str]]:
    """What results/README.md says of each folder: who made it, what it shows."""
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    return {
        name: (made, shows)
        for name, made, shows in re.findall(r"^\| `([\w-]+)/` \| (.*) \| (.*) \|$", text, re.MULTILINE)
    }


def pages() -> dict[str, str]:
    """Generated pages by path."""
    found: dict[str, str] = {}
    for folder in folders():
        found |= folder_pages(folder)
    return found


def folders() -> list[Path]:
    """The folders of results, in the order of results/README.md."""
    order = list(about())
    return sorted(
        (folder for folder in RESULTS.iterdir() if folder.is_dir()),
        key=lambda folder: (order.index(folder.name) if folder.name in order else len(order), folder.name),
    )


def folder_pages(folder: Path) -> dict[str, str]:
    """The page of a folder, those of its long tables, and its own Markdown with its CSV files linked."""
    path = folder.relative_to(ROOT).as_posix()
    lines = [f"# {folder.name}", ""]
    if folder.name in about():
        made, shows = about()[folder.name]
        lines += [f"Made by: {made}", "", f"What it shows: {shows}", ""]
    found: dict[str, str] = {}
    inside = [file for file in sorted(folder.rglob("*")) if not APART & set(file.relative_to(folder).parts[:-1])]
    texts = [file for file in inside if file.suffix == ".md" and file.name != "README.md"]
    if texts:
        lines += ["## Pages", "", *(f"- [{title(file)}]({file.relative_to(folder).as_posix()})" for file in texts), ""]
    if pictures := [file for file in inside if file.suffix == ".png"]:
        lines += ["## Figures", ""]
        lines += [f"![{file.stem}]({file.relative_to(folder).as_posix()})\n" for file in pictures]
    tables = [file for file in inside if file.suffix == ".csv" and file.with_suffix(".md") not in texts]
    if tables:
        lines += [
            "## Tables",
            "",
            "A click on a heading sorts. Numbers are rounded to five digits; the files have them all.",
            "",
        ]
    for file in tables:
        local = file.relative_to(folder).as_posix()
        name, rows = local.removesuffix(".csv"), len(read(file)[1])
        lines += [f"### {name}", ""]
        if rows > LONG:
            where = f"{path}/{name}.table.md"
            found[where] = (
                f"# {folder.name}: {name}\n\nFrom [{file.name}]({file.name}), {rows} rows.\n\n{table(file)}\n"
            )
            lines += [f"[{rows} rows]({name}.table.md), from [{file.name}]({local}).", ""]
        else:
            lines += [table(file), "", f"From [{file.name}]({local}).", ""]
    if others := [file for file in inside if file.suffix in (".yaml", ".json")]:
        lines += ["## Files", "", *(f"- [{file.name}]({file.relative_to(folder).as_posix()})" for file in others), ""]
    found[f"{path}/README.md"] = "\n".join(lines)
    for file in texts:
        if file.with_suffix(".csv").exists():
            own = file.relative_to(ROOT).as_posix()
            text = file.read_text(encoding="utf-8").rstrip()
            found[own] = f"{text}\n\nThe same as a file: [{file.stem}.csv]({file.stem}.csv).\n"
    return found


def title(file: Path) -> str:
    """First heading of a Markdown file."""
    match = re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else file.stem


def nav() -> list[Any]:
    """The results' part of the navigation."""
    entries: list[Any] = ["results/README.md"]
    for folder in folders():
        path = folder.relative_to(ROOT).as_posix()
        generated = folder_pages(folder)
        own = [file.relative_to(ROOT).as_posix() for file in sorted(folder.rglob("*.md"))]
        inner = [one for one in [*own, *sorted(set(generated) - set(own))] if one != f"{path}/README.md"]
        entries.append({folder.name: [f"{path}/README.md", *inner] if inner else f"{path}/README.md"})
    return entries
