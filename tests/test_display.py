"""Progress, tables and figures of the notebooks: what they say, and that they keep still when nobody looks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import papermill.cli
import pytest

from talas_lib import display, params, plots, records, runs, sources, stages, teacher_checks
from talas_lib.files import atomic_write_json


def watched_shell(allow: bool) -> SimpleNamespace:
    return SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=allow))


def test_a_notebook_counts_as_watched_when_its_front_end_takes_input() -> None:
    assert display._watched(watched_shell(True))
    assert not display._watched(watched_shell(False))  # papermill, nbclient
    assert not display._watched(None)


def test_headless_progress_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_shell", lambda: watched_shell(False))
    tell = display.progress("steps", every_s=1e9)
    for done in (1, 50, 100):
        tell(done, 100)
    said = capsys.readouterr().out
    assert said.splitlines() == [line for line in said.splitlines() if line.startswith("steps: 100 of 100, ")]


def test_headless_lines_become_rarer_and_say_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(display, "_shell", lambda: watched_shell(False))
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    tell = display.progress("steps", every_s=10.0)
    for done in range(1, 2001):
        now[0] += 1
        tell(done, 2000)
    resumed = display.progress("resumed", every_s=10.0)
    for done in range(1001, 1021):
        now[0] += 1
        resumed(done, 2000)
    lines = capsys.readouterr().out.splitlines()
    seconds = [int(line.split(", ")[1].removesuffix(" s")) for line in lines if line.startswith("steps")]
    assert seconds[:3] == [10, 20, 30]
    assert 55 <= max(np.diff(seconds)) <= 60  # at least every minute
    assert lines[0] == "steps: 10 of 2,000, 10 s, about 1990 s left"
    assert lines[-2:] == [
        "resumed: 1,010 of 2,000, 10 s, about 990 s left",
        "resumed: 1,020 of 2,000, 20 s, about 980 s left",
    ]
    assert lines[-3] == "steps: 2,000 of 2,000, 2000 s, done"


def test_a_bar_that_is_full_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """One progress for several pieces of work, each counted from its beginning: a bar each, all of them closed."""
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: int, desc: str, initial: int) -> None:
            self.total, self.n, self.open = total, initial, True
            bars.append(self)

        def update(self, by: int) -> None:
            assert self.open
            self.n += by

        def close(self) -> None:
            self.open = False

    monkeypatch.setattr(display, "_interactive", lambda: True)
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    show = display.progress("tables")
    for done, total in [(1, 3), (3, 3), (3, 3), (1, 2), (2, 2)]:
        show(done, total)
    assert [(bar.total, bar.n, bar.open) for bar in bars] == [(3, 3, False), (2, 2, False)]


def test_elapsed_says_that_it_is_at_work_and_when_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    import time

    with display.elapsed("products", every_s=0.05):
        time.sleep(0.18)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "products: done, 0 s"
    assert set(lines[:-1]) == {"products: at work, 0 s"}


def test_elapsed_is_silent_about_work_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), display.elapsed("products"):
        raise KeyError
    assert capsys.readouterr().out == ""


def test_live_draws_only_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: SimpleNamespace(update=lambda f: None))
    for allow, expected in ((False, []), (True, [1, 2, 3])):
        monkeypatch.setattr(display, "_shell", lambda allow=allow: watched_shell(allow))
        on_log = display.live(lambda rows: drawn.append(len(rows)), every_s=0.0)  # type: ignore[arg-type, return-value]
        for step in range(3):
            on_log({"step": step})
        assert drawn == expected


def test_the_next_command_gives_papermill_the_same_values() -> None:
    values = {
        "lr": 1e-5,
        "seed": 7,
        "teacher": "tiny",
        "corpus": "my sentences.txt",
        "same_dropout": True,
        "method_params": {"head_init_std": 1e-4},
        "rho": None,
        "report": "x",
    }
    words = shlex.split(display.next_command("03_train", **values))
    assert words[:3] == ["papermill", "notebooks/03_train.ipynb", "outputs/nb/03_train.ipynb"]
    found: dict[str, object] = {}
    rest = words[3:]
    while rest:
        if rest[0] == "-y":
            import yaml

            found |= yaml.safe_load(rest[1])
            rest = rest[2:]
        else:
            found[rest[1]] = papermill.cli._resolve_type(rest[2]) if rest[0] == "-p" else rest[2]
            rest = rest[3:]
    assert found == {k: v for k, v in values.items() if k not in ("rho", "report")}  # 03 has no report


def test_a_name_of_digits_stays_text() -> None:
    assert "-r run 2024--x" in display.next_command("04_evaluate", run="2024--x")


def test_search_ranks_by_cosine_in_the_first_models_order() -> None:
    vectors = {"q": [1, 0], "a": [0, 2], "b": [3, 0], "c": [1, 1]}
    table = display.search(
        "q",
        ["a", "b", "c"],
        {
            "one": lambda texts: np.array([vectors[t] for t in texts], dtype=float),
            "two": lambda texts: np.array([vectors[t][::-1] if t == "q" else vectors[t] for t in texts], dtype=float),
        },
    )
    assert list(table.index) == ["b", "c", "a"]
    assert list(table["one", "rank"]) == [1, 2, 3]
    assert list(table["one", "cosine"]) == [1, 0.707, 0]
    assert list(table["two", "rank"]) == [3, 2, 1]


def test_tasks_table_has_a_row_a_task() -> None:
    table = display.tasks_table(sources.load_tasks(params.load_tasks("tiny")))
    assert list(table.index) == ["tiny_topics", "tiny_pairs", "tiny_similarity", "tiny_retrieval"]
    assert table.loc["tiny_pairs", "counts"] == "60 pairs, 30 positive, 120 texts"
    assert set(table["domain"]) == {"in", "out"}


# ---- figures: the title is the finding


def test_lengths_title() -> None:
    figure = plots.lengths([1, 2, 3, 4, 5], ["x", "x", "y", "y", "y"])
    assert figure.axes[0].get_title() == "Half of the sentences have at most 3 words, 95 % at most 4"


def test_spectrum_title_counts_directions() -> None:
    assert plots.spectrum([0.5, 0.3, 0.15, 0.05]).axes[0].get_title() == "3 of 4 directions hold 90 % of the variance"
    assert plots.spectrum([1.0, 0.0]).axes[0].get_title().startswith("1 of 2")


def test_ascent_shows_the_probed_steps_only() -> None:
    table = pd.DataFrame(
        {
            "epoch": [0.1, 0.2, 0.3],
            "ascent_gain": [0.1, np.nan, 0.3],
            "predicted_gain": [0.1, 0.2, 0.3],
            "relative": [0.01, 0.02, 0.03],
            "ascent_cosine": [1.0, np.nan, 0.5],
            "model": "talas + asam",
        }
    )
    figure = plots.ascent(table)
    assert [len(line.get_xdata()) for axes in figure.axes for line in axes.lines] == [2, 2, 2, 2]
    assert figure.axes[2].get_title().endswith("mean 0.7500")


def test_power_traces_title_names_who_ends_elsewhere() -> None:
    exact = {"a": 1.0, "b": 2.0}
    title = plots.power_traces({"a": [0.1, 0.99], "b": [0.1, -3.0]}, exact).axes[0].get_title()
    assert title == "Power iteration ends elsewhere than Lanczos (dashed): b"
    title = plots.power_traces({"a": [0.1, 0.99], "b": [1.0, 1.95]}, exact).axes[0].get_title()
    assert title == "Power iteration arrives at what Lanczos finds (dashed)"


def test_few_rows_are_not_smoothed() -> None:
    table = pd.DataFrame({"step": [1, 2], "epoch": [0.5, 1.0], "loss": [2.0, 1.0], "model": "m"})
    thin, thick = plots.training_curves(table).axes[0].lines
    assert list(thin.get_ydata()) == list(thick.get_ydata()) == [2.0, 1.0]


# ---- checks of a teacher cache


def test_a_cache_is_checked_once_and_a_wrong_row_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    p = params.resolve("02_cache_teacher", {"teacher": "tiny", "corpus": "tiny"})
    sentences = stages.load_corpus(p)
    cache = stages.cache_teacher(p, sentences)
    checks = teacher_checks.checks(p, sentences, cache)
    assert max(checks["batched_vs_single"], checks["cached_vs_fresh"]) < checks["tolerance"] == 1e-4
    shifted = sentences.rows([*range(1, len(sentences)), 0])
    assert teacher_checks.checks(p, shifted, cache)["cached_vs_fresh"] > 0.1
    atomic_write_json(records.cache_file(p), {"key": cache.folder.name, "checks": {"from": "the record"}})
    assert teacher_checks.checks(p, sentences, cache) == {"from": "the record"}
    atomic_write_json(records.cache_file(p), {"key": "teacher-of-another-corpus", "checks": {"from": "the record"}})
    assert "rows" in teacher_checks.checks(p, sentences, cache)


def test_the_snippet_runs_in_one_piece() -> None:
    compile(display.snippet("some/folder"), "snippet", "exec")
    assert re.search(r'SentenceTransformer\("some/folder"\)', display.snippet("some/folder"))


def test_run_ids_pass_through_the_next_command() -> None:
    run_id = "minilm-l3--minilm-l6--talas--asam--s42--00ff00ff"
    assert runs.check_run_id(run_id) in display.next_command("05_sharpness", run=run_id)
