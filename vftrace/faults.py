# SPDX-License-Identifier: MIT
"""Contains errors in vftrace itself: an error on one VM, migration or output is counted and reported, and all else
continues.

Few places contain an error (`Where`): each is the most that one fault may cost. Each calls `contained` with the error
and then continues without the part that raised.
"""

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from pathlib import Path

_MAX_REPORTED = 64
"""How many errors are reported in words, one for each line of code that raised; others are only counted."""


class Where(StrEnum):
    """The part of vftrace that contained an error: the label of vftrace_internal_errors_total."""

    EVENT = "event"
    MIGRATION = "migration"
    VM = "vm"
    MAILBOX = "mailbox"
    JOIN = "join"
    IDENTIFY = "identify"
    READER = "reader"
    METRICS = "metrics"
    TRACES = "traces"
    HTTP = "http"
    REPORT = "report"
    TOP = "top"
    LOG = "log"
    RECORDER = "recorder"


Keep = Callable[[Where, Collection[int], str], Path | None]
"""A function that keeps what reproduces an error; it gets the place, the pids (none: all) and the traceback."""


def _say(text: str) -> None:
    print(f"vftrace: {text}", file=sys.stderr, flush=True)


class Faults:
    """Counts contained errors, and reports the first error of each line of code. Several threads may use it.

    The command sets `keep` if it has the events and a directory for them, and `say` if it reports otherwise than on
    standard error.
    """

    def __init__(self, say: Callable[[str], None] = _say) -> None:
        self.keep: Keep | None = None
        self.say = say
        self._counts: Counter[Where] = Counter()
        self._elsewhere: dict[Where, int] = {}
        self._reported: set[tuple[Where, str]] = set()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Mapping[Where, int]:
        """Return how many errors each place contained; places without errors have 0."""
        return {where: self._counts[where] + self._elsewhere.get(where, 0) for where in Where}

    def count_elsewhere(self, counts: Mapping[Where, int]) -> None:
        """Add the errors that another process of this command contained, in total so far."""
        self._elsewhere = dict(counts)

    def contained(
        self, where: Where, error: Exception, what: str, pids: Collection[int] = ()
    ) -> str:
        """Count an error; returns its kind and the line of code that raised it.

        `what` names the work that is left out, `pids` the processes whose events reproduce the error.
        """
        place = place_of(error)
        with self._lock:
            self._counts[where] += 1
            first = (where, place) not in self._reported and len(self._reported) < _MAX_REPORTED
            if first:
                self._reported.add((where, place))
        if first:
            self._report(where, error, f"{what}: {place}", pids)
        return place

    def _report(self, where: Where, error: Exception, said: str, pids: Collection[int]) -> None:
        trace = "".join(traceback.format_exception(error))
        kept = None
        if self.keep is not None:
            try:
                kept = self.keep(where, pids, trace)
            except Exception as second:
                said += f" (its events are not kept: {type(second).__name__}: {second})"
        line = f"internal error, contained ({where}), {said}"
        if kept is not None:
            self.say(f"{line}; please report it with {kept}")
        else:
            self.say(f"{line}; please report it with what follows\n{trace.rstrip()}")


def place_of(error: BaseException) -> str:
    """Return the error's type and the innermost line of vftrace's own code: `KeyError at analysis/dirty.py:82`."""
    own = "?"
    for frame in traceback.extract_tb(error.__traceback__):
        parts = Path(frame.filename).parts
        if "vftrace" in parts:
            at = len(parts) - 1 - parts[::-1].index("vftrace")
            own = f"{'/'.join(parts[at + 1 :])}:{frame.lineno}"
    return f"{type(error).__name__} at {own}"


FAULTS = Faults()
"""The errors of this process: every place that contains an error counts it here."""
