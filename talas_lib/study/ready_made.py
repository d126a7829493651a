"""Ready-made encoders in a study's tables: scored as they are, and kept among the study's records.

python -m talas_lib.study.ready_made PRESET NAME
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from talas_lib import params
from talas_lib.errors import TalasError, did_you_mean, exit_code, listed
from talas_lib.graph import plan
from talas_lib.study import on_record, wanted


def record_file(of: plan.Plan, name: str) -> Path:
    """Where the record of an encoder lies."""
    return on_record.folder(of.report) / "encoders" / f"{name}.json"


def is_kept(of: plan.Plan, encoder: plan.PlannedEncoder) -> bool:
    """Whether the encoder's scores on its suite are on record as they are made today. Raises TalasError for a damaged record."""
    record = on_record.read_reference(of.report, encoder.name, "encoders")
    same = record is not None and record["suite"]["name"] == encoder.suite
    return same and wanted.is_current(record, encoder.suite, encoder.precision)


def keep(preset: str, name: str) -> Path:
    """Score an encoder of a preset's tables and write its record; returns the file.

    Pairs that share a sentence with the study's corpus are left out of `unseen_score`, as for its runs. Raises TalasError for
    a name that is in no table.
    """
    from talas_lib import display, scoring, sources
    from talas_lib.texts import comparison_key

    of = plan.make(preset)
    encoder = _find(of, name)
    p = params.resolve("03_train", encoder.cell)
    corpus = sources.load_corpus(p.corpus_spec, max_sentences=p.max_sentences)
    suite, device = params.load_tasks(encoder.suite), sources.pick_device(p.device)
    what = scoring.Evaluation.of(suite, precision=encoder.precision, device=device)
    record = scoring.encoder_scores(
        params.load_teacher(name),
        what,
        seen={comparison_key(text) for text in corpus.texts},
        progress=display.progress(f"encoding for {encoder.suite}"),
    )
    return on_record.keep_encoder(of.values, name, record, what.identity)


def _find(of: plan.Plan, name: str) -> plan.PlannedEncoder:
    by_name = {encoder.name: encoder for encoder in of.encoders}
    if name not in by_name:
        raise TalasError(
            f"no table of preset {of.preset} has the encoder {name!r}.{did_you_mean(name, by_name)} Accepted: {listed(by_name)}"
        )
    return by_name[name]


def main(arguments: list[str] | None = None) -> int:
    """Score one encoder; 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m talas_lib.study.ready_made",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", help="a file of params/presets with tables")
    parser.add_argument("name", help="an encoder of one of them, a file of params/teachers")
    chosen = parser.parse_args(arguments)
    return exit_code(lambda: sys.stdout.write(f"{keep(chosen.preset, chosen.name)}\n"))


if __name__ == "__main__":
    sys.exit(main())
