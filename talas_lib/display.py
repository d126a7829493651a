"""Progress that is readable in JupyterLab, in a terminal and in the log of a headless run, and small tables for notebooks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]


def progress(label: str, *, every_s: float = 10.0) -> Progress:
    """A callback (done, all): a bar with time left in JupyterLab and terminals, a line every `every_s` seconds elsewhere.

    Headless papermill freezes widget bars at 0 %, so there plain lines are printed instead.
    """
    return _bar(label) if _interactive() else _lines(label, every_s)


def _interactive() -> bool:
    """True where a bar can redraw itself: a terminal, or a notebook that somebody looks at."""
    try:
        from IPython import get_ipython

        shell = get_ipython()
    except ImportError:
        shell = None
    if shell is None:
        return sys.stderr.isatty()
    return "PAPERMILL" not in _environment() and type(shell).__name__ == "ZMQInteractiveShell"


def _environment() -> set[str]:
    """PAPERMILL when the kernel was started by papermill: its injected cell is among the executed ones."""
    from IPython import get_ipython

    history = get_ipython().user_ns.get("In", [])
    return {"PAPERMILL"} if any(cell.lstrip().startswith("# Parameters\n") for cell in history) else set()


def _bar(label: str) -> Progress:
    from tqdm.auto import tqdm

    bar: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bar:
            bar.append(tqdm(total=total, desc=label))
        bar[0].update(done - bar[0].n)
        if done >= total:
            bar[0].close()

    return show


def _lines(label: str, every_s: float) -> Progress:
    began = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < every_s:
            return
        last = now
        left = (now - began) / max(done, 1) * (total - done)
        sys.stdout.write(f"{label}: {done:,} of {total:,}, {now - began:.0f} s, about {left:.0f} s left\n")
        sys.stdout.flush()

    return show


def snippet(model_dir: str) -> str:
    """Three lines that load a student and rank sentences with it."""
    return "\n".join(
        (
            f'from sentence_transformers import SentenceTransformer; model = SentenceTransformer("{model_dir}")',
            'sentences = ["The plot never thickens.", "The acting is superb.", "Stocks fell sharply."]',
            'print(sorted(zip(model.similarity(model.encode("a great performance"), model.encode(sentences))[0].tolist(), sentences))[::-1])',
        )
    )
