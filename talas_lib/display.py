"""Progress that is readable in JupyterLab, in a terminal and in the log of a headless run, and small tables for notebooks."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from talas_lib.tasks import Task

Progress = Callable[[int, int], None]


def progress(label: str, *, every_s: float = 10.0) -> Progress:
    """A callback (done, all): a bar with time left in JupyterLab and terminals, elsewhere a line after `every_s` seconds, then
    ever more rarely (at least every minute), and one at the end.

    Headless papermill freezes widget bars at 0 %, so there plain lines are printed instead.
    """
    return _bar(label) if _interactive() else _lines(label, every_s)


def say(line: str) -> None:
    """One line to whoever watches, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _interactive() -> bool:
    """True where a bar can redraw itself: a terminal, or a notebook that somebody looks at."""
    shell = _shell()
    return sys.stderr.isatty() if shell is None else _watched(shell)


def watched() -> bool:
    """True in a notebook that somebody looks at and can answer, False under papermill and nbclient and outside of notebooks."""
    return _watched(_shell())


def _shell() -> Any:
    """IPython's shell, None outside of IPython."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _watched(shell: Any) -> bool:
    """True in a notebook whose front end can answer a question: JupyterLab allows input, papermill and nbclient do not."""
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))


def _bar(label: str) -> Progress:
    from tqdm.auto import tqdm

    bar: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bar:
            if done >= total:  # nothing was waited for
                return
            bar.append(tqdm(total=total, desc=label, initial=done))  # the time left is reckoned from here on
        bar[0].update(done - bar[0].n)
        if done >= total:
            bar.pop().close()  # what is counted after that, such as the next table, gets a bar of its own

    return show


def _lines(label: str, every_s: float) -> Progress:
    began = last = time.monotonic()
    first: list[tuple[int, float]] = []  # a run that goes on where it stopped begins with much done in no time

    def show(done: int, total: int) -> None:
        nonlocal began, last
        now = time.monotonic()
        from_done, from_time = first[0] if first and done > first[0][0] else (0, began)
        if not first:
            first.append((done, now))
        if done < total and now - last < max(every_s, min((now - began) / 20, 60)):
            return
        last = now
        left = (
            f"about {(now - from_time) / max(done - from_done, 1) * (total - done):.0f} s left"
            if done < total
            else "done"
        )
        sys.stdout.write(f"{label}: {done:,} of {total:,}, {now - began:.0f} s, {left}\n")
        sys.stdout.flush()
        if done >= total:  # what is counted after that, such as the next table, begins anew
            began = now
            first.clear()

    return show


@contextmanager
def elapsed(label: str, *, every_s: float = 10.0) -> Iterator[None]:
    """Around work of unknown length: a line with the seconds gone after `every_s` seconds, then ever more rarely (at least
    every minute), and one at the end.
    """
    began, finished = time.monotonic(), threading.Event()

    def tell(state: str) -> None:
        sys.stdout.write(f"{label}: {state}, {time.monotonic() - began:.0f} s\n")
        sys.stdout.flush()

    def watch() -> None:
        pause = every_s
        while not finished.wait(pause):
            tell("at work")
            pause = min(2 * pause, 60)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
    tell("done")


def live(draw: Callable[[list[dict[str, Any]]], Figure], *, every_s: float = 5.0) -> Callable[[dict[str, Any]], None]:
    """A callback for logged training steps that redraws one figure in place while somebody looks; headless it does nothing.

    draw: the rows so far to a figure; called at most every `every_s` seconds.
    """
    rows: list[dict[str, Any]] = []
    handle: list[Any] = []
    last = -every_s

    def on_log(row: dict[str, Any]) -> None:
        nonlocal last
        rows.append(row)
        now = time.monotonic()
        if now - last < every_s or not _watched(_shell()):
            return
        last = now
        if handle:
            handle[0].update(draw(rows))
        else:
            from IPython.display import display

            handle.append(display(draw(rows), display_id=True))

    return on_log


def next_command(notebook: str, **values: Any) -> str:
    """The papermill call that goes on with `notebook`, run from the project folder.

    values: parameters; those that the notebook does not take are left out.
    """
    import yaml

    from talas_lib.params import notebook_parameters

    words = ["papermill", f"notebooks/{notebook}.ipynb", f"outputs/nb/{notebook}.ipynb"]
    for name, *_ in notebook_parameters(notebook):
        value = values.get(name)
        if isinstance(value, (dict, list)) and value:
            words += ["-y", yaml.safe_dump({name: value}, default_flow_style=True, width=1000).strip()]
        elif isinstance(value, (str, int, float)):
            # -p reads digits as a number, -r keeps them text
            words += ["-r" if isinstance(value, str) and value[:1].isdigit() else "-p", name, str(value)]
    return shlex.join(words)


def tasks_table(tasks: Sequence[Task]) -> pd.DataFrame:
    """One row a task: kind, metric, domain, counts, where the data come from and the first digits of their hash."""
    import pandas as pd

    domain = {True: "in", False: "out", None: "not said"}
    rows = {
        task.name: {
            "kind": task.kind,
            "metric": task.metric,
            "domain": domain[task.in_domain],
            "counts": ", ".join(f"{n:,} {what}" for what, n in task.counts.items()),
            "source": task.source,
            "sha256": task.sha256[:12],
        }
        for task in tasks
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def search(
    query: str, sentences: Sequence[str], models: Mapping[str, Callable[[list[str]], np.ndarray]]
) -> pd.DataFrame:
    """Each sentence's cosine with the query and its rank, a pair of columns a model; best first by the first model.

    models: label to a function from texts to vectors `[texts, dim]` of any length but zero.
    """
    import numpy as np
    import pandas as pd

    columns = {}
    for label, encode in models.items():
        vectors = np.asarray(encode([query, *sentences]), dtype=np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = pd.Series(vectors[1:] @ vectors[0], index=pd.Index(sentences, name=query))
        columns[label, "rank"] = cosine.rank(ascending=False, method="min").astype(int)
        columns[label, "cosine"] = cosine.round(3)
    return pd.DataFrame(columns).sort_values((next(iter(models)), "rank"))


def snippet(model_dir: str) -> str:
    """Three lines that load a student and rank sentences with it; a relative folder counts from the project's."""
    from talas_lib import model_folders, paths

    trust = ", trust_remote_code=True" if model_folders.needs_talas(paths.root() / model_dir) else ""
    return "\n".join(
        (
            f'from sentence_transformers import SentenceTransformer; model = SentenceTransformer("{model_dir}"{trust})',
            'query, texts = "a great performance", ["The acting is superb.", "The plot is dull.", "Stocks fell sharply."]',
            "print(sorted(zip(model.similarity(model.encode(query), model.encode(texts))[0].tolist(), texts), reverse=True))",
        )
    )
