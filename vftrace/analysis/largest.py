# SPDX-License-Identifier: MIT
"""Keeps the largest of many numbers that are added and removed."""

import heapq
from collections import Counter


class Largest:
    """A collection of numbers that finds its largest without a search."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._heap: list[int] = []

    def add(self, number: int) -> None:
        """Add a number."""
        if not self._counts[number]:
            heapq.heappush(self._heap, -number)
        self._counts[number] += 1

    def remove(self, number: int) -> None:
        """Remove a number that was added."""
        self._counts[number] -= 1

    def clear(self) -> None:
        """Remove all numbers."""
        self._counts.clear()
        self._heap.clear()

    @property
    def largest(self) -> int:
        """The largest number; 0 without any."""
        while self._heap and not self._counts[-self._heap[0]]:
            self._counts.pop(-heapq.heappop(self._heap), None)
        return -self._heap[0] if self._heap else 0
