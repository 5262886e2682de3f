# SPDX-License-Identifier: MIT
"""Keeps account of a ping: sent probes, received replies, their order, and missing replies.

Pure: all times are arguments, in nanoseconds of one clock. A probe is settled when its reply has arrived
or its timeout has passed. Probes are settled in the order of their slots, so that a late reply counts
for the slot of its probe and not for the time of its arrival.
"""

from collections import Counter, deque

import msgspec

from vftrace.ping.distribution import Distribution
from vftrace.ping.gaps import HELD, LOST, OWN, Gap, HoldFinder, LossFinder, Probe
from vftrace.ping.intervals import Interval, IntervalFinder

GAP_INTERVALS = 3
"""A loss is reported as a gap if it is longer than this many intervals."""

_REMEMBERED_LOSSES = 65_536


class _Open(msgspec.Struct):
    sent_ns: int
    done_ns: int
    reply_ns: int | None = None


class Ledger:
    """The account of one ping: call `sent`, `replied` and `advance` in order of time, then `close`.

    `advance` and `close` return gaps as they are settled: every loss, holds longer than
    GAP_INTERVALS, and the pinger's own pauses of that length.
    """

    def __init__(self, interval_ns: int, timeout_ns: int) -> None:
        self.interval_ns = interval_ns
        self.timeout_ns = timeout_ns
        self.sent_count = 0
        self.received = 0
        self.lost = 0
        self.missed_slots = 0
        self.duplicates = 0
        self.reordered = 0
        self.after_timeout = 0
        self.since_ns: int | None = None
        self.settled_ns = 0
        self.late = Distribution()
        self.round_trips = Distribution()
        self.losses_ns: Counter[int] = Counter()
        self.longest: Gap | None = None
        self._open: dict[int, _Open] = {}
        self._order: deque[int] = deque()
        self._next_slot = 0
        self._highest_answered = -1
        self._unanswered_since_ns: int | None = None
        self._lost_slots: dict[int, None] = {}
        self._losses = LossFinder(interval_ns)
        self._holds = HoldFinder(interval_ns)
        self._own: list[Gap] = []
        self._intervals = IntervalFinder()

    @property
    def waiting(self) -> int:
        """The number of probes without a reply that have not timed out yet."""
        return self.sent_count - self.received - self.lost

    def silence_ns(self, now_ns: int) -> int:
        """Return how long no sent probe has been answered, up to now; 0 if the last probe was answered."""
        since = self._unanswered_since_ns
        return 0 if since is None else max(now_ns - since, 0)

    def sent(self, slot: int, late_ns: int, sent_ns: int, done_ns: int) -> None:
        """Note a probe sent in `slot`, `late_ns` after its time; slots since the last probe were missed."""
        missed = slot - self._next_slot
        if missed > GAP_INTERVALS:
            ns = missed * self.interval_ns
            start_ns = sent_ns - late_ns - ns
            self._own.append(Gap(OWN, start_ns, ns, ns, ns, 0, 0, missed, None, None))
        self.missed_slots += missed
        self._next_slot = slot + 1
        self.sent_count += 1
        self.late.add(late_ns)
        if self.since_ns is None:
            self.since_ns = sent_ns
        if self._unanswered_since_ns is None:
            self._unanswered_since_ns = sent_ns
        self._open[slot] = _Open(sent_ns, done_ns)
        self._order.append(slot)

    def stopped(self, slot: int) -> None:
        """Note that no probe is sent in `slot` or later; slots between the last sent one and it were missed."""
        self.missed_slots += slot - self._next_slot
        self._next_slot = slot

    def replied(self, slot: int, reply_ns: int) -> None:
        """Note a reply to the probe of `slot`."""
        probe = self._open.get(slot)
        if probe is None:
            if slot in self._lost_slots:
                del self._lost_slots[slot]
                self.after_timeout += 1
            elif 0 <= slot < self._next_slot:
                self.duplicates += 1
            return
        if probe.reply_ns is not None:
            self.duplicates += 1
            return
        probe.reply_ns = max(reply_ns, probe.sent_ns)
        self.received += 1
        self.round_trips.add(reply_ns - probe.sent_ns)
        if slot < self._highest_answered:
            self.reordered += 1
            return
        self._highest_answered = slot
        following = self._open.get(self._order[-1]) if slot < self._order[-1] else None
        later = self._open.get(slot + 1, following)
        self._unanswered_since_ns = None if following is None or later is None else later.sent_ns

    def advance(self, now_ns: int) -> list[Gap]:
        """Settle probes: all replies that arrived before `now_ns` must have been noted."""
        gaps, self._own = self._own, []
        while self._order:
            probe = self._open[self._order[0]]
            if probe.reply_ns is None and now_ns - probe.sent_ns <= self.timeout_ns:
                break
            gaps += self._settle(self._order.popleft())
        return self._count(gaps)

    def close(self) -> list[Gap]:
        """End the input: unsettled probes count as not sent, because their result is not known.

        Call `advance` with a late enough time first.
        """
        gaps, self._own = self._own, []
        for slot in self._order:
            if self._open[slot].reply_ns is None:
                self.sent_count -= 1
            else:
                gaps += self._settle(slot)
        self._order.clear()
        gaps += self._losses.close() + self._holds.close()
        self._intervals.close()
        return self._count(gaps)

    def take_intervals(self) -> list[Interval]:
        """Return the round trips settled since the last call, by interval; call it often, because they accumulate."""
        return self._intervals.take()

    def _settle(self, slot: int) -> list[Gap]:
        opened = self._open.pop(slot)
        if opened.reply_ns is None:
            self.lost += 1
            self._lost_slots[slot] = None
            if len(self._lost_slots) > _REMEMBERED_LOSSES:
                del self._lost_slots[next(iter(self._lost_slots))]
        self.settled_ns = opened.sent_ns
        probe = Probe(slot, opened.sent_ns, opened.done_ns, opened.reply_ns)
        self._intervals.add(probe)
        return self._losses.add(probe) + self._holds.add(probe)

    def _count(self, gaps: list[Gap]) -> list[Gap]:
        kept = [gap for gap in gaps if gap.kind != HELD or self.is_long(gap)]
        for gap in kept:
            if gap.kind == LOST:
                self.losses_ns[gap.ns] += 1
            if gap.kind != OWN and (self.longest is None or gap.ns > self.longest.ns):
                self.longest = gap
        return kept

    def is_long(self, gap: Gap) -> bool:
        """Whether it is longer than GAP_INTERVALS."""
        return gap.ns > GAP_INTERVALS * self.interval_ns
