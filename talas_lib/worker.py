"""The heavy part of notebooks 02 and 03 without the notebook, for launches with several processes.

    accelerate launch --multi_gpu --num_processes 4 -m talas_lib.worker 03_train -f params/presets/smoke.yaml -p optimizer asam

Every process of the launch runs this; they share each step's sentences or the shards of a cache (see distribution), and the first
writes. The parameters are those of the notebook, given as papermill takes them. The notebook, executed afterwards with the same
parameters, finds the work done, checks it, shows it and writes its record. One process does the same alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib import params
from talas_lib.errors import TalasError
from talas_lib.params.strict_yaml import read_text, read_value, read_yaml

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams, StudentSpec, TeacherSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the work of one notebook; exit code 2 for bad input, before anything heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m talas_lib.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", choices=list(_WORK), help="whose work to do")
    parser.add_argument("-f", dest="files", action="append", default=[], metavar="FILE", help="YAML file of parameters")
    parser.add_argument("-y", dest="yaml", action="append", default=[], metavar="YAML", help="parameters as YAML")
    parser.add_argument("-p", dest="pairs", action="append", default=[], nargs=2, metavar=("NAME", "VALUE"))
    chosen = parser.parse_args(arguments)
    try:
        p = params.resolve(chosen.notebook, _values(chosen.files, chosen.yaml, chosen.pairs))
        p.check_available()
        work(chosen.notebook, p)
    except TalasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _values(files: Sequence[str], texts: Sequence[str], pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Parameters in papermill's order: a preset's own lists of runs are not those of one run and are left out."""
    found: dict[str, Any] = {}
    for file in files:
        if not Path(file).is_file():
            raise TalasError(f"-f {file}: there is no such file")
        found |= {name: value for name, value in read_yaml(Path(file)).values.items() if name not in ("grid", "tables")}
    for text in texts:
        found |= read_text(text, f"-y {_short(text)}").values
    return found | {name: read_value(value, f"-p {name} {_short(value)}") for name, value in pairs}


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def work(notebook: str, p: ResolvedParams) -> None:
    """The work of a notebook with these parameters, by this process and those it was launched with."""
    import torch.distributed as dist

    from talas_lib import distribution

    distribution.join(p.device)
    try:
        distribution.first_then_all(lambda: _prefetch(p))  # transformers writes models in the first process alone
        _WORK[notebook](p)
        distribution.wait()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _prefetch(p: ResolvedParams) -> None:
    """Have the models on disk."""
    from talas_lib import sources

    models: list[TeacherSpec | StudentSpec] = [] if p.specs.student is None else [p.specs.student]
    if p.notebook == "02_cache_teacher" or p.needs_teacher:
        models += p.teacher_specs
    for spec in models:
        sources.model_folder(spec)


def _cache(p: ResolvedParams) -> None:
    from talas_lib import distribution, stages

    corpus = stages.load_corpus(p)
    for spec in p.teacher_specs:
        cache = stages.cache_teacher(p, corpus, spec, progress=_progress(spec.name))
        if distribution.is_first():
            _say(f"{spec.name}: {len(cache):,} vectors in {cache.folder.name}")
    tokens = stages.cache_tokens(p, corpus, progress=_progress("token states"))
    if tokens is not None and distribution.is_first():
        _say(f"token states in {tokens.folder.name}")


def _train(p: ResolvedParams) -> None:
    from talas_lib import distribution, stages

    run = stages.train_run(p, progress=_progress("training"))
    if distribution.is_first():
        _say(f"{run.id} is {run.status}")


def _progress(label: str) -> Callable[[int, int], None] | None:
    from talas_lib import display, distribution

    return display.progress(label) if distribution.is_first() else None


def _say(line: str) -> None:
    from talas_lib import display

    display.say(line)


_WORK: dict[str, Callable[[ResolvedParams], None]] = {"02_cache_teacher": _cache, "03_train": _train}

if __name__ == "__main__":
    sys.exit(main())
