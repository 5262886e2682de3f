# SPDX-License-Identifier: MIT
"""Sorts records of several CPUs by their times, within a window of event time."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

from msgspec.structs import replace

from vftrace.events import BitmapPart, Event

WINDOW_NS = 50_000_000
"""The window. A record gets its time before its place in the ring buffer, so neighbours may be swapped. No event is
held back longer than this, measured by the newest event and not by a clock."""

MAX_HELD = 32_768
"""How many events are held back at most. If event time does not advance, the oldest events are still released, so that
memory is bounded; a host has a few thousand events in a window."""

_MAX_PROCESSES = 65_536
_NEAR = 32
"""Most late records are at most this number of places late."""


class Order:
    """Releases an event once an event that is `window_ns` younger has arrived.

    The kernel side takes a record's time and its number one after the other, so two CPUs may take them in opposite
    order. Released events have their numbers in the order of their times: among the held-back records of one process,
    the oldest gets the smallest number. A missing number stays missing.

    Most records arrive in order, so the held-back events are a list that grows at its end; only for a late record
    this class searches the place.
    """

    def __init__(self, window_ns: int = WINDOW_NS, most: int = MAX_HELD) -> None:
        self._window_ns = window_ns
        self._most = most
        self._held: list[Event] = []
        self._first = 0
        """The index of the oldest event in `_held`; earlier ones have been released."""
        self._newest_ns = 0
        self._largest: dict[int, int] = {}
        """For each series of numbers (`_series`): the largest that has arrived."""

    def push(self, events: Sequence[Event]) -> list[Event]:
        """Take events in their order of arrival; returns the due events, oldest first."""
        held, largest = self._held, self._largest
        first, newest_ns, window_ns = self._first, self._newest_ns, self._window_ns
        due: list[Event] = []
        for event in events:
            at_ns, seq, series = event.at_ns, event.seq, event.tgid
            if type(event) is BitmapPart:
                series = ~series
            if at_ns > newest_ns and seq > largest.get(series, -1):
                held.append(event)
                largest[series] = seq
                newest_ns = at_ns
                continue
            # Release the due events first: they keep their places and numbers.
            released = self._due_until(first, newest_ns)
            due += held[first:released]
            first = released
            newest_ns = max(newest_ns, at_ns)
            self._insert(event, first, newest_ns - window_ns)
        released = self._due_until(first, newest_ns)
        due += held[first:released]
        first = released
        if 2 * first > len(held):
            # Released events take memory, those with bitmaps much.
            del held[:first]
            first = 0
        self._first, self._newest_ns = first, newest_ns
        if len(largest) > _MAX_PROCESSES:
            self._forget()
        return due

    def _due_until(self, first: int, newest_ns: int) -> int:
        """Return the index in `_held` of the first event that stays held back once `newest_ns` has arrived."""
        held, due_ns = self._held, newest_ns - self._window_ns
        at = max(first, len(held) - self._most)
        last = len(held)
        while at < last and held[at].at_ns <= due_ns:
            at += 1
        return at

    def flush(self) -> list[Event]:
        """Release all held-back events, oldest first."""
        rest = self._held[self._first :]
        self._held.clear()
        self._first = 0
        return rest

    def _insert(self, event: Event, first: int, due_ns: int) -> None:
        """Insert an event at the place of its time, and sort the numbers of its process again.

        Due events, up to `due_ns`, keep their numbers.
        """
        held = self._held
        at_ns, seq, series = event.at_ns, event.seq, _series(event)
        place = len(held)
        near = max(first, place - _NEAR)
        younger: Event | None = None
        while place > near:
            before = held[place - 1]
            if before.at_ns <= at_ns:
                break
            if _series(before) == series:
                younger = before
            place -= 1
        else:
            if place > first:
                place = bisect_right(held, at_ns, lo=first, hi=place, key=attrgetter("at_ns"))
                younger = self._same_series(series, range(place, len(held)))
        if seq <= self._largest.get(series, -1):
            # Of the same time, which says nothing about two series: those stay in their order of arrival.
            for i in range(place - 1, max(first, place - _NEAR) - 1, -1):
                if held[i].at_ns < at_ns:
                    break
                if _series(held[i]) == series and held[i].seq > seq:
                    place, younger = i, held[i]
        held.insert(place, event)
        largest = self._largest.get(series, -1)
        older: Event | None = None
        if seq <= largest or (younger is not None and younger.seq < seq):
            if at_ns > due_ns:
                first = bisect_right(held, due_ns, lo=first, key=attrgetter("at_ns"))
            older = self._same_series(series, range(place - 1, first - 1, -1))
            if older is None and younger is None:
                # No event of the series is held back: this is the pid's next process, which begins at 0.
                largest = seq
        self._largest[series] = max(largest, seq)
        if (older and older.seq > seq) or (younger and younger.seq < seq):
            self._renumber(series, first)

    def _same_series(self, series: int, places: Iterable[int]) -> Event | None:
        """Return the first event of a series in these places."""
        held = self._held
        return next((held[i] for i in places if _series(held[i]) == series), None)

    def _renumber(self, series: int, first: int) -> None:
        """Give the oldest event of a series its smallest number, and so on."""
        held = self._held
        places = [i for i in range(first, len(held)) if _series(held[i]) == series]
        numbers = sorted(held[i].seq for i in places)
        for i, seq in zip(places, numbers, strict=True):
            if held[i].seq != seq:
                held[i] = replace(held[i], seq=seq)

    def _forget(self) -> None:
        """Keep only the numbers of processes with held-back events."""
        self._largest.clear()
        for event in self._held[self._first :]:
            series = _series(event)
            self._largest[series] = max(event.seq, self._largest.get(series, -1))


def _series(event: Event) -> int:
    """Return the series of an event's number: that of its process, or of its process's bitmaps."""
    return ~event.tgid if type(event) is BitmapPart else event.tgid
