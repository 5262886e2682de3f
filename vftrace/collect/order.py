"""Records of several CPUs in the order of their times, within a window fixed by event time."""

import heapq

from msgspec.structs import replace

from vftrace.events import Event

WINDOW_NS = 50_000_000
"""A time stamp is taken before the record's place in the ring, so neighbours may swap; nothing is
held back longer than this, measured by the newest event and never by a clock."""


class Order:
    """Releases events once an event that is `window_ns` younger has come.

    A record's time and its number are taken one after the other, so two CPUs may take them in opposite order.
    What is released has its numbers in the order of its times: among the records of one process that are
    held back, the oldest gets the smallest number. A number that no record has stays missing.
    """

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._heap: list[tuple[int, int, int, Event]] = []
        self._numbers: dict[int, list[int]] = {}
        self._count = 0
        self._newest_ns = 0

    def push(self, event: Event) -> list[Event]:
        """Take one event; returns those that are due, oldest first."""
        self._count += 1
        self._newest_ns = max(self._newest_ns, event.at_ns)
        heapq.heappush(self._heap, (event.at_ns, event.seq, self._count, event))
        heapq.heappush(self._numbers.setdefault(event.tgid, []), event.seq)
        due = []
        while self._heap and self._heap[0][0] <= self._newest_ns - self._window_ns:
            due.append(self._pop())
        return due

    def flush(self) -> list[Event]:
        """Everything that is still held back, oldest first."""
        return [self._pop() for _ in range(len(self._heap))]

    def _pop(self) -> Event:
        event = heapq.heappop(self._heap)[3]
        numbers = self._numbers[event.tgid]
        seq = heapq.heappop(numbers)
        if not numbers:
            del self._numbers[event.tgid]
        return event if seq == event.seq else replace(event, seq=seq)
