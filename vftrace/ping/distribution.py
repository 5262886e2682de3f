# SPDX-License-Identifier: MIT
"""Counts durations by the microsecond, and computes their percentiles."""

from collections import Counter

_NS_PER_US = 1_000


class Distribution:
    """Counts durations in nanoseconds; memory grows with their spread, not with their number."""

    def __init__(self) -> None:
        self._by_us: Counter[int] = Counter()
        self.count = 0
        self.least_ns = 0
        self.most_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration; a negative one (from two clock readings) counts as 0."""
        ns = max(ns, 0)
        self.least_ns = min(self.least_ns, ns) if self.count else ns
        self.most_ns = max(self.most_ns, ns)
        self.count += 1
        self._by_us[ns // _NS_PER_US] += 1

    def counts_ns(self) -> Counter[int]:
        """The number of durations of each length, to a microsecond."""
        return Counter({us * _NS_PER_US: count for us, count in self._by_us.items()})

    def quantile_ns(self, share: float) -> int:
        """Return the least duration that `share` (0 to 1) of all do not exceed, to a microsecond; 0 without any."""
        wanted = share * self.count
        seen = 0
        for us in sorted(self._by_us):
            seen += self._by_us[us]
            if seen >= wanted:
                return min((us + 1) * _NS_PER_US, self.most_ns)
        return 0
