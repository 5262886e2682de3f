# SPDX-License-Identifier: MIT
"""Keeps the runs of probes that the kernel skipped, and finds the migrations that they make uncertain."""

from collections import Counter

from vftrace import events

MATTERS = frozenset({"ioctl", "channel", "dirty-ring", "vfio", "vfio-data"})
"""Probes that every figure of a migration depends on. A skipped run of the others makes no migration incomplete:

- `calls` and `vcpus` run at every switch, wakeup, page fault and system call of the host, also where an interrupt or a
  page fault comes inside a program: runs may be skipped there all the time, and only times in the list of calls and in
  the brownout depend on them.
- `process`: the collector finds a VMM's end by looking too (`events.Gone`), and marks it.
- `mailbox` has marks of its own, for migrations that a VF has a part in.
"""
SENDING = frozenset({"channel"})
"""Probes that record what a source sends (bpf/channel.h, send_enter: only while its VM logs dirty pages)."""
DIRTY_RINGS = frozenset({"dirty-ring"})
"""Probes that record the dirty rings of vCPUs."""
MAX_REPORTS = 1024
"""Reports of a probe that are kept; of more, the oldest two become one."""


class MissedLog:
    """Totals by probe and reason, and the intervals in which runs of probes that matter were skipped."""

    def __init__(self) -> None:
        self._total: dict[tuple[str, str], int] = {}
        self._reports: dict[str, list[tuple[int, int, int]]] = {}

    @property
    def total(self) -> tuple[tuple[str, str, int], ...]:
        """All runs that were skipped so far, by probe and reason."""
        return tuple((*which, count) for which, count in sorted(self._total.items()))

    def report(self, event: events.MissedRuns) -> int:
        """Take a total; returns by how much it grew. One that comes late changes nothing."""
        which = event.probe, event.reason
        more = event.count - self._total.get(which, 0)
        if more <= 0:
            return 0
        self._total[which] = event.count
        if event.probe in MATTERS:
            reports = self._reports.setdefault(event.probe, [])
            reports.append((event.since_ns, event.until_ns, more))
            if len(reports) > MAX_REPORTS:
                (since, _, first), (_, until, second) = reports[:2]
                reports[:2] = [(since, until, first + second)]
        return more

    def between(self, since_ns: int, until_ns: int | None) -> tuple[tuple[str, int], ...]:
        """Return by probe the runs that may have been skipped from one time to another, or up to now."""
        found: Counter[str] = Counter()
        for probe, reports in self._reports.items():
            for after, before, count in reports:
                if before >= since_ns and (until_ns is None or after <= until_ns):
                    found[probe] += count
        return tuple(sorted(found.items()))


def concerning(
    runs: tuple[tuple[str, int], ...], *, sends: bool, has_rings: bool
) -> tuple[tuple[str, int], ...]:
    """Return the skipped runs that may have belonged to a migration. `sends`: a process of this host may be its source;
    `has_rings`: its source may have dirty rings."""
    others = (frozenset() if sends else SENDING) | (frozenset() if has_rings else DIRTY_RINGS)
    return tuple((probe, count) for probe, count in runs if probe not in others)
