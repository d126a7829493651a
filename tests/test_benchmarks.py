"""The benchmarks measure what they say: the shape of their rows, what must hold whatever the clock shows, and the notebook."""

from __future__ import annotations

import math
import mmap
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch

from benchmarks import ascent, common, eigen, encode, evaluation, methods, phases, probe_noise, steps, workload
from benchmarks.workload import Variant, Workload
from talas_lib import bench, bench_figures, params, paths, probes
from talas_lib.errors import TalasError

COLUMNS = ["bench", "variant", "metric", "unit", "median", "min", "max", "n"]
TINY = Workload("tiny", "tiny", teacher_dim=48, batch_size=8)
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read as Linux tells it")


def checked(rows) -> pd.DataFrame:
    """The rows as a table, after what holds for every benchmark."""
    table = pd.DataFrame(rows)
    assert list(table.columns[: len(COLUMNS)]) == COLUMNS
    assert (table["n"] >= 1).all()
    assert ((table["min"] <= table["median"]) & (table["median"] <= table["max"])).all()
    assert np.isfinite(table[["median", "min", "max"]].to_numpy(dtype=float)).all()
    assert set(table["unit"]) <= {"", "ms", "s", "x", "MB", "GFLOP", "GFLOP/s", "sentences/s", "points", "adamw steps"}
    timed = table["unit"].isin(["ms", "s", "GFLOP/s", "sentences/s"]) & ~table["metric"].isin(bench.PHASES)
    assert (table.loc[timed, "median"] >= 0).all()
    return table


def values(table, metric, **where):
    chosen = table[table["metric"] == metric]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    return chosen


# ---- each of them, on the tiny models


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, pd.DataFrame]:
    """Every table by name, from as little work as its benchmark can do."""
    texts = encode.made_up(40)
    found = {
        "steps": steps.measure(TINY, steps=2, warmup=1, peak_size=32),
        "phases": phases.measure(TINY, workload.trained_methods(), rounds=1, steps=1),
        "methods": [
            row | {"corpus": "tiny"}
            for name in ("talas", "simcse")
            for row in methods.one(name, Variant(name), TINY, 2)
        ]
        + [row | {"corpus": "tiny"} for row in methods.one("talas + asam", Variant(optimizer="asam"), TINY, 2)],
        "encode": encode.throughput("tiny", texts, rounds=2, tokens=(4096, 64)),
        "flat": [row for count in (100, 300) for row in encode.building("tiny", count)],
        "evaluation": evaluation.measure("tiny", "tiny"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyHessian's
        found["eigen"] = eigen.measure("tiny", "tiny", 1, 1)
    with pytest.MonkeyPatch.context() as patch:  # this benchmark takes the default student, which is fetched
        resolve = params.resolve
        patch.setattr(ascent.params, "resolve", lambda book, given: resolve(book, {**given, "student": "tiny"}))
        found["ascent"] = ascent.measure("tiny", "tiny", 0.5, 4, 1).assign(rho=0.5)
    about = {"student": "tiny", "corpus": "tiny", "suite": "tiny", "teacher": "tiny", "git": "", "cpu": "a machine"}
    tables = {name: checked(rows) for name, rows in found.items()}
    return {name: table.assign(**{k: v for k, v in about.items() if k not in table}) for name, table in tables.items()}


pytestmark = linux


def test_there_is_one_for_every_table(measured) -> None:
    assert set(measured) == set(bench.TABLES) == set(bench_figures.FIGURES)


def test_probe_noise_is_relative_to_the_untouched_vectors() -> None:
    """Rounding noise of a millionth changes no prediction of an easy probe; noise as large as the vectors does."""
    small, large = (probe_noise.measure("tiny", "tiny", noise=n, draws=2, iterations=[50]) for n in (1e-6, 1.0))
    table, other = pd.DataFrame(small), pd.DataFrame(large)
    assert set(table["variant"]) == {"noise 1e-06", "bf16"}
    assert set(table["iterations"]) == {50}
    differ = "predictions that differ"
    noisy = values(table, differ, variant="noise 1e-06")
    assert noisy["n"].tolist() == [2]
    assert noisy["max"].item() <= 1 < values(other, differ, variant="noise 1")["min"].item()
    assert probes.MAX_ITER == 200  # the protocol's, put back


def test_steps_compare_with_the_reference_and_count_operations(measured) -> None:
    table = measured["steps"]
    for optimizer in ("adamw", "asam"):
        rows = table[table["bench"] == f"step-{optimizer}"]
        assert set(values(rows, "time")["variant"]) == {"reference", *steps.LIBRARY}
        assert bench.median(rows, "speedup", variant="reference") == 1
        shares = set(values(rows, "time, share of fp32")["variant"])
        assert shares == {*steps.OTHER_MATHEMATICS, "batches by length"}
        flop, speed = bench.median(rows, "model FLOP"), values(rows, "throughput", variant="fp32").iloc[0]
        time = values(rows, "time", variant="fp32").iloc[0]
        assert 1e3 * flop / time["max"] <= speed["max"] * 1.5  # GFLOP a step over its time
    counted = values(table, "model FLOP").set_index("bench")["median"]
    assert counted["step-asam"] == 2 * counted["step-adamw"]
    assert set(values(table, "throughput", bench="matrix-peak")["variant"]) == {"fp32", "bf16"}


def test_the_operations_are_those_of_the_matrix_products() -> None:
    """Mean pooling and one view: 6 d_in d_out a token for each linear layer, and attention."""
    batches = TINY.batches(1)
    one_view = Variant(changes=(("weight_simcse", 0.0),))
    (both,), (single,) = (steps.operations(TINY.trainer(v), batches) for v in (Variant(), one_view))
    assert single < both < 2 * single  # the heads and the relations see one view
    tokens = sum(TINY.tokens.lengths[batches[0]])
    linear = 3 * (4 * 32 * 32 + 2 * 32 * 64)  # weights of the three blocks' linear layers
    assert 0.5 * 6 * tokens * linear < 1e9 * single < 1.5 * 6 * tokens * linear


def test_batches_by_length_hold_the_same_sentences() -> None:
    batches = TINY.batches(4)
    by_length = steps.by_length(TINY, batches)
    assert sorted(by_length.ravel()) == sorted(batches.ravel())
    lengths = TINY.tokens.lengths[by_length]
    assert (np.diff(lengths.ravel()) >= 0).all()


def test_phases_of_every_method_make_up_the_step(measured) -> None:
    table = bench.phases(measured["phases"])
    assert set(table.index) == {*workload.trained_methods(), "talas + asam"}
    np.testing.assert_allclose(table[list(bench.PHASES)].sum(axis=1), table["step"])  # n is 1
    moved = table["perturbation"] > 0
    assert list(table.index[moved]) == ["talas + asam"]
    assert (table[["data", "forward", "loss", "backward", "optimizer", "other"]] > 0).all(axis=None)


def test_a_phase_inside_another_stops_its_clock(monkeypatch) -> None:
    now = iter([0.0, 1.0, 3.0, 3.5])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(now))
    clock = phases.Clock()
    with clock.phase("other"), clock.phase("forward"):
        pass
    assert dict(clock.ms) == {"other": 1500.0, "forward": 2000.0}


def test_the_clock_changes_no_weight() -> None:
    def trained(**classes):
        torch.manual_seed(0)
        trainer = TINY.trainer(Variant(optimizer="asam"), **classes)
        if classes:
            phases.step_times(trainer, TINY.batches(3), 0)
        else:
            for rows in TINY.batches(3):
                trainer.step(rows)
        return trainer.stepper.parameters

    plain, timed = trained(), trained(objective=phases.TimedObjective, stepper=phases.TimedStepper)
    assert all(torch.equal(a, b) for a, b in zip(plain, timed, strict=True))


def test_methods_state_memory_over_the_steps(measured) -> None:
    table = measured["methods"]
    for name in ("talas", "simcse", "talas + asam"):
        rows = table[table["variant"] == name]
        own = values(rows, "memory").iloc[0]
        assert bench.median(rows, "memory, peak") == own["max"] > bench.median(rows, "memory, before the student") > 0
        assert own["min"] <= bench.median(rows, "memory, mean") <= own["max"]
        assert bench.median(rows, "memory, standard deviation") <= own["max"] - own["min"] + 1e-9
        assert own["n"] == 2
    shown = bench.methods(table, "tiny")
    assert list(shown.columns) == list(bench.paper_methods().columns)
    assert list(shown.index) == [name for name in bench.paper_table3()["variant"] if name in shown.index]


def test_memory_counts_what_is_there_for_a_moment() -> None:
    before = common.memory_mb("VmRSS")
    common.forget_peak()
    with mmap.mmap(-1, 60_000_000) as held:  # fresh pages, which a free list of the process cannot serve
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
    assert common.memory_mb("VmHWM") - before > 50
    common.forget_peak()
    assert common.memory_mb("VmHWM") - common.memory_mb("VmRSS") < 5


@pytest.mark.slow
def test_a_method_in_a_process_of_its_own() -> None:
    work = Workload("tiny", "tiny", teacher_dim=48, batch_size=8)
    table = checked(methods.measure(work, ["talas"], steps=1, warmup=0))
    assert set(table["variant"]) == {"talas", "talas + asam"}


def test_caching_gives_the_same_vectors(measured) -> None:
    table = measured["encode"]
    assert list(values(table, "speedup")["variant"]) == [
        encode.THEIRS,
        "fp32",
        "fp32, 64 tokens a batch",
        "bf16",
        "bf16, 64 tokens a batch",
    ]
    assert bench.median(table, "smallest cosine", variant="fp32") > 0.99999
    assert bench.median(table, "smallest cosine", variant="bf16") > 0.999
    assert bench.median(table, "speedup", variant=encode.THEIRS) == 1


def test_made_up_sentences_are_distinct() -> None:
    texts = encode.made_up(5000)
    assert len(set(texts)) == 5000
    assert encode.made_up(10) == texts[:10]
    assert max(len(text.split()) for text in texts) < 30
    assert math.gcd(encode._STRIDE, 4 * 24**4) == 1  # so that all of them differ
    with pytest.raises(ValueError, match="there are only 1327104"):
        encode.made_up(2_000_000)


def test_memory_is_stated_by_size(measured) -> None:
    table = measured["flat"]
    assert list(dict.fromkeys(table["sentences"])) == [100, 300]
    assert set(values(table, "throughput")["unit"]) == {"sentences/s"}


def test_evaluation_tells_encoding_from_scoring(measured) -> None:
    table = measured["evaluation"]
    for precision in evaluation.PRECISIONS:
        rows = table[table["variant"] == precision]
        parts = values(rows, "encoding").set_index("task")["median"]
        assert parts.drop("all").sum() == pytest.approx(parts["all"])
        assert bench.median(rows, "total") >= parts["all"]
        texts = values(rows, "texts").set_index("task")["median"]
        assert texts.drop("all").sum() == texts["all"]
        scores = values(rows, "score").set_index("task")["median"]
        assert scores.drop("all").mean() == pytest.approx(scores["all"])
    gaps = values(table, "difference from fp32")["median"]
    assert gaps.max() == bench.median(table, "largest difference from fp32", task="all")


def test_the_eigenvalue_is_compared_with_pyhessian(measured) -> None:
    table = measured["eigen"]
    assert bench.median(table, "share of pyhessian's time", variant="pyhessian") == 1
    assert set(values(table, "time")["variant"]) == set(eigen.ESTIMATORS)


def test_ascent_is_relative_to_the_exact_one(measured) -> None:
    table = bench.ascent(measured["ascent"])
    assert set(table.index.get_level_values("variant")) == set(ascent.VARIANTS)
    assert table.loc[(0.5, "exact"), "rise, share of exact (x)"] == 1


# ---- files, figures, the notebook


def write(measured, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in measured.items():
        table.to_csv(folder / f"{name}.csv", index=False)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project folder without any result, the current one."""
    for name in ("params", "notebooks"):
        (tmp_path / name).symlink_to(paths.root() / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "paper").symlink_to(paths.root() / "results" / "paper")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_save_writes_the_table_and_its_figure(measured, tmp_path) -> None:
    rows = measured["steps"][COLUMNS].to_dict("records")
    common.save(rows, "steps", tmp_path, student="tiny", corpus="tiny")
    table = bench.read(tmp_path / "steps.csv")
    assert list(table.columns) == [*COLUMNS, "student", "corpus", "git", "cpu"]
    assert len(table) == len(rows)
    assert (tmp_path / "steps.png").stat().st_size > 5000


def test_every_figure_says_something(measured) -> None:
    for name, table in measured.items():
        figure = bench_figures.FIGURES[name](table)
        assert all(axes.get_title() for axes in figure.axes), name


def test_what_is_missing_is_named_with_the_way_out(measured, project) -> None:
    with pytest.raises(TalasError, match=r"lacks steps\.csv, .*evaluation\.csv.*make bench"):
        bench.tables()
    write(measured, project / "results" / "bench")
    (project / "results" / "bench" / "flat.csv").unlink()
    with pytest.raises(TalasError, match=r"lacks flat\.csv: `make bench`"):
        bench.tables()
    assert set(bench.table("steps")["bench"]) >= {"step-adamw", "step-asam"}
    with pytest.raises(TalasError, match="make bench"):
        bench.table("flat")
    with pytest.raises(KeyError):
        bench.median(bench.table("steps"), "time")


def test_the_papers_table_is_as_printed() -> None:
    table = bench.paper_table3().set_index("method")
    assert table.loc["TALAS (with ASAM)", "time_ms"] == 375
    assert table.loc["EMO", "memory_peak_mb"] == 13831
    assert set(table["variant"]) == {*methods.IN_THE_PAPER, "talas + asam"}
    assert all("arXiv 2606.21851" in source and "T4" in source for source in table["source"])


def test_the_committed_tables_can_be_read() -> None:
    for file in bench.folder().glob("*.csv"):
        assert file.stem in {*bench.TABLES, "full", "probe_noise", "soak"}  # the latter by commands of their own
        table = bench.read(file)
        assert list(table.columns[: len(COLUMNS)]) == COLUMNS
        assert {"git", "cpu"} <= set(table.columns)


@pytest.mark.slow
def test_07_shows_every_table(measured, project, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MPLBACKEND")  # kernels draw inline, as in JupyterLab
    write(measured, project / "results" / "bench")
    book = execute(project, tmp_path / "out.ipynb")
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(bench_figures.FIGURES) - 1  # encode
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"ASAM multiplies TALAS's time by 1\.92 in the paper\nand by \d+\.\d+ here with tiny", printed)


@pytest.mark.slow
def test_07_says_how_to_measure(project, tmp_path) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match="`make bench` writes all of them"):
        execute(project, tmp_path / "out.ipynb")


def execute(project: Path, out: Path):
    source = project / "notebooks" / "07_efficiency.ipynb"
    return papermill.execute_notebook(
        str(source), str(out), cwd=str(project), kernel_name="python3", progress_bar=False
    )
