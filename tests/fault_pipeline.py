"""The smoke pipeline in one process, what it leaves behind apart from times, and a parent that kills it: for test_faults*.py.

    python tests/fault_pipeline.py FOLDER 0.31 0.77

runs the pipeline once undisturbed, then once for each number: kills it with SIGKILL after that share of the way, runs the same
again to its end, and prints as JSON what is different then. Children are forked, so that torch is imported once.

A share of the way is a share of the undisturbed time, told by what the pipeline does with files: the parent waits for as many of
its openings, renames and new folders, and then as long as the rest takes. So a machine that is busy with other things at the time
moves no moment behind the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Times, and what depends on them: the hash of a record covers its times, and the manifest's note of finished stages comes after
# their records, which are what counts.
TIMES = re.compile(
    r"status|seconds|.*_s|.*_seconds|created|elapsed_s|efficiency|resumed_from|record_sha256|ms_.*|.*_per_ms"
)
SHARP = {"sharpness_batches": 1, "sharpness_batch_size": 8, "sharpness_max_iter": 4, "device": "cpu"}


def values(**changes: Any) -> dict[str, Any]:
    """The smoke preset for one run."""
    from talas_lib import params

    return {k: v for k, v in params.load_preset("smoke").items() if k not in ("grid", "report")} | changes


def stages_of() -> dict[str, Callable[[], object]]:
    """Every stage of the pipeline by name, in order: tiny models, caches of vectors, token states and alignments, two runs,
    scores, eigenvalues."""
    from talas_lib import assess, params, runs, sources, stages
    from talas_lib.sharpness import stage

    def resolve(**changes: Any) -> Any:
        names = params.notebook_schema("03_train").names
        return params.resolve("03_train", {k: v for k, v in values(**changes).items() if k in names})

    asam = resolve(
        optimizer="asam", epochs=2, keep_epochs=[1]
    )  # an epoch more than the preset, for weights that are kept
    adamw = resolve(optimizer="adamw")
    tokens = resolve(method="cdm", optimizer="adamw")

    def each(do: Callable[[runs.Run], object]) -> Callable[[], object]:
        return lambda: [do(runs.open_run(p, create=False)) for p in (asam, adamw)]

    def sharpness(run: runs.Run) -> object:
        return stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))

    return {
        "models": lambda: [sources.model_folder(spec) for spec in (asam.teacher_spec, asam.student_spec)],
        "vectors": lambda: stages.cache_teacher(asam, stages.load_corpus(asam)),
        "tokens": lambda: stages.cache_tokens(tokens, stages.load_corpus(tokens)),
        "alignment": lambda: stages.open_caches(tokens, stages.load_corpus(tokens)),
        "train": lambda: [stages.train_run(p) for p in (asam, adamw)],
        "evaluate": each(lambda run: assess.evaluate_run(run, params.load_tasks("tiny"))),
        "sharpness": each(sharpness),
    }


def pipeline() -> None:
    for stage in stages_of().values():
        stage()


# ---- what is there afterwards


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file by its path, times left out of JSON; locks and the leftovers of a kill (hidden names) do not count."""
    found = {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and file.suffix != ".lock" and not any(part.startswith(".") for part in parts):
            found["/".join(parts)] = hashlib.sha256(_content(file)).hexdigest()
    return found


def _content(file: Path) -> bytes:
    if file.suffix == ".json":
        return json.dumps(_timeless(json.loads(file.read_text()))).encode()
    if file.suffix == ".jsonl":
        return json.dumps([_timeless(json.loads(line)) for line in file.read_text().splitlines()]).encode()
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays.files))
    return file.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not TIMES.fullmatch(k)}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Paths that are not the same on both sides."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


# ---- the parent


def start(outputs: Path, work: Callable[[], None] = pipeline) -> int:
    """A child that does the work with this folder of outputs; its process id. It ends with code 0, or 1 and a traceback."""
    child = os.fork()
    if child:
        return child
    os.environ["TALAS_OUTPUTS"] = str(outputs)
    try:
        work()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(child: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, seconds: float) -> int:
    """SIGKILL after so many seconds, unless the child has ended by itself; its exit code."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return finish(child)


# ---- a share of the way

EVENTS = ("open", "os.rename", "os.mkdir")


def start_watched(outputs: Path, work: Callable[[], None] = pipeline) -> tuple[int, int, int]:
    """`start`, with two pipes: one that gives a byte for each event below `outputs` and ends with the work, and one that holds
    the child after its work until it is closed."""
    reads, tells = os.pipe()
    waits, holds = os.pipe()

    def watched() -> None:
        os.close(reads)
        os.close(holds)
        told, busy = str(outputs), True

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if busy and event in EVENTS and told in str(arguments[0]):
                os.write(tells, b".")

        sys.addaudithook(hook)
        work()
        busy = False
        os.close(tells)
        os.read(waits, 1)

    child = start(outputs, watched)
    os.close(tells)
    os.close(waits)
    return child, reads, holds


def undisturbed(outputs: Path) -> tuple[int, list[float]]:
    """Exit code, and when each event was, in seconds from the start; the end of the work comes last."""
    began = time.monotonic()
    child, reads, holds = start_watched(outputs)
    times = []
    while os.read(reads, 1):
        times.append(time.monotonic() - began)
    times.append(time.monotonic() - began)
    os.close(reads)
    os.close(holds)
    return finish(child), times


def kill_at(outputs: Path, times: list[float], share: float) -> int:
    """SIGKILL after this share of the way of `undisturbed`; the exit code."""
    moment = share * times[-1]
    before = [at for at in times[:-1] if at <= moment]
    child, reads, holds = start_watched(outputs)
    for _ in before:
        os.read(reads, 1)  # nothing, at once, when the work has ended
    time.sleep(moment - (before[-1] if before else 0.0))
    os.kill(child, signal.SIGKILL)
    os.close(reads)
    os.close(holds)
    return finish(child)


def main(folder: Path, shares: list[float]) -> int:
    import sentence_transformers  # noqa: F401  (imported once, before the children)

    from talas_lib import assess, stages  # noqa: F401
    from talas_lib.sharpness import stage  # noqa: F401

    code, times = undisturbed(folder / "undisturbed")
    if code != 0:
        return 1
    expected = contents(folder / "undisturbed")
    report: dict[str, Any] = {"seconds": times[-1], "events": len(times), "files": len(expected), "moments": []}
    for number, share in enumerate(shares):
        outputs = folder / f"killed-{number}"
        first = kill_at(outputs, times, share)
        there = contents_safely(outputs)
        second = finish(start(outputs))
        found = contents(outputs)
        report["moments"].append(
            {
                "share": share,
                "codes": [first, second],
                "there": len(there),
                "different": differences(expected, found),
            }
        )
    print(json.dumps(report))
    return 0


def contents_safely(folder: Path) -> list[str]:
    """Files that are there after a kill, by path."""
    return [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()] if folder.is_dir() else []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [float(share) for share in sys.argv[2:]]))
