"""Records of several CPUs in the order of their times, within a window fixed by event time."""

import heapq

from vftrace.events import Event

WINDOW_NS = 50_000_000
"""A time stamp is taken before the record's place in the ring, so neighbours may swap; nothing is
held back longer than this, measured by the newest event and never by a clock."""


class Order:
    """Releases events once an event that is `window_ns` younger has come."""

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._heap: list[tuple[int, int, Event]] = []
        self._count = 0
        self._newest_ns = 0

    def push(self, event: Event) -> list[Event]:
        """Take one event; returns those that are due, oldest first."""
        self._count += 1
        self._newest_ns = max(self._newest_ns, event.at_ns)
        heapq.heappush(self._heap, (event.at_ns, self._count, event))
        due = []
        while self._heap and self._heap[0][0] <= self._newest_ns - self._window_ns:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def flush(self) -> list[Event]:
        """Everything that is still held back, oldest first."""
        rest = [item[2] for item in sorted(self._heap, key=lambda item: item[:2])]
        self._heap.clear()
        return rest
