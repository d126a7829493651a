"""The one exception meant for users, the two phrases its messages share, and how a command line ends with it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class TalasError(Exception):
    """Something the user gave cannot be used: the message names it, what is accepted, and the way out."""


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """` Did you mean ...?` with the closest accepted name, or an empty string when none is close."""
    lowered = {candidate.lower(): candidate for candidate in accepted}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean {lowered[close[0]]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message, in the given order, `(none)` when there are none."""
    return ", ".join(names) or "(none)"


def exit_code(work: Callable[[], object]) -> int:
    """What a command line returns: 0 once `work` is done, 2 for bad input, whose message goes to standard error."""
    try:
        work()
    except TalasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
