"""What the benchmarks found: the tidy tables under `results/bench`, arranged for reading, and the paper's Table 3.

A table has one row a measurement: bench, variant, metric, unit, median, min, max, n, and where it comes from (git, cpu, corpus).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from talas_lib import display, paths
from talas_lib.errors import TalasError, listed

TABLES = ("steps", "phases", "methods", "ascent", "encode", "flat", "eigen", "evaluation")
PHASES = ("data", "forward", "loss", "backward", "perturbation", "optimizer", "other")
_WAY_OUT = "`make bench` writes all of them, in about 15 minutes of an idle machine"


def folder() -> Path:
    """Where the tables lie."""
    return paths.root() / "results" / "bench"


def table(name: str) -> pd.DataFrame:
    """One of TABLES. TalasError when it has not been measured."""
    if not (folder() / f"{name}.csv").is_file():
        raise TalasError(f"results/bench/{name}.csv is not there: {_WAY_OUT}")
    return read(folder() / f"{name}.csv")


def read(file: Path) -> pd.DataFrame:
    """A table from its file."""
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def tables() -> dict[str, pd.DataFrame]:
    """All of TABLES by name. TalasError names those that have not been measured."""
    missing = [name for name in TABLES if not (folder() / f"{name}.csv").is_file()]
    if missing:
        raise TalasError(f"results/bench lacks {listed(f'{name}.csv' for name in missing)}: {_WAY_OUT}")
    return {name: table(name) for name in TABLES}


def run() -> None:
    """Measure everything anew; what the benchmarks print is passed on. TalasError when one of them fails."""
    command = [sys.executable, "-m", "benchmarks"]
    with subprocess.Popen(
        command, cwd=paths.root(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            display.say(line.rstrip())
    if running.returncode:
        raise TalasError(f"`python -m benchmarks` ended with status {running.returncode}: see its last lines above")


def provenance(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Revision and machine of each table."""
    return pd.DataFrame({name: rows.iloc[0][["git", "cpu"]] for name, rows in found.items()}).T


# ---- one number, and tables of medians


def median(rows: pd.DataFrame, metric: str, **where: object) -> float:
    """The median of the one row with this metric and these column values. KeyError unless there is exactly one."""
    chosen = rows[rows["metric"] == metric]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    if len(chosen) != 1:
        raise KeyError(f"{len(chosen)} rows have metric {metric!r} and {where}")
    return float(chosen["median"].iloc[0])


def medians(
    rows: pd.DataFrame, metrics: Sequence[str], *, index: str | Sequence[str] = "variant", n: bool = True
) -> pd.DataFrame:
    """A row for each value of `index`, a column for each metric, `name (unit)`; n: the number of measurements beside them."""
    index = [index] if isinstance(index, str) else list(index)
    chosen = rows[rows["metric"].isin(metrics)]
    wide = chosen.pivot(index=index, columns="metric", values="median")
    wide = wide.reindex(columns=[m for m in metrics if m in wide.columns])
    order = list(dict.fromkeys(chosen[index].itertuples(index=False, name=None)))
    wide = wide.loc[[key if len(index) > 1 else key[0] for key in order]]
    units = dict(zip(chosen["metric"], chosen["unit"].fillna(""), strict=True))
    if n:
        wide["n"] = chosen.groupby(index, sort=False)["n"].max()
    return wide.rename(columns={m: f"{m} ({u})" for m, u in units.items() if u}).rename_axis(columns=None)


def steps(rows: pd.DataFrame) -> pd.DataFrame:
    """ms of a training step and how many times as fast as the usual implementation, for AdamW and ASAM."""
    chosen = rows[rows["bench"].isin(["step-adamw", "step-asam"])]
    return medians(chosen, ["time", "speedup"], index=["bench", "variant"])


def shortcuts(rows: pd.DataFrame) -> pd.DataFrame:
    """What a step costs, relative to the exact one, when its mathematics is changed."""
    return medians(rows, ["time, share of fp32"], index=["bench", "variant"])


def peak(rows: pd.DataFrame) -> pd.DataFrame:
    """Operations of a step, how fast they went, and the share of what large matrix products reach."""
    chosen = rows[rows["bench"].isin(["matrix-peak", "step-adamw", "step-asam"])]
    return medians(chosen, ["model FLOP", "throughput", "share of peak"], index=["bench", "variant"])


def phases(rows: pd.DataFrame) -> pd.DataFrame:
    """ms of each phase, a row a method, the quickest step first."""
    wide = rows.pivot(index="variant", columns="metric", values="median")[[*PHASES, "step"]]
    return wide.sort_values("step").rename_axis(columns="ms")


_TABLE3 = {
    "time": "ms/step",
    "memory, mean": "mean MB",
    "memory, peak": "peak MB",
    "memory, standard deviation": "sd MB",
}


def methods(rows: pd.DataFrame, student: str) -> pd.DataFrame:
    """Ours in the columns of the paper's Table 3, for one student; the paper's methods first and in its order."""
    chosen = rows[(rows["student"] == student) & rows["metric"].isin(list(_TABLE3))]
    wide = chosen.pivot(index="variant", columns="metric", values="median")[list(_TABLE3)].rename(columns=_TABLE3)
    theirs = [name for name in paper_table3()["variant"] if name in wide.index]
    others = [name for name in wide.index if name not in theirs]
    return wide.loc[[*theirs, *others]].rename_axis(columns=None)


def paper_table3() -> pd.DataFrame:
    """The paper's Table 3 as printed: a row a method, with our name for it (variant) and the source."""
    return pd.read_csv(paths.root() / "results" / "paper" / "table3.csv")


def paper_methods() -> pd.DataFrame:
    """The paper's Table 3 in the columns of `methods`, under our names of the methods."""
    names = {"time_ms": "ms/step", "memory_mean_mb": "mean MB", "memory_peak_mb": "peak MB", "memory_sd_mb": "sd MB"}
    return paper_table3().set_index("variant")[list(names)].rename(columns=names)


def ascent(rows: pd.DataFrame) -> pd.DataFrame:
    """What is left of ASAM's ascent by each approximation after training has begun, and what a step then costs."""
    late = rows[rows["after"] == rows["after"].max()]
    metrics = ["rise, share of exact", "turn, share of exact", "cost of a step"]
    return medians(late, metrics, index=["rho", "variant"], n=False)


def evaluation(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds of encoding and scoring by task and precision, with the scores."""
    return medians(rows, ["texts", "encoding", "scoring", "total", "score"], index=["task", "variant"], n=False)
