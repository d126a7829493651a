"""The paper's Table 4 from the records of runs, and what belongs beside it: tables and figures under results/sharpness.

    python -m talas_lib.sharpness.table4 write sharpness [--flatness cpu-study]
    python -m talas_lib.sharpness.table4 measure cpu-study --batches 8 [--tables asam-controls --methods talas]

`write` reads the runs of a preset whose notebook 05 measured epochs, follows the lines between its optimizers' solutions, and
writes the same files from the same records every time. `measure` gives every trained run of a preset a sharpness record, with
the quick estimator, so that flatness can be set beside scores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib import display, methods, params, paths, runs
from talas_lib.errors import TalasError, exit_code
from talas_lib.files import atomic_write_text
from talas_lib.sharpness import flatness

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "run",
    "optimizer",
    "rho",
    "seed",
    "epoch",
    "quantity",
    "subset",
    "value",
    "residual",
    "converged",
    "hvps",
    "seconds",
    "estimator",
    "batches",
    "batch",
)
_TOLERANCE = 1e-2  # residual of `measure`: the error of an eigenvalue is about its square
_GAP = {"train_loss": "train_loss", "held_out_loss": "held_out_loss", "gap": "loss_gap"}


def members(preset: str) -> list[runs.Run]:
    """The runs of a preset that are trained on a loss, each once, in the preset's order. TalasError lists those not there."""
    found = _asked(preset)
    missing = [run.id for run in found if run.read_record("train") is None]
    if missing:
        raise TalasError(f"not trained yet: {', '.join(missing)}. Run them first: python -m talas_lib {preset}")
    return found


def measured(preset: str) -> list[runs.Run]:
    """Those of the runs of a preset that have a sharpness record, all others left out."""
    return [run for run in _asked(preset) if run.read_record("sharpness") is not None]


def _asked(preset: str, tables: Sequence[str] = (), only: Sequence[str] = ()) -> list[runs.Run]:
    """The runs of a preset with a loss, each once: of some of its tables, of some methods, where such are named."""
    for method in only:
        methods.module(method)
    found: dict[str, runs.Run] = {}
    for cell in params.expand_grid(params.select_tables(params.load_preset(preset), tables)):
        p = params.resolve("03_train", cell)
        if not methods.builds_student(p.method) and (not only or p.method in only):
            found.setdefault(p.run_id, runs.Run(p.run_id))
    return list(found.values())


# ---- tables


def table(found: Sequence[runs.Run]) -> pd.DataFrame:
    """Every estimate over the epochs, COLUMNS and `label`; epoch 0 is the untrained student.

    The headline is quantity `lambda_max` of subset `encoder`, one row a run and epoch; what other estimators and single batches
    say of it has other names. TalasError for a run whose epochs were not measured.
    """
    from talas_lib.sharpness.stage import epoch_records

    rows: list[dict[str, Any]] = []
    for run in found:
        measured = epoch_records(run)
        if not measured:
            raise TalasError(
                f"run {run.id} has no sharpness over its epochs; execute notebooks/05_sharpness.ipynb with"
                f" -p run {run.id} -y 'sharpness_epochs: [1, 3]'"
            )
        untrained = next(iter(measured.values()))["untrained"]
        for epoch, record in {0: untrained, **measured}.items():
            rows += [_about(run, epoch) | row for row in _estimates(record)]
    return _frame(rows)


def final_table(found: Sequence[runs.Run]) -> pd.DataFrame:
    """Every estimate at the final weights, single batches included (`batch` is the number of one), COLUMNS and `label`."""
    from talas_lib.sharpness.stage import last_epoch

    rows: list[dict[str, Any]] = []
    for run in found:
        record = run.read_record("sharpness")
        if record is None:
            raise TalasError(
                f"run {run.id} has no sharpness record; execute notebooks/05_sharpness.ipynb with -p run {run.id}"
            )
        rows += [_about(run, last_epoch(run)) | row for row in (*record["rows"], *_gap_rows(record))]
    return _frame(rows)


def _about(run: runs.Run, epoch: int) -> dict[str, Any]:
    p = run.params
    rho = p.optimizer_spec.rho
    label = flatness.optimizer_label(p.optimizer, rho)
    return {"run": run.id, "optimizer": p.optimizer, "rho": rho, "seed": p.seed, "epoch": epoch, "label": label}


def _estimates(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a record with one `lambda_max` a subset: the first, which is the headline's estimator."""
    seen = set()
    for row in record["rows"]:
        name = row["quantity"]
        if row["batch"] is not None:
            continue
        if name == "lambda_max" and row["subset"] in seen:
            name = f"lambda_max_{row['estimator']}"
        elif name == "lambda_max":
            seen.add(row["subset"])
        yield row | {"quantity": name}
    yield from _gap_rows(record)


def _gap_rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Loss on training and on unseen sentences: evaluations, without products, residual or subset."""
    gap: dict[str, Any] = record.get("gap") or {}
    for key, name in _GAP.items() if gap else ():
        yield {"quantity": name, "value": gap[key], "batches": gap["batches"]}


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=[*COLUMNS, "label"]).astype(
        {"hvps": "Int64", "batches": "Int64", "batch": "Int64"}
    )


def lines(found: Sequence[runs.Run], settings: Mapping[str, Any], points: int) -> dict[str, dict[str, Any]]:
    """The loss on the way from the first run of every seed to the others of that seed, by label; followed where not on record."""
    from talas_lib.sharpness.stage import line_between

    by_seed: dict[int, list[runs.Run]] = {}
    for run in found:
        by_seed.setdefault(run.params.seed, []).append(run)
    followed = {}
    for group in by_seed.values():
        for other in group[1:]:
            p = params.resolve("05_sharpness", {**settings, "run": group[0].id, "landscape": points})
            followed[_way(other)] = line_between(group[0], other, p)
    return followed


def _way(other: runs.Run) -> str:
    """The name of the line to a run."""
    return f"to {_about(other, 0)['label']}, seed {other.params.seed}"


def _line_styles(found: Sequence[runs.Run]) -> dict[str, dict[str, Any]]:
    """A colour an optimizer and a dash a seed, by the name of the line."""
    from talas_lib.sharpness.charts import colours

    seeds = list(dict.fromkeys(run.params.seed for run in found))
    labels = {_way(run): _about(run, 0)["label"] for run in found}
    chosen = colours(list(labels.values()))
    dashes = ("-", "--", ":", "-.")
    return {
        _way(run): {
            "color": chosen[labels[_way(run)]],
            "linestyle": dashes[seeds.index(run.params.seed) % len(dashes)],
        }
        for run in found
    }


# ---- files


def write(preset: str, *, beside: Sequence[str] = (), folder: Path | None = None) -> Path:
    """All tables and figures of a preset, under results/sharpness unless another folder is given; returns the folder.

    beside: further presets whose measured and scored runs count for the correlation of flatness and score.
    """
    import pandas as pd

    values = params.load_preset(preset)
    folder = paths.results() / "sharpness" if folder is None else folder
    found = members(preset)
    over_epochs, final = table(found), final_table(found)
    together = {run.id: (run, values.get("tasks")) for run in found}
    for name in beside:
        suite = params.load_preset(name).get("tasks")
        together |= {run.id: (run, suite) for run in measured(name) if run.id not in together}
    rows = flatness.flatness_rows(list(together.values()))
    ranks = flatness.correlations(rows)
    settings = {k: v for k, v in values.items() if k in params.notebook_schema("05_sharpness").names}
    points = values.get("landscape") or 21
    ways = lines(found, settings, points)
    along = [
        {"line": label, "position": at, "loss": loss}
        for label, way in ways.items()
        for at, loss in zip(way["positions"], way["losses"], strict=True)
    ]
    tables = {
        "table4": over_epochs.drop(columns="label"),
        "final": final.drop(columns="label"),
        "lines": pd.DataFrame(along, columns=["line", "position", "loss"]),
        "flatness": rows,
        "correlations": ranks,
    }
    for name, frame in tables.items():
        atomic_write_text(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
    atomic_write_text(folder / "flatness.md", flatness.in_words(ranks) + "\n")
    _draw(folder, found, over_epochs, final, ways, rows, ranks)
    return folder


def _draw(
    folder: Path,
    found: Sequence[runs.Run],
    over_epochs: pd.DataFrame,
    final: pd.DataFrame,
    ways: Mapping[str, Mapping[str, Any]],
    rows: pd.DataFrame,
    ranks: pd.DataFrame,
) -> None:
    from talas_lib import plots
    from talas_lib.sharpness import charts as draw

    figures = {"table4": draw.over_epochs(over_epochs, paper=_paper())}
    if "asam_rise_steps" in set(over_epochs["quantity"]):
        figures["asam_rise"] = draw.over_epochs(over_epochs, "asam_rise_steps")
    if "loss_gap" in set(over_epochs["quantity"]):
        figures["gap"] = draw.gap(over_epochs)
    if final["batch"].notna().any():
        figures["single_batches"] = draw.single_batches(final)
    first = found[0].params.seed
    shapes = {
        _about(run, 0)["label"]: record["landscape"]
        for run in found
        if run.params.seed == first and (record := run.read_record("sharpness") or {}).get("landscape")
    }
    if shapes:
        figures["eigenvector"] = draw.along_eigenvector({label: shape["line"] for label, shape in shapes.items()})
        figures["planes"] = draw.planes({label: shape["plane"] for label, shape in shapes.items()})
    if ways:
        figures["lines"] = draw.between(ways, (_about(found[0], 0)["label"], "the other"), _line_styles(found))
    if not ranks.empty:
        figures["flatness"] = draw.flatness(rows, ranks)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def _paper() -> pd.DataFrame | None:
    """The paper's Table 4, None where it is not beside the results."""
    import pandas as pd

    file = paths.results() / "paper" / "table4.csv"
    if not file.is_file():
        return None
    wide = pd.read_csv(file).pivot(index="epochs", columns="optimizer", values="corrected")
    return wide.rename_axis(index="epoch", columns=None).reset_index()


def measure(preset: str, *, batches: int, estimator: str, tables: Sequence[str] = (), only: Sequence[str] = ()) -> int:
    """Give every trained run of a preset a sharpness record on so many batches; returns how many have one.

    tables, only: names of tables and of methods to keep to. TalasError for an unknown one. A record with other settings is
    replaced. A run that cannot be measured, because what its method reads of the teacher is no longer there, is named and
    passed over.
    """
    from talas_lib.sharpness.stage import sharpness_run

    found = [run for run in _asked(preset, tables, only) if run.read_record("train") is not None]
    done = 0
    for number, run in enumerate(found, start=1):
        asked = {"run": run.id, "sharpness_batches": batches, "estimator": estimator, "device": run.params.device}
        asked["sharpness_tol"] = _TOLERANCE
        try:
            record = sharpness_run(run, params.resolve("05_sharpness", asked))
        except TalasError as error:
            display.say(f"{number} of {len(found)}: {run.id} not measured: {error}")
            continue
        done += 1
        display.say(f"{number} of {len(found)}: {run.id} lambda_max {record['lambda_max']:.4g}")
    return done


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m talas_lib.sharpness.table4",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="tables and figures from the records of a preset's runs")
    writing.add_argument("preset")
    writing.add_argument("--flatness", nargs="*", default=[], metavar="PRESET", help="presets whose runs count as well")
    measuring = commands.add_parser("measure", help="a sharpness record for every trained run of a preset")
    measuring.add_argument("preset")
    measuring.add_argument("--batches", type=int, default=8)
    measuring.add_argument("--estimator", default="quick")
    measuring.add_argument("--tables", nargs="*", default=[], metavar="TABLE", help="runs of these tables only")
    measuring.add_argument("--methods", nargs="*", default=[], metavar="METHOD", help="runs of these methods only")
    chosen = parser.parse_args(arguments)
    if chosen.command == "write":
        return exit_code(lambda: _write_with_preset(chosen.preset, chosen.flatness))
    kept = {"tables": chosen.tables, "only": chosen.methods}
    return exit_code(lambda: measure(chosen.preset, batches=chosen.batches, estimator=chosen.estimator, **kept))


def _write_with_preset(preset: str, beside: Sequence[str]) -> None:
    folder = write(preset, beside=beside)
    made_by = paths.params_dir() / "presets" / f"{preset}.yaml"
    atomic_write_text(folder / made_by.name, made_by.read_text(encoding="utf-8"))
    display.say(f"written: {folder}")


if __name__ == "__main__":
    sys.exit(main())
