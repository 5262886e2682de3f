# SPDX-License-Identifier: MIT
"""Events come out by time, each once, and no later than the window allows."""

import sys
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from vftrace.collect.order import WINDOW_NS, Order
from vftrace.events import BitmapPart, Tick


def _tick(at_ns: int, seq: int = 0, tgid: int = 1) -> Tick:
    """`tid` distinguishes events, whatever their numbers become."""
    return Tick(at_ns, seq, tgid, seq)


# How late each of a series of events arrives, within the window.
LATE = st.lists(st.tuples(st.integers(0, 20_000_000), st.integers(0, WINDOW_NS - 1)), max_size=100)


@example([(0, 1), (0, 0)])
@given(LATE)
def test_neighbours_that_swapped_within_the_window_are_sorted(
    steps: list[tuple[int, int]],
) -> None:
    at, made = 0, []
    for i, (step, late) in enumerate(steps):
        at += step
        made.append((at + late, _tick(at, i)))
    arrived = [event for _, event in sorted(made, key=lambda pair: pair[0])]
    order = Order()
    out = [due for event in arrived for due in order.push([event])]
    out += order.flush()
    assert sorted(out, key=lambda e: e.seq) == [event for _, event in made]
    assert all(a.at_ns <= b.at_ns for a, b in pairwise(out))


@given(st.lists(st.integers(0, 1 << 64), max_size=60))
def test_nothing_is_lost_or_doubled_whatever_the_times(times: list[int]) -> None:
    order = Order()
    events = [_tick(at, i) for i, at in enumerate(times)]
    out = [due for event in events for due in order.push([event])] + order.flush()
    assert sorted(e.tid for e in out) == [e.seq for e in out] == list(range(len(times)))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60))
def test_what_is_held_back_is_inside_the_window(times: list[int]) -> None:
    """After each push, nothing older than the newest minus the window is still inside."""
    order = Order()
    held: set[int] = set()
    newest = 0
    for i, at in enumerate(times):
        held.add(i)
        newest = max(newest, at)
        held -= {event.tid for event in order.push([_tick(at, i)])}
        assert all(times[j] > newest - WINDOW_NS for j in held)


def test_equal_times_keep_the_order_of_arrival() -> None:
    order = Order()
    for seq in range(5):
        assert order.push([_tick(7, seq)]) == []
    assert [event.seq for event in order.flush()] == [0, 1, 2, 3, 4]


def test_equal_times_of_two_processes_keep_the_order_of_arrival() -> None:
    """What the collector reads of a device has the time of the device's opening, and a number of its own series."""
    order = Order()
    for seq, tgid in ((19, 7), (14, 8), (20, 7), (3, 8), (21, 7)):
        order.push([_tick(50, seq, tgid)])
    # 3 is of the other series, and before 14.
    assert [(e.tgid, e.seq) for e in order.flush()] == [(7, 19), (8, 3), (8, 14), (7, 20), (7, 21)]


def test_numbers_follow_times_and_a_missing_one_stays_missing() -> None:
    """Seen: a CPU took its time before another's and its number after it."""
    order = Order()
    for at, seq, tgid in ((10, 1, 7), (30, 2, 7), (20, 3, 7), (25, 9, 8), (40, 5, 7)):
        order.push([_tick(at, seq, tgid)])
    assert [(e.at_ns, e.tgid, e.seq) for e in order.flush()] == [
        (10, 7, 1),
        (20, 7, 2),
        (25, 8, 9),
        (30, 7, 3),
        (40, 7, 5),
    ]


def test_an_event_is_due_when_one_is_a_window_younger() -> None:
    order = Order(10)
    assert order.push([_tick(100)]) == []
    assert order.push([_tick(109, 1)]) == []
    assert [event.at_ns for event in order.push([_tick(110, 2)])] == [100]
    assert [event.at_ns for event in order.flush()] == [109, 110]
    assert order.flush() == []


def test_memory_is_bounded_where_time_stands_still() -> None:
    order = Order(most=100)
    out = order.push([_tick(7, seq) for seq in range(1000)])
    assert [event.seq for event in out] == list(range(900))
    assert [event.seq for event in order.flush()] == list(range(900, 1000))


def test_released_events_are_not_kept() -> None:
    """A flood of bitmaps would stay in memory as long as the host is quiet afterwards."""
    order = Order()
    flood = [_tick(at, at) for at in range(3000)]
    alone = sys.getrefcount(flood[0])
    order.push(flood)
    held = sys.getrefcount(flood[0])
    for at in (2 * WINDOW_NS, 4 * WINDOW_NS):
        order.push([_tick(at, at)])
    after = sys.getrefcount(flood[0])
    assert (held, after) == (alone + 1, alone)


def test_a_pid_that_is_used_again_keeps_its_own_numbers() -> None:
    order = Order()
    out = order.push(
        [_tick(1, 8), _tick(2, 9), _tick(WINDOW_NS * 3, 0), _tick(WINDOW_NS * 3 + 1, 1)]
    )
    assert [event.seq for event in [*out, *order.flush()]] == [8, 9, 0, 1]


@given(LATE, st.lists(st.integers(1, 9), min_size=1), st.integers(1, 4))
def test_lists_of_any_length_come_out_as_one_by_one(
    steps: list[tuple[int, int]], lengths: list[int], processes: int
) -> None:
    at, made = 0, []
    for i, (step, late) in enumerate(steps):
        at += step
        made.append((at + late, _tick(at, i // processes, 1 + i % processes)))
    arrived = [event for _, event in sorted(made, key=lambda pair: pair[0])]
    one, many = Order(), Order()
    alone = [due for event in arrived for due in one.push([event])] + one.flush()
    together = []
    rest = list(arrived)
    for length in lengths:
        together += many.push(rest[:length])
        del rest[:length]
    assert together + many.push(rest) + many.flush() == alone


def test_bitmaps_have_numbers_of_their_own() -> None:
    """They come through another ring buffer, so the numbers of a process's other records say nothing of theirs."""
    order = Order()
    order.push([_tick(10, 7), BitmapPart(11, 0, 1, 1, 5, 0, 0, 0, b""), _tick(12, 8)])
    order.push([BitmapPart(9, 1, 1, 1, 5, 64, 0, 0, b""), _tick(8, 9)])
    assert [(type(e), e.at_ns, e.seq) for e in order.flush()] == [
        (Tick, 8, 7),
        (BitmapPart, 9, 0),
        (Tick, 10, 8),
        (BitmapPart, 11, 1),
        (Tick, 12, 9),
    ]
