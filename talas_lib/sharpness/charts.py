"""Figures of sharpness: eigenvalues over the epochs, landscapes on one scale, flatness beside scores. Titles say the finding."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from talas_lib import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAPER = {"linestyle": ":", "marker": "s", "markersize": 4, "linewidth": 1.2}


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each optimizer's label, such as `asam, rho 0.5`: adamw and the released radius have those of all figures."""
    fixed = {"adamw": plots.OPTIMIZER_COLOURS["adamw"], "asam, rho 0.05": plots.OPTIMIZER_COLOURS["asam"]}
    fixed |= {"asam, rho 0": plots.COLOURS["untrained"]}
    rest = [label for label in dict.fromkeys(labels) if label not in fixed]
    return fixed | {label: plots.SPARE[i % len(plots.SPARE)] for i, label in enumerate(rest)}


def _panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)  # shown by the notebook that asked for it, not twice
    return figure, grid


def over_epochs(
    table: pd.DataFrame,
    quantity: str = "lambda_max",
    *,
    paper: pd.DataFrame | None = None,
    subset: str | None = "encoder",
) -> Figure:
    """A quantity over the epochs, a line an optimizer (mean over its seeds), a point a seed.

    table: rows of `sharpness.table4.table` with a column `label`. paper: columns epoch and one an optimizer, drawn in a panel of
    its own, since only ratio and order can be compared.
    """
    rows = table[(table["quantity"] == quantity) & (table["epoch"] > 0)]
    rows = rows if subset is None else rows[rows["subset"] == subset]
    figure, grid = _panels(1, 1 if paper is None else 2, 7 if paper is None else 12, 4)
    own, chosen = grid[0][0], colours(list(table["label"]))
    last = rows[rows["epoch"] == rows["epoch"].max()].groupby("label", sort=False)["value"].mean()
    for label, group in rows.groupby("label", sort=False):
        mean = group.groupby("epoch")["value"].mean()
        own.plot(group["epoch"], group["value"], ".", color=chosen[str(label)], alpha=0.6)
        own.plot(mean.index, mean, "o-", markersize=4, color=chosen[str(label)], label=str(label))
    found = "; ".join(f"{label} {value:.3g}" for label, value in last.items())
    own.set_title(_in_lines(f"After the last epoch: {found}"), fontsize="small")
    own.set(xlabel="epoch", ylabel=_NAMES.get(quantity, quantity), ylim=(0, None))
    own.legend(frameon=False)
    if paper is not None:
        theirs = grid[0][1]
        for name in (column for column in paper.columns if column != "epoch"):
            shade = plots.OPTIMIZER_COLOURS.get(name.lower(), plots.SPARE[0])
            theirs.plot(paper["epoch"], paper[name], color=shade, label=name, **_PAPER)
        theirs.set_title("The paper's Table 4 (pair, batches and weights not stated)", fontsize="medium")
        theirs.set(xlabel="epoch", ylim=(0, None))
        theirs.legend(frameon=False)
    return figure


_NAMES = {
    "lambda_max": "$\\lambda_{max}$ of the encoder",
    "asam_rise": "loss rise at ASAM's one step",
    "asam_rise_steps": "loss rise in ASAM's ball",
    "random_rise": "loss rise in random directions",
    "loss_gap": "loss on unseen sentences\nless that on training ones",
    "trace": "trace",
    "score": "average score (0 to 100)",
}


def _in_lines(title: str, width: int = 64) -> str:
    """A title that stays above its own panel."""
    return textwrap.fill(title, width)


def gap(table: pd.DataFrame) -> Figure:
    """Training loss and loss on unseen sentences over the epochs, beside their difference."""
    rows = table[table["quantity"].isin(["train_loss", "held_out_loss", "loss_gap"]) & (table["epoch"] > 0)]
    figure, grid = _panels(1, 2, 12, 4)
    chosen = colours(list(table["label"]))
    means = rows.groupby(["label", "quantity", "epoch"])["value"].mean()
    for label in dict.fromkeys(rows["label"]):
        for quantity, style in (("train_loss", "-"), ("held_out_loss", "--")):
            line = means[label, quantity]
            grid[0][0].plot(
                line.index, line, style, color=chosen[label], label=f"{label}, {quantity.split('_loss')[0]}"
            )
        line = means[label, "loss_gap"]
        grid[0][1].plot(line.index, line, "o-", markersize=4, color=chosen[label], label=label)
    last = rows[(rows["quantity"] == "loss_gap") & (rows["epoch"] == rows["epoch"].max())]
    found = last.groupby("label", sort=False)["value"].mean()
    grid[0][0].set(title="The objective, dropout off", xlabel="epoch", ylabel="loss")
    in_the_end = "; ".join(f"{k} {v:.3f}" for k, v in found.items())
    grid[0][1].set_title(_in_lines(f"Gap in the end: {in_the_end}"), fontsize="small")
    grid[0][1].set(xlabel="epoch", ylabel=_NAMES["loss_gap"])
    for axes in grid[0]:
        axes.legend(frameon=False, fontsize="x-small")
    return figure


def single_batches(final: pd.DataFrame) -> Figure:
    """The largest eigenvalue of every batch by itself, with that of the mean loss as a line; rows of `final_table`."""
    rows = final[(final["quantity"] == "lambda_max") & (final["subset"] == final["subset"].iloc[0])]
    figure, grid = _panels(1, 1, 8, 4)
    labels = list(dict.fromkeys(rows["label"]))
    chosen, axes = colours(labels), grid[0][0]
    rng = np.random.default_rng(0)
    above = []
    for place, label in enumerate(labels):
        own = rows[rows["label"] == label]
        single, mean = own[own["batch"].notna()]["value"], own[own["batch"].isna()]["value"]
        axes.plot(place + rng.uniform(-0.2, 0.2, len(single)), single, ".", color=chosen[label], alpha=0.5)
        axes.hlines(mean, place - 0.35, place + 0.35, color="k", linewidth=1.5)
        above.append(float(single.mean() / mean.mean()))
    axes.set_xticks(range(len(labels)), labels)
    axes.set_title(
        f"A single batch overestimates: on average {min(above):.2f} to {max(above):.2f} times the mean loss's"
    )
    axes.set(ylabel="$\\lambda_{max}$ (line: of the mean loss)", ylim=(0, None))
    return figure


def along_eigenvector(lines: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Loss along each model's top eigenvector, with the parabola of slope and curvature; records' `landscape["line"]`."""
    figure, grid = _panels(1, 1, 7, 4)
    chosen, axes = _of_models(lines), grid[0][0]
    for label, line in lines.items():
        at, losses = np.array(line["positions"]), np.array(line["losses"])
        parabola = losses[len(at) // 2] + line["slope"] * at + line["curvature"] / 2 * at**2
        axes.plot(at, losses, color=chosen[label], label=label)
        axes.plot(at, parabola, "--", color=chosen[label], linewidth=1)
    top = max(max(line["losses"]) for line in lines.values())
    low = min(min(line["losses"]) for line in lines.values())
    axes.set_ylim(low - 0.05 * (top - low), top + 0.25 * (top - low))
    axes.set_title("Along the top eigenvector (dashed: its parabola at the centre)", fontsize="medium")
    axes.set(xlabel="distance along the unit vector", ylabel="loss")
    axes.legend(frameon=False)
    return figure


def _of_models(labels: Mapping[str, Any]) -> dict[str, str]:
    """Colours of models as all figures have them, of optimizers by their own."""
    known = colours([label for label in labels if label.startswith(("adamw", "asam", "sam", "disam"))])
    return {label: known.get(label) or plots.colour(label, i) for i, label in enumerate(labels)}


def planes(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The planes of several models, one colour scale for all; records' `landscape["plane"]`."""
    figure, grid = _panels(1, len(found), 4.2 * len(found) + 1, 4, sharex=True, sharey=True)
    losses = {label: np.array(plane["losses"]) for label, plane in found.items()}
    low, high = min(x.min() for x in losses.values()), max(x.max() for x in losses.values())
    levels = np.linspace(low, high, 25) if high > low else 3
    drawn: Any = None
    for axes, (label, plane) in zip(grid[0], found.items(), strict=True):
        drawn = axes.contourf(plane["first"], plane["second"], losses[label], levels=levels, cmap="viridis")
        axes.plot(0, 0, "w+", markersize=9)
        centre = losses[label][len(plane["second"]) // 2, len(plane["first"]) // 2]
        axes.set_title(f"{label}: {centre:.3f} in the middle", fontsize="medium")
        axes.set(xlabel="first direction", aspect="equal")
        axes.grid(visible=False)
    grid[0][0].set_ylabel("second direction")
    digits = (
        max(2, int(np.ceil(-np.log10((high - low) / 8)))) if high > low else 2
    )  # so that neighbouring labels differ
    figure.colorbar(drawn, ax=list(grid[0]), label="loss, one scale", format=f"%.{digits}f")
    return figure


def between(
    lines: Mapping[str, Mapping[str, Any]],
    names: tuple[str, str] = ("first", "second"),
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """Loss on the way from one solution (0) to another (1); records of `sharpness.stage.line_between` by label.

    styles: of a line by its label, what matplotlib's plot takes.
    """
    figure, grid = _panels(1, 1, 7, 4)
    axes = grid[0][0]
    barriers = []
    for i, (label, line) in enumerate(lines.items()):
        at, losses = np.array(line["positions"]), np.array(line["losses"])
        style = (styles or {}).get(label, {"color": plots.SPARE[i % len(plots.SPARE)]})
        axes.plot(at, losses, label=label, **style)
        inside = (at >= 0) & (at <= 1)
        chord = np.interp(at[inside], [0, 1], losses[inside][[0, -1]])
        barriers.append(float((losses[inside] - chord).max()))
    for place in (0, 1):
        axes.axvline(place, color="k", linestyle=":", linewidth=1)
    axes.set_title(f"Highest above the chord between the two: {max(barriers):.4f}", fontsize="medium")
    axes.set(xlabel=f"0: {names[0]}, 1: {names[1]}", ylabel="loss")
    if len(lines) > 1:
        axes.legend(frameon=False)
    return figure


_MARKERS = ("o", "^", "s", "D")


def flatness(rows: pd.DataFrame, correlations: pd.DataFrame, quantity: str = "lambda_max") -> Figure:
    """Score over sharpness, a point a run, a panel an objective; rows and correlations as `flatness` gives them. A marker stands
    for a schedule, where a panel has several.
    """
    kept = correlations[(correlations["quantity"] == quantity) & (correlations["objective"] != "all")]
    names = list(kept["objective"])
    columns = max(1, min(3, len(names)))
    high = max(1, -(-len(names) // columns))
    figure, grid = _panels(high, columns, 4.6 * columns, 3.8 * high)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    chosen = colours(list(rows["label"]))
    for axes, (_, found) in zip(grid.flat, kept.iterrows(), strict=False):
        own = rows[rows["objective"] == found["objective"]]
        schedules = own[["epochs", "lr"]].drop_duplicates().sort_values(["lr", "epochs"]).to_dict("records")
        varied = [name for name in ("epochs", "lr") if own[name].nunique() > 1]
        for (label, epochs, lr), group in own.groupby(["label", "epochs", "lr"], sort=False):
            more = {"epochs": f"{epochs} epochs", "lr": f"lr {lr:g}"}
            marker = _MARKERS[schedules.index({"epochs": epochs, "lr": lr}) % len(_MARKERS)]
            name = ", ".join([str(label), *(more[name] for name in varied)])
            style: dict[str, Any] = {"color": chosen[str(label)], "marker": marker, "markersize": 5}
            axes.plot(group[quantity], group["score"], linestyle="", label=name, **style)
        said = f"rank correlation {found['spearman']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
        axes.set_title(f"{_in_lines(found['objective'], 48)}\n{said}", fontsize="small")
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel=_NAMES.get(quantity, quantity), ylabel=_NAMES["score"])
        axes.legend(frameon=False, fontsize="x-small")
    return figure
