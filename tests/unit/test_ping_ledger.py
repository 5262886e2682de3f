# SPDX-License-Identifier: MIT
"""The account of a ping. The truth is a guest simulated here: when it did not answer, and what the link did."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vftrace.ping.distribution import Distribution
from vftrace.ping.gaps import HELD, LOST, OWN, Gap
from vftrace.ping.ledger import Ledger

MS = 1_000_000
TRIP = MS // 10
TIMEOUT = 1_000 * MS
START = 5_000 * MS


@dataclass
class Guest:
    """Answers after TRIP, except probes that are sent while it does not answer (`away`: from, to)."""

    away: list[tuple[int, int]] = field(default_factory=list)
    asleep: list[int] = field(default_factory=list)
    """Slots that the pinger misses."""

    late: dict[int, int] = field(default_factory=dict)
    """Slots that the pinger sends late, and by how much."""

    def ping(self, slots: int) -> tuple[Ledger, list[Gap]]:
        ledger = Ledger(MS, TIMEOUT)
        for slot in range(slots):
            if slot in self.asleep:
                continue
            late = self.late.get(slot, 0)
            sent = START + slot * MS + late
            ledger.sent(slot, late, sent, sent)
            if not any(start <= sent < end for start, end in self.away):
                ledger.replied(slot, sent + TRIP)
        ledger.stopped(slots)
        gaps = ledger.advance(START + slots * MS + TIMEOUT + MS)
        return ledger, gaps + ledger.close()


def test_a_cut_is_measured_from_its_probes() -> None:
    ledger, [gap] = Guest(away=[(START + 100 * MS, START + 280 * MS)]).ping(400)
    assert (gap.kind, gap.start_ns, gap.ns, gap.lost) == (LOST, START + 100 * MS, 180 * MS, 180)
    # Answered in slots 99 and 280; lost in slots 100 to 279.
    assert (gap.least_ns, gap.most_ns) == (179 * MS, 181 * MS)
    assert (ledger.sent_count, ledger.received, ledger.lost) == (400, 220, 180)
    assert ledger.longest == gap
    assert (ledger.missed_slots, ledger.duplicates, ledger.reordered) == (0, 0, 0)


@settings(deadline=None)
@given(st.integers(0, 50 * MS), st.integers(0, 200 * MS))
def test_the_estimate_is_off_by_less_than_an_interval(start: int, length: int) -> None:
    begin = START + 20 * MS + start
    _, gaps = Guest(away=[(begin, begin + length)]).ping(300)
    measured = sum(gap.ns for gap in gaps)
    assert abs(measured - length) < MS
    for gap in gaps:
        assert gap.most_ns is not None
        assert gap.least_ns <= length <= gap.most_ns


@settings(deadline=None)
@given(
    st.integers(0, 50 * MS),
    st.integers(5 * MS, 100 * MS),
    st.sets(st.integers(0, 200)),
    st.dictionaries(st.integers(0, 200), st.integers(0, MS - 1)),
)
def test_what_the_pinger_misses_is_never_added(
    start: int, length: int, asleep: set[int], late: dict[int, int]
) -> None:
    """Whatever it misses: the gaps together are no longer than the cut and an interval, and no
    longer alone than `most_ns`; without a cut there is none."""
    begin = START + 20 * MS + start
    _, gaps = Guest([(begin, begin + length)], sorted(asleep), late).ping(250)
    lost = [gap for gap in gaps if gap.kind == LOST]
    for gap in lost:
        assert gap.most_ns is None or gap.least_ns <= length <= gap.most_ns
        assert gap.start_ns >= begin
        assert gap.start_ns + gap.ns <= begin + length + MS
    _, quiet = Guest([], sorted(asleep), late).ping(250)
    assert [gap.kind for gap in quiet if gap.kind != OWN] == []


def test_a_stalled_pinger_lost_nothing() -> None:
    ledger, [gap] = Guest(asleep=list(range(50, 150))).ping(200)
    assert (gap.kind, gap.start_ns, gap.ns, gap.missed) == (OWN, START + 50 * MS, 100 * MS, 100)
    assert ledger.longest is None
    assert (ledger.missed_slots, ledger.sent_count, ledger.lost) == (100, 100, 0)


def test_a_stall_before_and_after_an_outage_adds_nothing_to_it() -> None:
    asleep = [*range(40, 50), *range(60, 80)]
    _, gaps = Guest([(START + 45 * MS, START + 70 * MS)], asleep).ping(120)
    [lost] = [gap for gap in gaps if gap.kind == LOST]
    assert (lost.start_ns, lost.ns, lost.lost) == (START + 50 * MS, 10 * MS, 10)
    assert (lost.least_ns, lost.most_ns) == (9 * MS, 41 * MS)


def test_a_short_stall_within_an_outage_belongs_to_it() -> None:
    _, gaps = Guest([(START + 50 * MS, START + 70 * MS)], list(range(52, 58))).ping(120)
    [lost] = [gap for gap in gaps if gap.kind == LOST]
    assert (lost.ns, lost.lost, lost.missed) == (20 * MS, 14, 6)
    # The stall itself was not seen to be an outage.
    assert (lost.least_ns, lost.most_ns) == (13 * MS, 21 * MS)


def test_a_long_stall_between_two_single_losses_is_no_outage() -> None:
    away = [(START + 49 * MS, START + 50 * MS), (START + 150 * MS, START + 151 * MS)]
    _, gaps = Guest(away, list(range(50, 150))).ping(200)
    assert [gap.ns for gap in gaps if gap.kind == LOST] == [MS, MS]


def test_an_outage_that_does_not_end_is_open() -> None:
    _, [gap] = Guest([(START + 60 * MS, START + 900 * MS)]).ping(100)
    assert (gap.ns, gap.lost, gap.after, gap.most_ns) == (40 * MS, 40, None, None)


def test_a_late_reply_counts_in_its_slot_and_in_its_time() -> None:
    """A queue holds 50 probes and lets them go at once: nothing lost, 50 ms without replies."""
    ledger = Ledger(MS, TIMEOUT)
    free = START + 150 * MS
    gaps: list[Gap] = []
    for slot in range(200):
        sent = START + slot * MS
        ledger.sent(slot, 0, sent, sent)
        if not 100 <= slot < 150:
            ledger.replied(slot, sent + TRIP)
        if slot == 150:
            for held in range(100, 150):
                ledger.replied(held, free)
        gaps += ledger.advance(sent)
    gaps += ledger.advance(START + 300 * MS) + ledger.close()
    [gap] = gaps
    assert (ledger.received, ledger.lost, ledger.reordered) == (200, 0, 50)
    assert gap.kind == HELD
    assert gap.start_ns == START + 100 * MS
    # The last probe was held for a millisecond only, which is not late.
    assert 49 * MS <= gap.ns <= 50 * MS
    assert gap.least_ns <= 50 * MS


def test_a_path_that_gets_longer_is_no_outage() -> None:
    """Half the way through every trip takes 2.5 ms more, as after a move to another host."""
    ledger = Ledger(MS, TIMEOUT)
    replies = {slot: START + slot * MS + (TRIP if slot < 100 else 26 * TRIP) for slot in range(200)}
    for slot in range(200):
        ledger.sent(slot, 0, START + slot * MS, START + slot * MS)
    for slot, at in replies.items():
        ledger.replied(slot, at)
    assert ledger.advance(START + 300 * MS) + ledger.close() == []


def test_duplicates_reordering_and_replies_after_the_timeout() -> None:
    ledger = Ledger(MS, 10 * MS)
    for slot in range(4):
        ledger.sent(slot, 0, START + slot * MS, START + slot * MS)
    ledger.replied(1, START + 4 * MS)
    ledger.replied(0, START + 4 * MS)  # behind a younger one
    ledger.replied(1, START + 4 * MS)  # again, not settled
    ledger.replied(2, START + 4 * MS)
    ledger.advance(START + 100 * MS)  # slot 3 times out
    ledger.replied(2, START + 101 * MS)  # again, settled
    ledger.replied(3, START + 101 * MS)  # too late
    ledger.replied(3, START + 102 * MS)  # and again
    ledger.replied(77, START + 102 * MS)  # never sent
    assert (ledger.received, ledger.lost, ledger.reordered) == (3, 1, 1)
    assert (ledger.duplicates, ledger.after_timeout) == (3, 1)


def test_nothing_is_lost_before_its_timeout() -> None:
    ledger = Ledger(MS, 10 * MS)
    ledger.sent(0, 0, START, START)
    assert (ledger.advance(START + 10 * MS), ledger.waiting, ledger.lost) == ([], 1, 0)
    ledger.advance(START + 10 * MS + 1)
    assert (ledger.waiting, ledger.lost) == (0, 1)


def test_what_still_waits_at_the_end_is_neither_lost_nor_received() -> None:
    ledger = Ledger(MS, TIMEOUT)
    for slot in range(3):
        ledger.sent(slot, 0, START + slot * MS, START + slot * MS)
    ledger.replied(0, START + TRIP)
    assert ledger.close() == []
    assert (ledger.sent_count, ledger.received, ledger.lost) == (1, 1, 0)


def test_silence_now() -> None:
    ledger = Ledger(MS, TIMEOUT)
    ledger.sent(0, 0, START, START)
    ledger.replied(0, START + TRIP)
    assert ledger.silence_ns(START + 5 * MS) == 0
    ledger.sent(1, 0, START + MS, START + MS)
    ledger.sent(2, 0, START + 2 * MS, START + 2 * MS)
    assert ledger.silence_ns(START + 5 * MS) == 4 * MS
    ledger.replied(1, START + 5 * MS)
    assert ledger.silence_ns(START + 5 * MS) == 3 * MS
    ledger.replied(2, START + 5 * MS)
    assert ledger.silence_ns(START + 9 * MS) == 0


@pytest.mark.parametrize(("share", "us"), [(0.5, 51), (0.99, 100), (1.0, 100)])
def test_quantiles(share: float, us: int) -> None:
    """1 to 100 us: half do not exceed 50 us, to the microsecond."""
    distribution = Distribution()
    for value in range(1, 101):
        distribution.add(value * 1_000)
    assert distribution.quantile_ns(share) == us * 1_000
    assert (distribution.least_ns, distribution.most_ns) == (1_000, 100_000)


def test_quantile_of_nothing() -> None:
    assert Distribution().quantile_ns(0.5) == 0
