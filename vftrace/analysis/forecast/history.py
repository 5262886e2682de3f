# SPDX-License-Identifier: MIT
"""Collects the measurements of a migration's sweeps, without senseless ones and for a bounded number of rounds.

A recording may be damaged: counters that run backwards, sweeps out of order. Such rounds are left out here, so that
the forecast computes with positive times and non-negative counts only.
"""

from collections.abc import Sequence

import msgspec

from vftrace.analysis.forecast.working_set import SHORTEST_NS, Interval
from vftrace.model.migration import Round

LATEST = 64
"""How many rounds the forecast uses besides the first: older ones have almost no weight, and would cost as much."""


class Step(msgspec.Struct, frozen=True):
    """One round: from the sweep that begins it to the sweep that ends it."""

    ns: int
    sent_bytes: int
    burst_bytes: int
    burst_ns: int
    began_with: int | None
    """The pages that the sweep at its beginning found."""
    new_pages: int | None
    """The pages that became dirty in the round, found by the sweep at its end."""
    redirtied_pages: int | None


class History(msgspec.Struct, frozen=True):
    """The first round and the latest ones that a sweep ended while the guest ran."""

    sweeps: int
    """The number of all sweeps, including those of merged rounds."""
    at_ns: int
    """The time of the latest sweep."""
    setup_ns: int
    """The time from the beginning to the first sweep."""
    passed_ns: int
    """The time from the beginning to the latest sweep."""
    setup_pages: int | None
    """The pages that the first sweep found; only with a dirty ring did they become dirty in the setup."""
    memory_pages: int | None
    """The pages that the first sweep logged: all memory, if the log begins full."""
    sent_first: int
    """The bytes sent since the first sweep, until the second or until now."""
    first: Step | None
    """The first round, which sends all memory; None before the second sweep."""
    later: tuple[Step, ...]
    """At most LATEST rounds after the first, oldest first."""
    whole: bool
    """Whether `later` has every round after the first."""

    @classmethod
    def of(
        cls, rounds: Sequence[Round], started_at_ns: int, entries: int | None = None
    ) -> "History | None":
        """Return the history of the first `entries` rounds (None: all). None before the first sweep."""
        count = len(rounds) if entries is None else entries
        if count < 1:
            return None
        oldest = max(2, count - LATEST)
        later = (_step(rounds[n - 1], rounds[n]) for n in range(oldest, count))
        first, last = rounds[0], rounds[count - 1]
        return cls(
            sweeps=sum(max(1, round_.syncs) for round_ in rounds[:count]),
            at_ns=last.at_ns,
            setup_ns=max(0, first.at_ns - started_at_ns),
            passed_ns=max(0, last.at_ns - started_at_ns),
            setup_pages=_known(first.new_pages),
            memory_pages=_known(first.logged_pages),
            sent_first=_known(first.sent_bytes) or 0,
            first=_step(first, rounds[1]) if count > 1 else None,
            later=tuple(step for step in later if step is not None),
            whole=oldest == 2,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the first round and the latest ones."""
        return self.later if self.first is None else (self.first, *self.later)

    def intervals(self) -> tuple[Interval, ...]:
        """Return the numbers of pages that became dirty, each with its time, oldest first, without unknown ones.

        With a dirty ring the first sweep measures too.
        """
        measured = [(self.setup_ns, self.setup_pages)]
        measured += [(step.ns, step.new_pages) for step in self.steps]
        return tuple(
            Interval(ns, pages) for ns, pages in measured if pages is not None and ns >= SHORTEST_NS
        )


def sweeps_before(rounds: Sequence[Round], stopped_at_ns: int | None) -> int:
    """Return the number of sweeps while the guest ran."""
    count = len(rounds)
    while stopped_at_ns is not None and count and rounds[count - 1].at_ns >= stopped_at_ns:
        count -= 1
    return count


def _step(begin: Round, end: Round) -> Step | None:
    """Return the round between two sweeps; None if the second is not after the first."""
    ns = end.at_ns - begin.at_ns
    if ns <= 0:
        return None
    return Step(
        ns=ns,
        sent_bytes=_known(begin.sent_bytes) or 0,
        burst_bytes=_known(begin.burst_bytes) or 0,
        burst_ns=_known(begin.burst_ns) or 0,
        began_with=_known(begin.new_pages),
        new_pages=_known(end.new_pages),
        redirtied_pages=_known(end.redirtied_pages),
    )


def _known(count: int | None) -> int | None:
    """Return a counter's difference; None if the counter ran backwards."""
    return count if count is not None and count >= 0 else None
