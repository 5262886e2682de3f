# SPDX-License-Identifier: MIT
"""Finds times without replies in settled probes, which arrive in the order of their slots.

A gap is counted from sending times: from its first unanswered probe to one interval after its
last. That is unbiased (each end falls anywhere in one interval), and a slot that the pinger
missed before the first or after the last of them adds nothing. The bounds `least_ns` and `most_ns`
hold for any one interruption: it began after the last answered probe and not later than the first
lost one, and ended after the last lost probe and before the next answered one.
"""

from itertools import pairwise

import msgspec
from msgspec.structs import replace

LOST = "lost"
HELD = "held"
OWN = "own"


class Probe(msgspec.Struct, frozen=True):
    """One probe, settled: `sent_ns` and `done_ns` are before and after its send call."""

    slot: int
    sent_ns: int
    done_ns: int
    reply_ns: int | None


class Gap(msgspec.Struct, frozen=True):
    """A time without replies (fields as in `events.PingGap`).

    `kind` LOST: never answered; HELD: lost or answered late, up to the first reply; OWN: the
    pinger sent no probe, which shows nothing about the guest.
    """

    kind: str
    start_ns: int
    ns: int
    least_ns: int
    most_ns: int | None
    lost: int
    late: int
    missed: int
    before: Probe | None
    after: Probe | None


class _Run(msgspec.Struct, frozen=True):
    """Lost probes of neighbouring slots, or such runs joined; `hole_ns` is the unsent time within."""

    first: Probe
    last: Probe
    lost: int
    hole_ns: int = 0
    missed: int = 0


class LossFinder:
    """Finds gaps of kind LOST. Feed it every settled probe, oldest first."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._before: Probe | None = None
        self._runs: list[_Run] = []

    def add(self, probe: Probe) -> list[Gap]:
        """Take the next probe; returns the gaps that it ends."""
        if probe.reply_ns is not None:
            gaps = self._finish(probe)
            self._before = probe
            return gaps
        last = self._runs[-1] if self._runs else None
        if last is not None and last.last.slot + 1 == probe.slot:
            self._runs[-1] = replace(last, last=probe, lost=last.lost + 1)
        else:
            self._runs.append(_Run(probe, probe, 1))
        return []

    def close(self) -> list[Gap]:
        """End the input: a gap that is still open ends with its last probe."""
        return self._finish(None)

    def _finish(self, after: Probe | None) -> list[Gap]:
        runs, self._runs = _join(self._runs, self._interval_ns), []
        gaps = []
        for number, run in enumerate(runs):
            end_ns = run.last.sent_ns + self._interval_ns
            if after is not None and number == len(runs) - 1:
                end_ns = min(end_ns, after.sent_ns)
            both = self._before is not None and after is not None
            gaps.append(
                Gap(
                    LOST,
                    run.first.sent_ns,
                    end_ns - run.first.sent_ns,
                    max(run.last.sent_ns - run.first.done_ns - run.hole_ns, 0),
                    after.done_ns - self._before.sent_ns
                    if both and after and self._before
                    else None,
                    run.lost,
                    0,
                    run.missed,
                    self._before,
                    after,
                )
            )
        return gaps


def _join(runs: list[_Run], interval_ns: int) -> list[_Run]:
    """Join runs if the hole between them (missed slots) is not longer than their losses together.

    Between two long losses a short delay of the pinger belongs to the outage; between two single lost
    probes a long stall of the pinger does not. The shortest hole is checked first.
    """
    runs = list(runs)
    while len(runs) > 1:
        holes = [
            (right.first.slot - left.last.slot - 1, place)
            for place, (left, right) in enumerate(pairwise(runs))
            if right.first.slot - left.last.slot - 1 <= left.lost + right.lost
        ]
        if not holes:
            break
        missed, place = min(holes)
        left, right = runs[place], runs[place + 1]
        runs[place : place + 2] = [
            _Run(
                left.first,
                right.last,
                left.lost + right.lost,
                left.hole_ns + right.hole_ns + missed * interval_ns,
                left.missed + right.missed + missed,
            )
        ]
    return runs


class HoldFinder:
    """Finds gaps of kind HELD: a queue that kept the probes and answered them all at the end.

    A probe is late if its reply took more than an interval longer than the quickest did. Only
    probes that were sent count (`ns` is at most their number in intervals), so that a stop of the
    whole machine, in which the pinger sent nothing either, is not the guest's.
    """

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._before: Probe | None = None
        self._first: Probe | None = None
        self._lost = 0
        self._late = 0
        self._first_reply_ns: int | None = None
        self._quickest_ns: int | None = None
        self._quickest_late_ns = 0

    def add(self, probe: Probe) -> list[Gap]:
        """Take the next probe; returns the gaps that it ends."""
        gaps = []
        if self._first_reply_ns is not None and probe.sent_ns >= self._first_reply_ns:
            gaps = self._finish(probe)
        if probe.reply_ns is None:
            self._first = self._first or probe
            self._lost += 1
            return gaps
        took_ns = probe.reply_ns - probe.sent_ns
        if self._quickest_ns is None or took_ns < self._quickest_ns:
            self._quickest_ns = took_ns
        if took_ns <= self._quickest_ns + self._interval_ns:
            gaps += self._finish(probe)
            self._before = probe
            return gaps
        if self._first_reply_ns is None:
            self._first_reply_ns, self._quickest_late_ns = probe.reply_ns, took_ns
        self._first = self._first or probe
        self._first_reply_ns = min(self._first_reply_ns, probe.reply_ns)
        self._quickest_late_ns = min(self._quickest_late_ns, took_ns)
        self._late += 1
        return gaps

    def close(self) -> list[Gap]:
        """End the input."""
        return self._finish(None)

    def _finish(self, after: Probe | None) -> list[Gap]:
        first, reply_ns = self._first, self._first_reply_ns
        lost, late = self._lost, self._late
        self._first, self._first_reply_ns, self._lost, self._late = None, None, 0, 0
        if first is None or reply_ns is None:
            return []
        # If the path got longer permanently (the guest moved), replies are slow from now on, not held.
        self._quickest_ns = self._quickest_late_ns
        ns = min(reply_ns - first.sent_ns, (lost + late) * self._interval_ns)
        least_ns = max(ns - self._interval_ns, 0)
        most_ns = None if self._before is None else reply_ns - self._before.sent_ns
        answered = after if after is not None and after.reply_ns is not None else None
        return [
            Gap(HELD, first.sent_ns, ns, least_ns, most_ns, lost, late, 0, self._before, answered)
        ]
