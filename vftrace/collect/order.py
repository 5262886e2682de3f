"""Records of several CPUs in the order of their times, within a window fixed by event time."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

from msgspec.structs import replace

from vftrace.events import BitmapPart, Event

WINDOW_NS = 50_000_000
"""A time stamp is taken before the record's place in the ring buffer, so neighbours may swap; nothing is
held back longer than this, measured by the newest event and never by a clock."""

MAX_HELD = 32_768
"""Events that are held back at once. Where time stands still the oldest go on all the same, so that memory is
bounded; a host has a few thousand of them in a window."""

_MAX_PROCESSES = 65_536
_COMPACT = 4096
_NEAR = 32
"""Most records that come late come so few places late."""


class Order:
    """Releases events once an event that is `window_ns` younger has come.

    A record's time and its number are taken one after the other, so two CPUs may take them in opposite order.
    What is released has its numbers in the order of its times: among the records of one process that are
    held back, the oldest gets the smallest number. A number that no record has stays missing.

    Most records come in order, so the held ones are a list that grows at its end; only a record that comes too
    late is searched its place.
    """

    def __init__(self, window_ns: int = WINDOW_NS, most: int = MAX_HELD) -> None:
        self._window_ns = window_ns
        self._most = most
        self._held: list[Event] = []
        self._first = 0
        """Where in `_held` the oldest is; what was before it has been released."""
        self._newest_ns = 0
        self._largest: dict[int, int] = {}
        """By series of numbers (`_series`): the largest that has come."""

    def push(self, events: Sequence[Event]) -> list[Event]:
        """Take events in their order of arrival; returns those that are due, oldest first."""
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
            # What is due must be out before: it keeps its place and its number.
            released = self._due_until(first, newest_ns)
            due += held[first:released]
            first = released
            newest_ns = max(newest_ns, at_ns)
            self._insert(event, first, newest_ns - window_ns)
        released = self._due_until(first, newest_ns)
        due += held[first:released]
        first = released
        if first > _COMPACT:
            del held[:first]
            first = 0
        self._first, self._newest_ns = first, newest_ns
        if len(largest) > _MAX_PROCESSES:
            self._forget()
        return due

    def _due_until(self, first: int, newest_ns: int) -> int:
        """Return where in `_held` the first event is that stays held back when `newest_ns` has come."""
        held, due_ns = self._held, newest_ns - self._window_ns
        at = max(first, len(held) - self._most)
        last = len(held)
        while at < last and held[at].at_ns <= due_ns:
            at += 1
        return at

    def flush(self) -> list[Event]:
        """Release everything that is still held back, oldest first."""
        rest = self._held[self._first :]
        self._held.clear()
        self._first = 0
        return rest

    def _insert(self, event: Event, first: int, due_ns: int) -> None:
        """Put an event where its time belongs, and the numbers of its process in order again.

        What is due, up to `due_ns`, keeps its numbers.
        """
        held = self._held
        at_ns, seq, series = event.at_ns, event.seq, _series(event)
        place = len(held)
        near = max(first, place - _NEAR)
        younger: Event | None = None
        while place > near:
            before = held[place - 1]
            if before.at_ns < at_ns or (before.at_ns == at_ns and before.seq <= seq):
                break
            if _series(before) == series:
                younger = before
            place -= 1
        else:
            if place > first:
                place = bisect_right(held, (at_ns, seq), lo=first, hi=place, key=_key)
                younger = self._same_series(series, range(place, len(held)))
        held.insert(place, event)
        largest = self._largest.get(series, -1)
        older: Event | None = None
        if seq <= largest or (younger is not None and younger.seq < seq):
            if at_ns > due_ns:
                first = bisect_right(held, due_ns, lo=first, key=attrgetter("at_ns"))
            older = self._same_series(series, range(place - 1, first - 1, -1))
            if older is None and younger is None:
                # Nothing of it is held back: the pid's next process, which begins at 0.
                largest = seq
        self._largest[series] = max(largest, seq)
        if (older and older.seq > seq) or (younger and younger.seq < seq):
            self._renumber(series, first)

    def _same_series(self, series: int, places: Iterable[int]) -> Event | None:
        """The first event of a series in these places."""
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
        """Keep only the numbers of processes of which something is held back."""
        self._largest.clear()
        for event in self._held[self._first :]:
            series = _series(event)
            self._largest[series] = max(event.seq, self._largest.get(series, -1))


def _series(event: Event) -> int:
    """Return which numbers an event's is one of: those of its process, or of its process's bitmaps."""
    return ~event.tgid if type(event) is BitmapPart else event.tgid


def _key(event: Event) -> tuple[int, int]:
    return event.at_ns, event.seq
