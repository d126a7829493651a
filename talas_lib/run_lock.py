"""One process, or one launch of several, trains a run at a time. The operating system frees the lock when its holder is dead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import BaseFileLock, FileLock, Timeout

from talas_lib import distribution
from talas_lib.errors import TalasError
from talas_lib.runs import Run

LOCK = "train.lock"  # in the run's folder: a run that is moved away takes its own along


@contextmanager
def training(run: Run) -> Iterator[None]:
    """Inside, nobody else trains this run, whose folder is there. TalasError at once, in every process of a launch, when
    somebody does.
    """
    lock = FileLock(run.folder / LOCK, timeout=0)
    if distribution.first_says(distribution.is_first() and not _taken(lock)):
        raise _busy(run)
    try:
        yield
    finally:
        lock.release()


def refuse_if_trained(run: Run) -> None:
    """TalasError when somebody trains this run now; makes no file."""
    if distribution.first_says(distribution.is_first() and _is_held(run)):
        raise _busy(run)


def clear(run: Run) -> None:
    """Remove the lock's file of a finished run, which nobody trains again."""
    with suppress(OSError):  # where an open file cannot be removed
        (run.folder / LOCK).unlink()


def _is_held(run: Run) -> bool:
    if not (run.folder / LOCK).is_file():
        return False
    lock = FileLock(run.folder / LOCK, timeout=0)
    taken = _taken(lock)
    lock.release()
    return not taken


def _taken(lock: BaseFileLock) -> bool:
    """Whether this process holds the lock now."""
    try:
        lock.acquire()
    except Timeout:
        return False
    return True


def _busy(run: Run) -> TalasError:
    steps = [row["step"] for row in run.read_metrics()[-1:]]
    so_far = f"its last logged step is {steps[0]}" if steps else "no step is logged yet"
    return TalasError(
        f"run {run.id} is being trained by another process ({so_far}). Wait until that one has finished, and the same command"
        " shows the run; or stop it, and the same command goes on from its last checkpoint"
    )
