"""The largest of many numbers that come and go."""

import heapq
from collections import Counter


class Largest:
    """A collection of numbers whose largest is found without looking at all of them."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._heap: list[int] = []

    def add(self, number: int) -> None:
        """Put a number in."""
        if not self._counts[number]:
            heapq.heappush(self._heap, -number)
        self._counts[number] += 1

    def remove(self, number: int) -> None:
        """Take a number out that was put in."""
        self._counts[number] -= 1

    def clear(self) -> None:
        """Take everything out."""
        self._counts.clear()
        self._heap.clear()

    @property
    def largest(self) -> int:
        """The largest number; 0 of none."""
        while self._heap and not self._counts[-self._heap[0]]:
            self._counts.pop(-heapq.heappop(self._heap), None)
        return -self._heap[0] if self._heap else 0
