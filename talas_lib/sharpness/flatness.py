"""Does flatness go with score? Rank correlations over runs whose eigenvalues can be compared, with their intervals.

Eigenvalues belong to an objective: another method, temperature, pooling or corpus is another function on another scale. So runs
are ranked within one objective, and the runs of several are put together by averaging the correlations, never the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import runs
from talas_lib.comparison import settings_in_words
from talas_lib.uncertainty import resampled

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = ("lambda_max", "asam_rise", "asam_rise_steps", "random_rise", "trace")
# With fewer runs a rank correlation is one of a handful of numbers.
MIN_RUNS = 4
_OBJECTIVE = ("teacher", "teachers", "student", "corpus", "method")


def flatness_rows(found: Sequence[tuple[runs.Run, str | None]]) -> pd.DataFrame:
    """One row a run that was measured and scored: run, objective, label, optimizer, rho, seed, epochs, lr, score, quantities.

    found: runs, each with the suite whose average is its score (None: the one scored last). objective: a name, equal for runs
    with equal student, teachers, corpus and method that were measured with equal settings and scored on one suite. Runs
    that differ in optimizer, seed or schedule share it.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    objectives: list[dict[str, Any]] = []
    examples: list[tuple[str, dict[str, str]]] = []  # of each objective
    for run, suite in found:
        record, scored = run.read_record("sharpness"), run.evaluation(suite)
        if record is None or scored is None:
            continue
        config = run.params.run_config()
        objective = {name: config.get(name) for name in _OBJECTIVE} | {
            "measured": record["settings"],
            "suite": scored["suite"],
        }
        if objective not in objectives:
            objectives.append(objective)
            traits = _traits(run, scored["suite"]["name"], record["settings"])
            examples.append((f"{run.params.method}, {run.params.pooling}", traits))
        rows.append(_row(run, record, scored["avg"]) | {"objective": objectives.index(objective)})
    names = _names(examples)
    columns = ["run", "objective", "label", "optimizer", "rho", "seed", "epochs", "lr", "score", *QUANTITIES]
    columns += ["lambda_max_residual", "converged"]
    return pd.DataFrame([row | {"objective": names[row["objective"]]} for row in rows], columns=columns)


def optimizer_label(optimizer: str, rho: float | None) -> str:
    """`adamw`, or `asam, rho 0.05`."""
    return optimizer if rho is None else f"{optimizer}, rho {rho:g}"


def _row(run: runs.Run, record: dict[str, Any], score: float) -> dict[str, Any]:
    p = run.params
    head = {row["quantity"]: row["value"] for row in record["rows"] if row["subset"] == record["subset"]}
    found = {name: head.get(name) for name in QUANTITIES} | {"lambda_max": record["lambda_max"]}
    rho = p.optimizer_spec.rho
    about = {"run": run.id, "label": optimizer_label(p.optimizer, rho), "optimizer": p.optimizer, "rho": rho}
    about |= {"seed": p.seed, "epochs": p.epochs, "lr": p.lr, "score": score}
    return about | found | {name: record[name] for name in ("lambda_max_residual", "converged")}


def _traits(run: runs.Run, suite: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """What may tell the objectives of one method and pooling apart, in words."""
    return {
        "changed": ", ".join(settings_in_words(dict(sorted(run.params.method_params.items())))),
        "suite": f"scored on {suite}",
        "batches": f"{settings['sharpness_batches']} batches",
        "drawn": f"drawn by seed {settings['seed']}",
    }


def _names(examples: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
    """Method and pooling, with as many traits as tell the objectives of the same apart, and a number where these do not."""
    told = []
    for place, (plain, traits) in enumerate(examples):
        alike = [other for i, (name, other) in enumerate(examples) if name == plain and i != place]
        apart = []
        for trait, value in traits.items():
            if any(other[trait] != value for other in alike):
                apart += [value] if value else []
                alike = [other for other in alike if other[trait] == value]
        told.append("; ".join([plain, *apart]))
    seen: dict[str, int] = {}
    names = []
    for name in told:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if told.count(name) == 1 else f"{name} ({seen[name]})")
    return names


def correlations(rows: pd.DataFrame, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> pd.DataFrame:
    """Spearman's correlation of each quantity with the score: objective, quantity, n, spearman, low, high.

    A row for each objective of at least MIN_RUNS runs, and `all`, their mean weighted by the number of runs. The interval is
    the percentile bootstrap's over runs, drawn within each objective; it treats runs as independent, which seeds of
    one configuration are not quite. Below 0 for a sharpness means: flatter is better.
    """
    import pandas as pd

    found: list[dict[str, Any]] = []
    for quantity in QUANTITIES:
        own = rows[rows[quantity].notna()]
        parts: list[tuple[int, np.ndarray]] = []
        for objective, group in own.groupby("objective", sort=False):
            if len(group) < MIN_RUNS:
                continue
            sides = {"cosine": quantity, "target": "score"}  # the names that the metric knows them by
            items = {name: group[column].to_numpy(dtype=np.float64) for name, column in sides.items()}
            drawn = resampled("spearman", items, resamples=resamples, seed=(seed, len(parts)))
            parts.append((len(group), drawn))
            found.append({"objective": objective, "quantity": quantity, "n": len(group)} | _interval(drawn, level))
        if parts:
            sizes, values = np.array([n for n, _ in parts]), np.stack([drawn for _, drawn in parts])
            mean = sizes @ values / sizes.sum()
            found.append({"objective": "all", "quantity": quantity, "n": int(sizes.sum())} | _interval(mean, level))
    return pd.DataFrame(found, columns=["objective", "quantity", "n", "spearman", "low", "high"])


def _interval(drawn: np.ndarray, level: float) -> dict[str, float]:
    """The value on all runs, first in `drawn`, and the quantiles of the rest."""
    low, high = np.quantile(drawn[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"spearman": float(drawn[0]), "low": float(low), "high": float(high)}


def in_words(table: pd.DataFrame, quantity: str = "lambda_max") -> str:
    """What the correlations say of a quantity, in a sentence that claims no more than the interval."""
    rows = table[(table["objective"] == "all") & (table["quantity"] == quantity)]
    if rows.empty:
        return f"No objective has {MIN_RUNS} runs that were measured and scored: nothing can be said of flatness and score."
    row = rows.iloc[0]
    begin = (
        f"Over {row['n']} runs, ranked within their objectives, {quantity} and score have a rank correlation of"
        f" {row['spearman']:+.2f} (95 % interval {row['low']:+.2f} to {row['high']:+.2f}): "
    )
    if row["low"] <= 0 <= row["high"]:
        return begin + "these runs do not show that flatness goes with score."
    return begin + ("flatter goes with better here." if row["spearman"] < 0 else "sharper goes with better here.")
