# SPDX-License-Identifier: MIT
"""Keeps the offset of a host's wall clock over time in few samples."""

import msgspec

from vftrace import events

CLOCK_MOVED_NS = 1_000_000
CLOCK_KEEP_NS = 5_000_000_000
MAX_CLOCK_SAMPLES = 1440
"""A clock sample is kept if the offset has moved by a millisecond, and every five seconds; if there are too many, every
other one is dropped."""


class ClockSamples(msgspec.Struct):
    """`kept` has (at_ns, realtime_offset_ns, error_ns) in order of time."""

    kept: list[tuple[int, int, int]] = msgspec.field(default_factory=list)

    def add(self, event: events.ClockSample) -> None:
        """Keep the first and the latest sample, and those between which the clock moved."""
        if event.error_ns < 0:
            # A negative bound means a damaged record.
            return
        kept, sample = self.kept, (event.at_ns, event.realtime_offset_ns, event.error_ns)
        if len(kept) > 1:
            before, last = kept[-2:]
            still = max(abs(last[1] - before[1]), abs(sample[1] - last[1])) < CLOCK_MOVED_NS
            if still and last[0] - before[0] < CLOCK_KEEP_NS:
                kept.pop()
        kept.append(sample)
        if len(kept) > MAX_CLOCK_SAMPLES:
            self.kept = [
                sample
                for index, sample in enumerate(kept)
                if index % 2 == 0 or not self._stands_still(index)
            ][-MAX_CLOCK_SAMPLES:]

    def _stands_still(self, index: int) -> bool:
        """Whether the clock did not move around a sample, so that the sample is not needed."""
        around = self.kept[index - 1 : index + 2]
        return all(abs(s[1] - self.kept[index][1]) < CLOCK_MOVED_NS for s in around)
