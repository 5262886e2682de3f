"""How fast the migration channel is, from what each round sent."""

from collections.abc import Sequence

from vftrace.analysis.forecast.history import History, Step
from vftrace.dataclass import dataclass
from vftrace.uapi import PAGE_SIZE

PAGE_ON_WIRE = PAGE_SIZE + 8
"""A page and its header (QEMU migration/ram.c, save_page_header)."""

WINDOW_NS = 100_000_000
"""QEMU sends a tenth of a second's worth at once and then sleeps (migration.c, BUFFER_DELAY)."""

TURN_NS = 50_000_000
"""QEMU sends for this long at most before it looks again, where nothing holds it back (migration/ram.c, MAX_WAIT)."""

_WHOLE_NS = 0.95 * WINDOW_NS
"""Within one window nothing holds back: a shorter round does not show the rate. Rounds of one window are measured from
sweep to sweep, which are not as regular as QEMU's windows."""

_HELD_BACK = 1.25
"""A channel that can carry this much more than is sent is held back by max-bandwidth."""

_FADING = 0.5
"""How much each round counts beside the one after it."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Bytes per second over time (`rate`), and while the channel is not held back (`link`)."""

    rate: float
    link: float
    held_back: bool
    fresh: float
    """As `link`, for pages that the destination receives for the first time: its kernel has to find memory for them."""

    @property
    def quota(self) -> float:
        """Bytes that QEMU sends before it looks how much is left: one window's worth, or what ram_save_iterate
        sends in its longest turn."""
        bytes_ = self.rate * WINDOW_NS if self.held_back else self.link * TURN_NS
        return max(float(PAGE_ON_WIRE), bytes_ / 1e9)

    def limited_to(self, rate: float | None, link: float | None) -> "Channel":
        """The same channel at another rate, and over another link. A rate above what the link carries needs a faster
        link."""
        if rate is None and link is None:
            return self
        rate = self.rate if rate is None else rate
        if link is None:
            link = max(rate, self.link)
        rate, fresh = min(rate, link), self.fresh * link / self.link
        return Channel(rate, link, link >= rate * _HELD_BACK, min(link, max(rate, fresh)))

    def bytes_in(self, ns: float) -> float:
        """Bytes sent within a time."""
        return self.rate * ns / 1e9


def measured_channel(history: History, fading: float = _FADING) -> Channel | None:
    """The channel as the rounds measured it, each counting `fading` times the one after it; None if nothing was
    sent."""
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
    """Bytes per second of (bytes, ns), oldest first; None if nothing was measured."""
    bytes_ = ns = 0.0
    for more_bytes, more_ns in measured:
        bytes_ = bytes_ * fading + more_bytes
        ns = ns * fading + more_ns
    return bytes_ * 1e9 / ns if bytes_ and ns else None


def page_bytes(later: Sequence[Step], unsent_bytes: float) -> float:
    """Bytes that a dirty page costs on the channel: as the last whole round had it, else a page and its header.

    Compression and zero pages make it less; the first round, which sends all memory, does not show it. A round
    leaves about `unsent_bytes` unsent.
    """
    unsent = unsent_bytes / PAGE_ON_WIRE
    for step in reversed(later):
        pages = (step.began_with or 0) - unsent
        if step.sent_bytes and step.ns > WINDOW_NS and pages > 64:
            cost = max(16.0, step.sent_bytes / pages)
            # What was unsent is known to a quota only: a little less is no sign of compression.
            return cost if cost < 0.7 * PAGE_ON_WIRE else float(PAGE_ON_WIRE)
    return float(PAGE_ON_WIRE)
