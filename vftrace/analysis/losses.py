# SPDX-License-Identifier: MIT
"""Keeps the losses of one process, with the times of their reports."""

from collections import deque

from vftrace import events
from vftrace.model.migration import Loss

REPORTED_NS = 1_000_000_000
"""The largest delay of a report: a loss is reported with the next tick, and a reader may be late."""
MAX_REPORTS = 1024
"""How many reports are kept of one process; if there are more, the oldest are merged."""


class LossLog:
    """The reported totals, each with its time."""

    def __init__(self) -> None:
        self._reports: deque[tuple[int, Loss]] = deque(maxlen=MAX_REPORTS)
        self._in_kernel = 0
        self._dropped = 0

    def __bool__(self) -> bool:
        return bool(self._reports)

    @property
    def total(self) -> Loss:
        """The total losses so far."""
        return self._reports[-1][1] if self._reports else Loss()

    def report(self, event: events.VmLost | events.Exit | events.Uncounted) -> None:
        """Take the totals of an event. Totals only grow, so a late event changes nothing."""
        records, uncounted = self.total.records, self.total.uncounted
        if isinstance(event, events.Uncounted):
            uncounted = max(uncounted, event.count)
        elif isinstance(event, events.VmLost):
            records = max(records, event.records)
            self._in_kernel = max(self._in_kernel, event.bulk)
            self._dropped = max(self._dropped, event.dropped)
        else:
            records = max(records, event.lost)
            self._in_kernel = max(self._in_kernel, event.bulk_lost)
        total = Loss(records, self._in_kernel + self._dropped, uncounted)
        if total != self.total:
            self._reports.append((event.at_ns, total))

    def between(self, since_ns: int, until_ns: int | None) -> Loss:
        """Return the losses between two times, or up to now, as far as the reports show."""
        before, last = Loss(), Loss()
        for at_ns, total in self._reports:
            if at_ns < since_ns:
                before = total
            if until_ns is None or at_ns <= until_ns + REPORTED_NS:
                last = total
        return last.since(before)
