"""A study on record: everything that notebook 06 shows and writes of a preset with `tables`.

results/<report>/runs.csv                 every run, task and split, tidy
results/<report>/tables/<table>.csv .md   each table by groups of seeds, the paper's numbers below ours
results/<report>/tables/<table>-parts.csv what each part of the objective adds, of a table with its subsets
results/<report>/tables/choice.csv        what the table `tune` chose
results/<report>/figures/*.png            results/<report>/findings.md: what it says, and what is missing
outputs/<report>/summary.json             written last
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from talas_lib import paths, plots
from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_json, atomic_write_text
from talas_lib.study import charts, effects, markdown, on_record, resampling, tabulation, wording
from talas_lib.study.blocks import Block, Study
from talas_lib.study.on_record import keep, missing
from talas_lib.study.tabulation import TUNE, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "Report", "Study", "choose", "first_block", "keep", "missing", "of"]
_CURVES = {
    "figure2-anchor-layers": ("num_anchor_layers", "top layers anchored to the teacher", ("table7",)),
    "figure3-lasd-pairs": ("lasd_pairs", "adjacent pairs of layers, from the top", ("table8",)),
}
_LISTED = 12  # runs named by id among those that are missing
_METHODS = 4  # so many methods make a table one to set against cost


def of(values: Any, *, progress: Callable[[int, int], None] | None = None) -> Report:
    """The report of a study: of a preset's values, or of the parameters of notebook 06. progress: see Report."""
    given = values if isinstance(values, Mapping) else values.given_values()
    return Report(Study.open(given), progress)


def first_block(values: Mapping[str, Any]) -> Block:
    """The first table's first pair of which something is on record. TalasError when nothing is."""
    study = Study.open(values)
    for blocks in study.blocks.values():
        for block in blocks:
            if block.members:
                return block
    raise TalasError(
        f"study {study.report} has no run on record: `python -m talas_lib {study.report}` makes and keeps them"
        f" ({on_record.folder(study.report)})"
    )


@dataclass(frozen=True)
class Report:
    """Tables, pages and figures of a study, each computed once. progress: told of the bootstrap's work."""

    study: Study
    progress: Callable[[int, int], None] | None = None

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Every run, tidy (tabulation.runs_table)."""
        return tabulation.runs_table(self.study)

    @cached_property
    def blocks(self) -> dict[str, list[tuple[Block, pd.DataFrame]]]:
        """Each table's blocks with their rows; the tuning table's are without a bootstrap, which it does not choose by."""
        return {
            name: [(block, self._rows(name, block)) for block in blocks] for name, blocks in self.study.blocks.items()
        }

    def _rows(self, name: str, block: Block) -> pd.DataFrame:
        resampled = None if name == TUNE else resampling.update(block, block.baseline, progress=self.progress)
        return tabulation.block_table(block, resampled)

    @cached_property
    def tuning(self) -> pd.DataFrame | None:
        """The settings of the table `tune` with what was chosen, None for a study without one."""
        return choose(self.runs) if TUNE in self.study.blocks else None

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Each table as it is written, numbers to six decimals: its blocks below one another, the tuning one by settings.

        Two more than the scores they average, so that the two digits of a page are the same from either.
        """
        found = {name: _joined(blocks).round(6) for name, blocks in self.blocks.items() if name != TUNE}
        if self.tuning is not None:
            scores = dict.fromkeys((*tabulation.CRITERION, "criterion"), 4)
            found[TUNE] = self.tuning.round(scores)
            found["choice"] = found[TUNE][self.tuning["chosen"]].drop(columns="chosen")
        return found | self._parts_tables()

    @cached_property
    def effects(self) -> dict[str, pd.DataFrame]:
        """What each part of the objective adds, by a block's heading; empty of blocks that are no table of its subsets."""
        return {block.heading: effects.effects(block) for pairs in self.blocks.values() for block, _ in pairs}

    def _parts_tables(self) -> dict[str, pd.DataFrame]:
        """The same as it is written, `<table>-parts`."""
        found = {}
        for name, pairs in self.blocks.items():
            filled = [(block, rows) for block, _ in pairs if len(rows := self.effects[block.heading])]
            if filled:
                found[f"{name}-parts"] = _joined(filled).round(6)
        return found

    @cached_property
    def words(self) -> dict[str, str]:
        """What each block says, by its heading."""
        everything = [pair for name, pairs in self.blocks.items() if name != TUNE for pair in pairs]
        found = {}
        for block, rows in everything:
            chance = wording.seeds_elsewhere(block, (other for other, _ in everything))
            parts = effects.in_words(self.effects[block.heading])
            said = (wording.finding(block, rows), parts, chance)
            found[block.heading] = "\n\n".join(part for part in said if part)
        return found

    @cached_property
    def pages(self) -> dict[str, str]:
        """Each table as Markdown."""
        found = {}
        for table in self.study.tables:
            if table.name == TUNE and self.tuning is not None:
                blocks = self.study.blocks[table.name]
                found[table.name] = markdown.tuning_page(f"{table.name}: {table.title}", self.tuning, blocks)
            else:
                pairs = self.blocks[table.name]
                said = [(block, rows, self.words[block.heading], self.effects[block.heading]) for block, rows in pairs]
                found[table.name] = markdown.page(table.name, table.title, said, table.paper)
        return found

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Score against cost, against layers (the paper's figures 2 and 3), ASAM's controls and what each part adds, for tables
        that vary these.
        """
        found: dict[str, Figure] = {}
        everything = [pair for name, pairs in self.blocks.items() if name != TUNE for pair in pairs if pair[0].members]
        for block, table in everything:
            if len({cell.resolved.method for cell in block.cells}) >= _METHODS:
                found[_named("cost", block, self.study)] = charts.cost(block, table)
        for name, (setting, words, papers) in _CURVES.items():
            ours = [(block, table) for block, table in everything if charts.varies(setting, block)]
            if ours:
                found[name] = charts.curves(setting, words, ours, papers)
        for block, table in everything:
            if charts.has_radii(block):
                found[_named("", block, self.study)] = charts.asam_controls(block, table)
        for block, _ in everything:
            parts = self.effects[block.heading]
            if (parts["beside"] == effects.MEAN).any():
                found[_named("parts", block, self.study)] = charts.parts(parts)
        return found

    @property
    def findings(self) -> str:
        """What every table says, and what is not on record, as Markdown."""
        study, lacking = self.study, self.study.lacking
        asked = len({cell.run_id for cell in study.cells})
        part = sum(1 for run_id in lacking if run_id in study.records)
        whole = f"{asked - len(lacking)} of {asked} runs are on record with all their suites"
        parts = [f"# {study.report}: findings", whole + (f", {part} with some." if part else ".")]
        for table in study.tables:
            parts.append(f"## [{table.name}](tables/{table.name}.md): {table.title}")
            if table.name == TUNE and self.tuning is not None:
                parts.append(wording.tuning(self.tuning, study.blocks[TUNE]))
                continue
            for block in study.blocks[table.name]:
                parts += [f"### {block.teacher} to {block.student}", self.words[block.heading]]
                parts.append(markdown.missing(block))
        if lacking:
            parts.append("## Not on record yet")
            lines = [f"- `{run_id}`: {', '.join(suites)}" for run_id, suites in lacking.items()]
            if len(lines) > _LISTED:
                lines[_LISTED:] = [
                    f"- and {len(lines) - _LISTED} more; the tables name them, `make study-dry` counts them"
                ]
            parts.append("\n".join(lines))
        return "\n\n".join(part for part in parts if part) + "\n"

    def show(self) -> Any:
        """All pages for a notebook to display."""
        from IPython.display import Markdown

        return Markdown("\n\n".join([self.findings, *self.pages.values()]))

    def show_figures(self) -> None:
        """All figures in a notebook's cell."""
        from IPython.display import display

        for figure in self.figures.values():
            display(figure)

    def write(self) -> Path:
        """Write all of it; returns the folder, `results/<report>`. The same records give the same tables, byte for byte."""
        folder = on_record.folder(self.study.report)
        atomic_write_text(folder / "runs.csv", _csv(self.runs))
        for name, page in self.pages.items():
            atomic_write_text(folder / "tables" / f"{name}.md", page)
        for name, table in self.tables.items():
            atomic_write_text(folder / "tables" / f"{name}.csv", _csv(table))
        for name, figure in self.figures.items():
            plots.save(figure, folder / "figures" / f"{name}.png")
        atomic_write_text(folder / "findings.md", self.findings)
        self._write_summary()
        return folder

    def _write_summary(self) -> None:
        from talas_lib import compare

        study = self.study
        result = {
            "report": study.report,
            "runs": len({cell.run_id for cell in study.cells}),
            "lacking": study.lacking,
            "verdicts": self.words,
            "versions": compare.versions(),
        }
        atomic_write_json(paths.outputs() / study.report / "summary.json", result)


def _named(kind: str, block: Block, study: Study) -> str:
    """A figure's name: what it shows and its table, and the pair where the table has several."""
    pair = [block.teacher, block.student] if len(study.blocks[block.table.name]) > 1 else []
    return "-".join(word for word in (kind, block.table.name, *pair) if word)


def _joined(blocks: list[tuple[Block, pd.DataFrame]]) -> pd.DataFrame:
    """A table's blocks below one another, with their pairs in front."""
    frames = []
    for block, rows in blocks:
        own = rows.copy()
        own.insert(0, "teacher", block.teacher)
        own.insert(1, "student", block.student)
        whole = [name for name in ("n", "paired seeds", "better seeds") if name in own.columns]
        own = own.astype(dict.fromkeys(whole, "Int64"))
        frames.append(own)
    return pd.concat(frames, ignore_index=True)


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")
