"""Errors in vftrace itself: what raised on one VM, migration or output is counted and reported, and all else goes on.

The places that contain an error (`Where`) are few: they are what one fault may cost at most. Each calls `contained`
with the error and then does without the part that raised.
"""

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from pathlib import Path

_MAX_REPORTED = 64
"""Errors that are reported in words, one for each line of code that raised; the others are only counted."""


class Where(StrEnum):
    """What was being worked on when an error was contained: the label of vftrace_internal_errors_total."""

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
"""Keeps what is needed to reproduce an error: its place, the pids it concerns (none: all), the traceback."""


def _say(text: str) -> None:
    print(f"vftrace: {text}", file=sys.stderr, flush=True)


class Faults:
    """Counts contained errors, and reports the first of each line of code. May be used by several threads.

    `keep` is set by whoever has the events and a directory for them, `say` by whoever has another way to report.
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
        """How many errors were contained, by place; places without one have 0."""
        return {where: self._counts[where] + self._elsewhere.get(where, 0) for where in Where}

    def count_elsewhere(self, counts: Mapping[Where, int]) -> None:
        """Count what another process of this command has contained, so much so far."""
        self._elsewhere = dict(counts)

    def contained(
        self, where: Where, error: Exception, what: str, pids: Collection[int] = ()
    ) -> str:
        """Count an error; returns its kind and the line of code that raised it.

        `what` names the work that is done without, `pids` the processes whose events reproduce it.
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
    """The error's type and the innermost line of vftrace's own code: `KeyError at analysis/dirty.py:82`."""
    own = "?"
    for frame in traceback.extract_tb(error.__traceback__):
        parts = Path(frame.filename).parts
        if "vftrace" in parts:
            at = len(parts) - 1 - parts[::-1].index("vftrace")
            own = f"{'/'.join(parts[at + 1 :])}:{frame.lineno}"
    return f"{type(error).__name__} at {own}"


FAULTS = Faults()
"""The faults of this process: every place that contains an error counts here."""
