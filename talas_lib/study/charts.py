"""Figures of a study: the title says the finding, the paper's curves have panels of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from talas_lib import plots
from talas_lib.point_names import place_labels
from talas_lib.spread import AVERAGE
from talas_lib.study import paper_tables
from talas_lib.study.blocks import Block
from talas_lib.study.cost import reckoned
from talas_lib.study.effects import ANCHOR, MEAN
from talas_lib.study.tabulation import AVERAGES, MINUTES, OWN, REFERENCE, is_empty
from talas_lib.study.wording import TOGETHER, signed, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AVERAGE_COLOURS = {"avg": "#000000", "avg_in": "#0072B2", "avg_out": "#E69F00"}  # Okabe and Ito
_AVERAGE_NAMES = {"avg": "Avg", "avg_in": "Avg-In", "avg_out": "Avg-Out"}


@dataclass(frozen=True)
class Curve:
    """Averages over the values of a setting; sds and band (the sd over seeds of the middle one) where there are several seeds."""

    title: str
    values: Sequence[str]
    means: Mapping[str, Sequence[float]]
    sds: Mapping[str, Sequence[float]]
    ours: bool = True


# ---- score against a setting (the paper's figures 2 and 3)


def curves(setting: str, words: str, blocks: Sequence[tuple[Block, pd.DataFrame]], papers: Sequence[str]) -> Figure:
    """Score against a setting of TALAS such as num_anchor_layers, ours first, then a panel for each pair of the paper's.

    words: what the setting counts, for the axis. blocks: ours in which it varies, with their tables; papers: tables of the
    paper's (results/paper) that vary it.
    """
    panels = [_own_curve(setting, block, table) for block, table in blocks]
    for name in papers:
        for pair, values, numbers in paper_tables.curves(name, setting):
            panels.append(Curve(f"paper: {pair}", values, numbers, {}, ours=False))
    figure, grid = _panels(len(panels), 3.9 * len(panels) + 0.6, 4.0)
    for axes, panel in zip(grid, panels, strict=True):
        _draw_curve(axes, panel)
        axes.set_xlabel(words)
    grid[0].set_ylabel("score (0 to 100)")
    grid[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def varies(setting: str, block: Block) -> bool:
    """Whether a block's runs have several values of a setting of their method."""
    configs = (cell.resolved.method_config for cell in block.cells)
    return len({str(value) for config in configs if (value := getattr(config, setting, None)) is not None}) > 1


def _own_curve(setting: str, block: Block, table: pd.DataFrame) -> Curve:
    rows = table[(table["kind"] == OWN) & (table["n"] > 0)].set_index("row")
    labels = {label: str(getattr(block.asked_groups[label][0].resolved.method_config, setting)) for label in rows.index}
    order = sorted(labels, key=lambda label: (labels[label] == "all", labels[label].zfill(3)))
    means = {name: [float(rows.loc[label, name]) for label in order] for name in AVERAGES if name in rows}
    sds = {name: [float(rows.loc[label, f"{name} sd"]) for label in order] for name in means}
    return Curve(f"{block.teacher} to {block.student}", [labels[label] for label in order], means, sds)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    places = np.arange(len(curve.values))
    for name, means in curve.means.items():
        spread = np.nan_to_num(np.array(curve.sds.get(name, [0.0] * len(means)), dtype=float))
        style: dict[str, Any] = {
            "color": AVERAGE_COLOURS[name],
            "label": _AVERAGE_NAMES[name],
            "linewidth": 2 if name == "avg" else 1.2,
        }
        axes.errorbar(places, means, yerr=spread, marker="o", capsize=3, linestyle="-" if curve.ours else "--", **style)
    axes.set_xticks(places, curve.values)
    best = int(np.argmax(curve.means["avg"])) if curve.values else 0
    found = f"Avg is highest with {curve.values[best]}" if curve.values else "nothing on record"
    axes.set_title(f"{curve.title}\n{found}", fontsize="medium")


# ---- score against cost


def cost(block: Block, table: pd.DataFrame) -> Figure:
    """Every method by its average against the minutes of training (logarithmic), with the deviations over seeds."""
    rows = _on_record(table)
    figure, (axes,) = _panels(1, 10, 6)
    minutes = [max(row[MINUTES], 0.01) for row in rows]
    for i, (row, left) in enumerate(zip(rows, minutes, strict=True)):
        up, along = np.nan_to_num([row["avg sd"], row[f"{MINUTES} sd"]])
        mark: dict[str, Any] = {"color": plots.colour(row["row"], i), "marker": "o", "capsize": 2, "linewidth": 1}
        axes.errorbar(left, row["avg"], yerr=up, xerr=min(along, 0.9 * left), **mark)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.12)
    _reference_lines(axes, table)
    machine = "on two idle threads" if reckoned(block) else "by the clock"
    axes.set_xlabel(f"training, minutes {machine} (logarithmic); AdamW where a name does not say otherwise")
    axes.set_ylabel("Avg (0 to 100)")
    axes.set_title(_cost_title(rows, block.baseline), fontsize="medium", wrap=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    lines = [row["avg"] for row in table.to_dict("records") if row["kind"] == REFERENCE]
    names = [str(row["row"]).replace(" + adamw", "").replace(f"teacher {block.teacher}+", "with ") for row in rows]
    place_labels(axes, names, minutes, [row["avg"] for row in rows], lines=lines)
    return figure


def _on_record(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Our rows with at least one run."""
    return [row for row in table.to_dict("records") if row["kind"] == OWN and row["n"] > 0]


def _cost_title(rows: Sequence[Mapping[Any, Any]], baseline: str) -> str:
    if not rows:
        return "Nothing on record yet"
    best = max(rows, key=lambda row: row["avg"])
    lines = [f"Highest: {_after(best)}"]
    if best["row"] == baseline:
        lines += [f"not told apart: {_after(row)}" for row in rows if set(verdicts(row).values()) == {TOGETHER}]
    else:
        lines += [_after(row) for row in rows if row["row"] == baseline]
    return "\n".join(lines)


def _after(row: Mapping[Any, Any]) -> str:
    return f"{row['row']}, {row['avg']:.1f} after {row[MINUTES]:.1f} minutes"


def _reference_lines(axes: Axes, table: pd.DataFrame) -> None:
    """The references as lines, named in a legend below; one far above the runs would flatten them and is named only."""
    low, high = axes.get_ylim()
    styles = ("-", "--", ":", "-.")
    references = [row for row in table.to_dict("records") if row["kind"] == REFERENCE]
    for number, row in enumerate(references):
        inside = low - (high - low) <= row["avg"] <= high + (high - low)
        name = f"{row['row']} {row['avg']:.1f}" + ("" if inside else " (outside)")
        where = row["avg"] if inside else math.nan
        axes.axhline(where, color=plots.colour(row["row"]), linestyle=styles[number % 4], linewidth=1.2, label=name)
    if references:
        axes.figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")


# ---- ASAM's controls


def asam_controls(block: Block, table: pd.DataFrame) -> Figure:
    """Avg of ASAM by its radius, with fresh and with repeated dropout masks, and AdamW's as lines; bars and bands: one standard
    deviation over seeds, where there are several.
    """
    rows = {row["row"]: row for row in _on_record(table)}
    by_row = {label: block.asked_groups[label][0].resolved for label in rows}
    asam = [
        (float(p.rho or 0), bool(p.same_dropout), rows[label]) for label, p in by_row.items() if p.optimizer == "asam"
    ]
    radii = sorted({rho for rho, *_ in asam})
    figure, (axes,) = _panels(1, 7.5, 4.4)
    for same, words, colour in ((False, "fresh dropout masks", "asam"), (True, "the same masks in both passes", "sam")):
        own = sorted((radii.index(rho), row["avg"], row["avg sd"]) for rho, repeated, row in asam if repeated is same)
        if own:
            places, means, sds = zip(*own, strict=True)
            style: dict[str, Any] = {"color": plots.OPTIMIZER_COLOURS[colour], "marker": "o", "capsize": 3}
            axes.errorbar(places, means, yerr=np.nan_to_num(sds), label=f"ASAM, {words}", **style)
    for number, label in enumerate(label for label, p in by_row.items() if p.optimizer == "adamw"):
        mean, sd = rows[label]["avg"], rows[label]["avg sd"]
        line: dict[str, Any] = {"color": plots.OPTIMIZER_COLOURS["adamw"], "linestyle": ("--", ":", "-.")[number % 3]}
        axes.axhline(mean, label=f"AdamW, {by_row[label].epochs} epochs", **line)
        if not is_empty(sd):
            axes.axhspan(mean - sd, mean + sd, color=line["color"], alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(radii)), [f"{rho:g}" for rho in radii])
    axes.set_xlabel("$\\rho$ of ASAM (0: two passes, no perturbation)")
    axes.set_ylabel("Avg (0 to 100)")
    best = max(rows.values(), key=lambda row: row["avg"])
    lowest = min(row["avg"] for row in rows.values())
    axes.set_title(f"Highest: {best['row']}, {best['avg']:.2f}; lowest {lowest:.2f}", fontsize="medium", wrap=True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


# ---- what each part adds


def parts(table: pd.DataFrame) -> Figure:
    """What LASD, SimCSE and ASAM add beside TAMD: each contrast, and their mean in bold, with 95 % intervals over seeds.

    table: effects.effects of a block, with at least one mean.
    """
    table = table[table["task"] == AVERAGE]
    means = table[table["beside"] == MEAN]
    rows: list[tuple[str, Mapping[Any, Any]]] = []
    for mean in means.to_dict("records"):
        own = table[(table["part"] == mean["part"]) & (table["beside"] != MEAN)]
        single = [row for row in own.to_dict("records") if ANCHOR in row["beside"]]
        rows += [(f"{mean['part']}, mean", mean), *((f"beside {row['beside']}", row) for row in single)]
    figure, (axes,) = _panels(1, 8, 0.28 * len(rows) + 1.4)
    for place, (_, row) in enumerate(rows):
        bold = row["beside"] == MEAN
        reach = np.nan_to_num([[row["difference"] - row["low"]], [row["high"] - row["difference"]]])
        style: dict[str, Any] = {"color": "k" if bold else "#888888", "linewidth": 2.5 if bold else 1}
        axes.errorbar(row["difference"], place, xerr=reach, marker="o", markersize=6 if bold else 4, capsize=2, **style)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("points added to Avg, and their 95 % interval over seeds")
    found = ", ".join(f"{row['part']} {signed(row['difference'])}" for row in means.to_dict("records"))
    figure.suptitle(f"Beside TAMD, in the mean: {found}", fontsize="medium")
    return figure


def has_radii(block: Block) -> bool:
    """Whether a block varies ASAM's radius."""
    return len({cell.resolved.rho for cell in block.cells if cell.resolved.optimizer == "asam"}) > 2


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    figure, grid = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    plt.close(figure)  # shown by the notebook that asked for it, not twice
    return figure, list(grid[0])
