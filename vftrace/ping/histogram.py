# SPDX-License-Identifier: MIT
"""Counts durations in buckets whose width grows with the duration: few buckets, and quantiles with a small error."""

from collections import Counter
from collections.abc import Iterable
from typing import Self

_BITS = 5
_PER_DOUBLING = 1 << _BITS
"""The number of buckets between a duration and its double."""

LARGEST_NS = (1 << 63) - 1

ERROR = 1 / (2 * _PER_DOUBLING)
"""The largest relative error of a quantile (1.6 %): half a bucket's width."""


def bucket_of(ns: int) -> int:
    """Return the number of the bucket for a duration of 0 to `LARGEST_NS` ns; each short duration has its own
    bucket."""
    if ns < _PER_DOUBLING:
        return ns
    shift = ns.bit_length() - _BITS - 1
    return (shift << _BITS) + (ns >> shift)


def middle_of(bucket: int) -> int:
    """Return the duration in the middle of a bucket, ns."""
    if bucket < _PER_DOUBLING:
        return bucket
    shift = (bucket >> _BITS) - 1
    least = (bucket % _PER_DOUBLING + _PER_DOUBLING) << shift
    return least + ((1 << shift) - 1) // 2


LAST_BUCKET = bucket_of(LARGEST_NS)


class Histogram:
    """Counts durations in ns by bucket; never more than `LAST_BUCKET` + 1 counts."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.sum_ns = 0
        self.least_ns = 0
        self.most_ns = 0

    @classmethod
    def of(cls, text: str, least_ns: int, most_ns: int, sum_ns: int) -> Self:
        """Read a recorded histogram (`text`). Raises ValueError for an impossible one."""
        pairs = [word.split(":") for word in text.split(" ", LAST_BUCKET + 1)] if text else []
        counts = {int(bucket): int(count) for bucket, count in pairs}
        if len(counts) < len(pairs):
            raise ValueError("a bucket is there twice")
        if any(not 0 <= bucket <= LAST_BUCKET for bucket in counts):
            raise ValueError("no duration is in a bucket of that number")
        if any(not 0 < count <= LARGEST_NS for count in counts.values()):
            raise ValueError("a count is below one or too large")
        if not 0 <= least_ns <= most_ns <= LARGEST_NS:
            raise ValueError("the shortest or the longest duration cannot be")
        if counts and (bucket_of(least_ns), bucket_of(most_ns)) != (min(counts), max(counts)):
            raise ValueError("the shortest or the longest duration is in another bucket")
        made = cls()
        made._counts = Counter(counts)
        made.count = sum(counts.values())
        made.least_ns, made.most_ns, made.sum_ns = least_ns, most_ns, sum_ns
        return made

    @property
    def counts(self) -> dict[int, int]:
        """The number of durations in each bucket with any, by the bucket's number."""
        return dict(sorted(self._counts.items()))

    @property
    def text(self) -> str:
        """The counts in the recorded form: `BUCKET:COUNT`, in order, with spaces between."""
        return " ".join(f"{bucket}:{count}" for bucket, count in self.counts.items())

    def add(self, ns: int) -> None:
        """Count one duration; a negative one (from two clock readings) counts as 0."""
        ns = min(max(ns, 0), LARGEST_NS)
        self.least_ns = min(self.least_ns, ns) if self.count else ns
        self.most_ns = max(self.most_ns, ns)
        self.count += 1
        self.sum_ns += ns
        self._counts[bucket_of(ns)] += 1

    def quantile_ns(self, share: float) -> int | None:
        """Return the least duration that `share` (0 to 1) of all do not exceed, within `ERROR`; None without any."""
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= share * self.count:
                return min(max(middle_of(bucket), self.least_ns), self.most_ns)
        return None


def sum_of(parts: Iterable[Histogram]) -> Histogram:
    """Return one histogram of the durations of all histograms."""
    whole = Histogram()
    for part in parts:
        if part.count:
            whole.least_ns = min(whole.least_ns, part.least_ns) if whole.count else part.least_ns
            whole.most_ns = max(whole.most_ns, part.most_ns)
            whole.count += part.count
            whole.sum_ns += part.sum_ns
            whole._counts.update(part._counts)
    return whole
