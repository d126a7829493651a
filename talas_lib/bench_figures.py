"""Figures of what the benchmarks found; the title says the finding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from talas_lib import bench, plots
from talas_lib.point_names import place_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASE_COLOURS = dict(
    zip(bench.PHASES, ("#F0E442", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#E69F00", "#999999"), strict=True)
)
PRECISION_COLOURS = {"fp32": "#0072B2", "bf16": "#E69F00"}
_THEIRS = "#999999"


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Any]]:
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    figure, grid = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)  # shown by the notebook that asked for it, not twice
    return figure, list(grid[0])


def _bars(axes: Any, rows: pd.DataFrame, colours: list[str]) -> None:
    """One horizontal bar a row, first row on top, with its range and its value; rows with median, min and max."""
    places = np.arange(len(rows))[::-1]
    spread = np.abs(rows[["min", "max"]].to_numpy().T - rows["median"].to_numpy())
    axes.barh(places, rows["median"], xerr=spread, color=colours, error_kw={"lw": 1, "ecolor": "#444444"})
    axes.set_yticks(places, rows["variant"])
    for place, value in zip(places, rows["median"], strict=True):
        beside = {"xytext": (4, 3), "textcoords": "offset points"}  # above the line of the range
        axes.annotate(_number(value), (value, place), va="bottom", fontweight="bold", fontsize=10, **beside)
    axes.grid(axis="y", visible=False)


def _number(value: float) -> str:
    """Three digits, and no power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def steps(rows: pd.DataFrame) -> Figure:
    """ms of a training step here and by the usual implementation, AdamW beside ASAM."""
    figure, panels = _panels(2, 12, 3.4, sharey=True)
    for axes, optimizer in zip(panels, ("adamw", "asam"), strict=True):
        own = rows[(rows["bench"] == f"step-{optimizer}") & rows["variant"].isin(["reference", "fp32", "bf16"])]
        faster = {v: bench.median(own, "speedup", variant=v) for v in ("fp32", "bf16")}
        _bars(axes, own[own["metric"] == "time"], [_THEIRS, *PRECISION_COLOURS.values()])
        axes.set_title(f"{optimizer}: {faster['fp32']:.2f} times as fast in fp32, {faster['bf16']:.2f} in bf16")
        axes.set_xlabel("ms a step (median and range)")
    return figure


def phases(rows: pd.DataFrame) -> Figure:
    """ms of each phase of a step, a bar a method."""
    wide = bench.phases(rows)
    figure, (axes,) = _panels(1, 10, 0.36 * len(wide) + 1.6)
    left = np.zeros(len(wide))
    for phase in bench.PHASES:
        axes.barh(wide.index, wide[phase], left=left, color=PHASE_COLOURS[phase], label=phase)
        left += wide[phase].to_numpy()
    axes.invert_yaxis()
    share = (wide["forward"] + wide["backward"]) / wide["step"]
    axes.set_title(f"Forward and backward take {100 * share.median():.0f} % of a step (median over methods)")
    axes.set_xlabel("ms a step, median of each phase")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def methods(rows: pd.DataFrame) -> Figure:
    """Time of a step against the memory of the process, a panel a student."""
    students = list(dict.fromkeys(rows["student"]))
    figure, panels = _panels(len(students), 6 * len(students) + 1, 4.4)
    for axes, student in zip(panels, students, strict=True):
        wide = bench.methods(rows, student)
        axes.plot(wide["ms/step"], wide["peak MB"], "o", color=plots.OPTIMIZER_COLOURS["adamw"])
        axes.margins(x=0.2, y=0.15)
        if {"talas", "talas + asam"} <= set(wide.index):
            ratio = wide.loc["talas + asam"] / wide.loc["talas"]
            axes.set_title(
                f"{student}: ASAM takes {ratio['ms/step']:.2f} times the time,\n{ratio['peak MB']:.2f} times the memory"
            )
        else:
            axes.set_title(student)
        axes.set_xlabel("ms a step")
        axes.set_ylabel("peak memory of the process (MB)")
    for axes, student in zip(panels, students, strict=True):  # once the layout stands
        wide = bench.methods(rows, student)
        place_labels(axes, list(map(str, wide.index)), list(wide["ms/step"]), list(wide["peak MB"]))
    return figure


def ascent(rows: pd.DataFrame) -> Figure:
    """What each approximation keeps of ASAM's rise of the loss, against what its step costs, a panel each rho."""
    import seaborn as sns

    wide = bench.ascent(rows).dropna().rename(columns=lambda name: name.split(" (")[0]).reset_index()
    groups = list(wide.groupby("rho"))
    figure, panels = _panels(len(groups), 5 * len(groups) + 3, 4, sharex=True, sharey=True)
    for axes, (rho, found) in zip(panels, groups, strict=True):
        last = axes is panels[-1]
        sns.scatterplot(
            found,
            x="cost of a step",
            y="rise, share of exact",
            hue="variant",
            style="variant",
            s=90,
            palette="colorblind",
            legend=last,
            ax=axes,
        )
        cost = found.loc[found["variant"] == "exact", "cost of a step"].iloc[0]
        axes.set_title(f"rho {rho:g}: the exact ascent costs {cost:.2f} AdamW steps")
        axes.set_xlabel("cost of a step (AdamW steps)")
        axes.set_ylabel("rise of the loss, share of the exact one")
    panels[0].set_ylim(0, 1.1 * wide["rise, share of exact"].max())
    sns.move_legend(panels[-1], "center left", bbox_to_anchor=(1, 0.5), title="", frameon=False)
    return figure


def encode(rows: pd.DataFrame) -> Figure:
    """Sentences a second when a teacher's vectors are cached."""
    found = rows[rows["metric"] == "throughput"]
    faster = {v: bench.median(rows, "speedup", variant=v) for v in PRECISION_COLOURS}
    figure, (axes,) = _panels(1, 8, 0.5 * len(found) + 1.4)
    own = [PRECISION_COLOURS[str(name).split(",")[0]] for name in found["variant"].iloc[1:]]
    _bars(axes, found, [_THEIRS, *own])
    axes.set_title(f"Caching a teacher: {faster['fp32']:.2f} times as fast in fp32, {faster['bf16']:.2f} in bf16")
    axes.set_xlabel("sentences a second (median and range)")
    return figure


def flat(rows: pd.DataFrame) -> Figure:
    """Memory beside the texts, and throughput, as the number of cached sentences grows."""
    wide = rows.pivot(index="sentences", columns="metric", values="median")
    figure, (left, right) = _panels(2, 11, 3.6)
    beside = wide["memory, beside the texts"]
    left.plot(wide.index, beside, "o-", color=plots.SPARE[0])
    times, more = beside.index[-1] / beside.index[0], beside.iloc[-1] - beside.iloc[0]
    left.set_title(f"{times:g} times the sentences: {more:+.0f} MB")
    left.set_ylabel("peak memory beside the texts (MB)")
    left.set_ylim(0, max(1.15 * beside.max(), 1.0))  # one MB at least: on tiny sizes nothing may grow
    right.plot(wide.index, wide["throughput"], "o-", color=plots.SPARE[1])
    right.set_title(f"{wide['throughput'].iloc[-1]:,.0f} sentences a second at the largest size")
    right.set_ylabel("sentences a second")
    right.set_ylim(0, 1.15 * wide["throughput"].max())
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("sentences cached (tiny teacher)")
    return figure


def eigen(rows: pd.DataFrame) -> Figure:
    """Seconds to the largest eigenvalue, with each estimator's error in its label."""
    found = rows[rows["metric"] == "time"].copy()
    ours = found["variant"].iloc[0]
    share = bench.median(rows, "share of pyhessian's time", variant=ours)
    found["variant"] = [f"{v}\n(error {bench.median(rows, 'relative error', variant=v):.0e})" for v in found["variant"]]
    figure, (axes,) = _panels(1, 8, 3)
    _bars(axes, found, [plots.SPARE[1]] * (len(found) - 1) + [_THEIRS])
    axes.set_title(f"Largest eigenvalue: {share:.2f} of PyHessian's time")
    axes.set_xlabel("seconds")
    return figure


def evaluation(rows: pd.DataFrame) -> Figure:
    """Seconds of encoding and scoring by task, fp32 beside bf16."""
    tasks = [task for task in dict.fromkeys(rows["task"]) if task != "all"]
    total = {v: bench.median(rows, "total", variant=v, task="all") for v in PRECISION_COLOURS}
    gap = bench.median(rows, "largest difference from fp32", variant="bf16", task="all")
    figure, panels = _panels(2, 12, 0.36 * len(tasks) + 1.6, sharex=True, sharey=True)
    for axes, (precision, seconds) in zip(panels, total.items(), strict=True):
        left = np.zeros(len(tasks))
        for part, colour in (("encoding", "#56B4E9"), ("scoring", "#E69F00")):
            values = np.array([bench.median(rows, part, variant=precision, task=task) for task in tasks])
            axes.barh(tasks, values, left=left, color=colour, label=part)
            left += values
        apart = "" if precision == "fp32" else f", scores at most {gap:.2g} points apart"
        axes.set_title(f"{precision}: {_number(seconds)} s{apart}")
        axes.set_xlabel("seconds")
        axes.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "steps": steps,
    "phases": phases,
    "methods": methods,
    "ascent": ascent,
    "encode": encode,
    "flat": flat,
    "eigen": eigen,
    "evaluation": evaluation,
}
