"""The exercises of the notebooks: the code folded under them, and copies of the notebooks in which it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat


def folded(book: Any) -> list[str]:
    """What stands folded under the exercises, one text a solution."""
    return [part for cell in book.cells for part in re.findall(r"<details>.*?</details>", cell.source, re.DOTALL)]


def solutions(book: Any) -> list[str]:
    """The code in it, in order."""
    return [code for part in folded(book) for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]


def solved(notebook: Path, folder: Path) -> Path:
    """A copy in the folder with every solution as a cell at the end, where all names of the notebook are there.

    Notebooks by hand may tidy up in their last cell, so there the solutions stand before it.
    """
    book = nbformat.read(notebook, as_version=4)
    end = len(book.cells) - notebook.name.startswith("a")
    book.cells[end:end] = [nbformat.v4.new_code_cell(code) for code in solutions(book)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / notebook.name)
    return folder / notebook.name
