# SPDX-License-Identifier: MIT
"""Runs of programs that the kernel skipped: totals by probe, of counters that end with their program."""

from collections import Counter
from collections.abc import Iterable

from vftrace.probes.bpf.object import Missed


class MissedRuns:
    """Adds up what the kernel counts. Each counter belongs to a program or a probe that vftrace made: it begins at 0,
    and ends with that, as when a module is unloaded."""

    def __init__(self) -> None:
        self._total: Counter[tuple[str, str]] = Counter()
        self._read: dict[tuple[str, str], int] = {}

    def total(self, counters: Iterable[tuple[str, Missed]]) -> dict[tuple[str, str], int]:
        """Take the counters as they are now, each with the name of its probe; returns all skipped runs so far by probe
        and reason. A counter that cannot be read for a while is neither lost nor counted twice."""
        for probe, missed in counters:
            which = missed.reason, missed.counter
            more = missed.count - self._read.get(which, 0)
            if more > 0:
                self._read[which] = missed.count
                self._total[probe, missed.reason] += more
        return dict(self._total)
