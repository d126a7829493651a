"""Figures for reading: the title says the finding, the same colour means the same model everywhere, safe for colour blindness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from talas_lib.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette; one colour a kind of model
COLOURS = {"teacher": "#000000", "untrained": "#999999", "untrained student, CLS pooling": "#BBBBBB"}
OPTIMIZER_COLOURS = {"asam": "#D55E00", "sam": "#CC79A7", "adamw": "#0072B2"}
SPARE = ("#009E73", "#E69F00", "#56B4E9", "#F0E442")


def colour(label: str, index: int = 0) -> str:
    """The colour of a model by its label."""
    if label in COLOURS:
        return COLOURS[label]
    if label.startswith("untrained"):
        return COLOURS["untrained"]
    for name, value in OPTIMIZER_COLOURS.items():
        if f"+ {name}" in label and "-" not in label.split("+ ")[1].split(",")[0]:
            return value
    return SPARE[index % len(SPARE)]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="notebook")
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    plt.close(figure)  # shown by the notebook that asked for it, not twice
    return figure, axes


def scores(table: pd.DataFrame) -> Figure:
    """Score per task and the average for each model; `table` as compare.scores_table gives it."""
    import seaborn as sns

    long = table.rename_axis("model").reset_index().melt(id_vars="model", var_name="task", value_name="score")
    palette = {m: colour(m, i) for i, m in enumerate(table.index)}
    figure, axes = _axes(1.6 * table.shape[1] + 2, 4.6)
    sns.barplot(long, x="task", y="score", hue="model", palette=palette, ax=axes)
    teachers = [m for m in table.index if m.startswith("teacher")]  # with several pairs of models, one row each
    untrained = [m for m in table.index if m.startswith("untrained")]
    trained = [m for m in table.index if m not in (*teachers, *untrained)]
    base, taught = (table.loc[rows, "avg"].max() for rows in (untrained, teachers))
    best = table.loc[trained, "avg"].max() if trained else base
    axes.set_title(f"Average: best trained student {best:.1f}, better untrained one {base:.1f}, teacher {taught:.1f}")
    axes.set_ylabel("score (0 to 100)")
    axes.set_xlabel("")
    axes.set_ylim(min(0.0, float(long["score"].min())), 100)
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), title="", frameon=False)
    return figure


def eigenvalues(table: pd.DataFrame) -> Figure:
    """Largest Hessian eigenvalue of each model by every estimator, headline subset; `table` from compare.sharpness_table."""
    import seaborn as sns

    rows = table[(table["quantity"] == "lambda_max") & table["batch"].isna()]
    figure, axes = _axes(7.5, 4.2)
    if rows.empty:
        axes.set_title("No eigenvalues: none of these runs has been measured, or none was trained on a loss")
        return figure
    if "subset" in rows:
        rows = rows[rows["subset"] == rows["subset"].iloc[0]]
    palette = ["#E69F00", "#56B4E9", *SPARE][: rows["estimator"].nunique()]
    sns.barplot(rows, x="model", y="value", hue="estimator", palette=palette, ax=axes)
    headline = rows.drop_duplicates("model").set_index("model")["value"]
    axes.set_title(
        "Largest Hessian eigenvalue: " + ", ".join(f"{m} {v:.3g}" for m, v in headline.items()),
        fontsize="medium",
        wrap=True,
    )
    axes.set_ylabel("$\\lambda_{max}$ of the full objective")
    axes.set_xlabel("")
    axes.legend(title="", frameon=False)
    return figure


def training_curves(
    table: pd.DataFrame, terms: Sequence[str] = ("loss", "loss_tamd", "loss_lasd", "loss_simcse")
) -> Figure:
    """Total loss and its unweighted terms over the epochs, one line a run; `table` from compare.curves_table.

    Runs without a loss are left out; where none has one, the mean cosine is shown.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    if table.empty:
        figure, axes = _axes(7.5, 2.5)
        axes.set_title("No curves: no logged steps of these runs are here")
        return figure
    shown = [t for t in terms if t in table.columns] or ["mean_cosine"]
    table = table.dropna(subset=shown[:1])
    sns.set_theme(style="whitegrid", context="notebook")
    figure, grid = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.6), layout="constrained", squeeze=False)
    plt.close(figure)
    models = list(dict.fromkeys(table["model"]))
    window = 5 if len(table) >= 20 * len(models) else 1
    for axes, term in zip(grid[0], shown, strict=True):
        for i, model in enumerate(models):
            rows = table[table["model"] == model].sort_values("step")
            smooth = rows[term].rolling(window, min_periods=1, center=True).mean()
            axes.plot(rows["epoch"], rows[term], color=colour(model, i), alpha=0.25, linewidth=1)
            axes.plot(rows["epoch"], smooth, color=colour(model, i), label=model, linewidth=1.8)
        axes.set_title(
            {"loss": "total objective", "loss_simcse": "SimCSE"}.get(term, term.removeprefix("loss_").upper())
        )
        axes.set_xlabel("epoch")
    grid[0][0].set_ylabel("loss (thick: mean of 5 logged steps)" if window > 1 else "loss")
    grid[0][-1].legend(frameon=False)
    return figure


def power_traces(traces: dict[str, Sequence[float]], exact: dict[str, float]) -> Figure:
    """Rayleigh quotient over the iterations of power iteration, with Lanczos's value as a dashed line."""
    figure, axes = _axes(7, 4)
    for i, (model, trace) in enumerate(traces.items()):
        axes.plot(range(1, len(trace) + 1), trace, color=colour(model, i), label=model)
        axes.axhline(exact[model], color=colour(model, i), linestyle="--", linewidth=1)
    axes.set_xlabel("iteration")
    axes.set_ylabel("Rayleigh quotient")
    elsewhere = [model for model, trace in traces.items() if abs(trace[-1] - exact[model]) > 0.05 * abs(exact[model])]
    if elsewhere:
        axes.set_title(f"Power iteration ends elsewhere than Lanczos (dashed): {', '.join(elsewhere)}")
    else:
        axes.set_title("Power iteration arrives at what Lanczos finds (dashed)")
    axes.legend(frameon=False)
    return figure


def lengths(words: Sequence[int], sources: Sequence[str]) -> Figure:
    """How long the sentences of a corpus are, in words, one line a source; both sequences run over the sentences."""
    import seaborn as sns

    table = pd.DataFrame({"words": words, "source": sources})
    figure, axes = _axes(7.5, 4)
    sns.ecdfplot(table, x="words", hue="source", palette="colorblind", ax=axes)
    half, most = table["words"].quantile([0.5, 0.95], interpolation="lower")
    axes.set_title(f"Half of the sentences have at most {half} words, 95 % at most {most}")
    axes.set_xlabel("words in a sentence")
    axes.set_ylabel("share of the source's sentences")
    axes.set_xlim(0)
    return figure


def spectrum(share: Sequence[float]) -> Figure:
    """Share of the variance in the first k principal directions over k; `share` of each direction, largest first."""
    import numpy as np

    held = 100 * np.cumsum(share)
    needed = int(np.searchsorted(held, 90)) + 1
    figure, axes = _axes(7, 4)
    axes.plot(np.arange(1, len(held) + 1), held, color=COLOURS["teacher"], label="these vectors")
    axes.plot([0, len(held)], [0, 100], color=COLOURS["untrained"], linestyle=":", label="all directions equal")
    axes.axvline(needed, color=SPARE[1], linestyle="--", linewidth=1)
    axes.set_title(f"{needed} of {len(held)} directions hold 90 % of the variance")
    axes.set_xlabel("principal directions, largest first")
    axes.set_ylabel("variance held (%)")
    axes.set_ylim(0, 101)
    axes.legend(frameon=False, loc="lower right")
    return figure


def ascent(table: pd.DataFrame) -> Figure:
    """What the sharpness-aware perturbation did at the probed steps; `table` from compare.curves_table, one run."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    rows = table[table["ascent_gain"].notna()].assign(percent=lambda t: 100 * t["relative"])
    panels = {
        "ascent_gain": "Rise of the loss at $w + \\epsilon$",
        "percent": "Length of the perturbation, % of $||w||$",
        "ascent_cosine": f"$\\cos(g', g)$: mean {rows['ascent_cosine'].mean():.4f}",
    }
    sns.set_theme(style="whitegrid", context="notebook")
    figure, grid = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    plt.close(figure)
    for axes, (name, title) in zip(grid, panels.items(), strict=True):
        axes.plot(rows["epoch"], rows[name], "o-", markersize=4, color=colour(rows["model"].iloc[0]), label="measured")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.ticklabel_format(axis="y", useOffset=False)
    grid[0].plot(rows["epoch"], rows["predicted_gain"], "k--", label="first order: $\\rho\\,||T_w g||$")
    grid[0].legend(frameon=False)
    return figure


def save(figure: Figure, path: Path, *, dpi: int = 130) -> None:
    """Write a PNG in one move."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
