# SPDX-License-Identifier: MIT
"""Measures the rate of the migration channel from the bytes of each round."""

from collections.abc import Sequence

import msgspec

from vftrace.analysis.forecast.history import History, Step
from vftrace.uapi import PAGE_SIZE

PAGE_ON_WIRE = PAGE_SIZE + 8
"""A page and its header (QEMU migration/ram.c, save_page_header)."""

WINDOW_NS = 100_000_000
"""QEMU sends a tenth of a second's worth at once and then sleeps (migration.c, BUFFER_DELAY)."""

TURN_NS = 50_000_000
"""The longest time that QEMU sends before it checks again, if nothing limits it (migration/ram.c, MAX_WAIT)."""

_WHOLE_NS = 0.95 * WINDOW_NS
"""The shortest round that shows the rate, because nothing limits QEMU within one window. Rounds are measured from sweep
to sweep, and sweeps are not as regular as QEMU's windows."""

_HELD_BACK = 1.25
"""max-bandwidth limits a channel that can carry this many times the bytes sent."""

_FADING = 0.5
"""The weight of each round relative to the one after it."""


class Channel(msgspec.Struct, frozen=True):
    """Bytes per second over time (`rate`), and while nothing limits the channel (`link`)."""

    rate: float
    link: float
    held_back: bool
    fresh: float
    """As `link`, for pages that the destination receives for the first time: its kernel has to allocate memory for
    them."""

    @property
    def quota(self) -> float:
        """The bytes that QEMU sends before it checks how much is left: those of one window, or of the longest turn of
        ram_save_iterate."""
        bytes_ = self.rate * WINDOW_NS if self.held_back else self.link * TURN_NS
        return max(float(PAGE_ON_WIRE), bytes_ / 1e9)

    def limited_to(self, rate: float | None, link: float | None) -> "Channel":
        """Return the same channel with another rate and another link. A rate above the link's needs a faster link."""
        if rate is None and link is None:
            return self
        rate = self.rate if rate is None else rate
        if link is None:
            link = max(rate, self.link)
        rate, fresh = min(rate, link), self.fresh * link / self.link
        return Channel(rate, link, link >= rate * _HELD_BACK, min(link, max(rate, fresh)))

    def bytes_in(self, ns: float) -> float:
        """Return the bytes sent within a time."""
        return self.rate * ns / 1e9


def measured_channel(history: History, fading: float = _FADING) -> Channel | None:
    """Return the channel that the rounds measured, each with `fading` times the weight of the one after it; None if no
    bytes were sent."""
    steps = history.steps
    sent, ns = sum(s.sent_bytes for s in steps), sum(s.ns for s in steps)
    if not sent:
        return None
    mean = sent * 1e9 / ns
    rate = _weighted([(s.sent_bytes, s.ns) for s in steps if s.ns > _WHOLE_NS], fading) or mean
    link = _weighted([(s.burst_bytes, s.burst_ns) for s in steps], fading) or mean
    if link < rate * _HELD_BACK:
        link = max(mean, link)
        return Channel(mean, link, False, link)
    fresh = _weighted([(s.burst_bytes, s.burst_ns) for s in steps[:1]], fading) or link
    return Channel(rate, link, True, min(link, max(rate, fresh)))


def _weighted(measured: Sequence[tuple[int, int]], fading: float) -> float | None:
    """Return the weighted bytes per second of (bytes, ns), oldest first; None if nothing was measured."""
    bytes_ = ns = 0.0
    for more_bytes, more_ns in measured:
        bytes_ = bytes_ * fading + more_bytes
        ns = ns * fading + more_ns
    return bytes_ * 1e9 / ns if bytes_ and ns else None


def page_bytes(later: Sequence[Step], unsent_bytes: float) -> float:
    """Return the bytes that a dirty page takes on the channel: as in the last whole round, else a page and its header.

    Compression and zero pages make it less; the first round, which sends all memory, does not show it. A round
    leaves about `unsent_bytes` unsent.
    """
    unsent = unsent_bytes / PAGE_ON_WIRE
    for step in reversed(later):
        pages = (step.began_with or 0) - unsent
        if step.sent_bytes and step.ns > WINDOW_NS and pages > 64:
            cost = max(16.0, step.sent_bytes / pages)
            # The unsent bytes are known only to within a quota: slightly fewer bytes do not mean compression.
            return cost if cost < 0.7 * PAGE_ON_WIRE else float(PAGE_ON_WIRE)
    return float(PAGE_ON_WIRE)
