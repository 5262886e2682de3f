"""The service's downtime: what a ping's recording says about a span of time."""

from collections.abc import Iterable
from dataclasses import dataclass

from vftrace.events import Event, PingGap, PingSummary

LOST, HELD, OWN = "lost", "held", "own"
"""`PingGap.kind`: never answered; answered late, after a queue had kept it; the pinger itself sent nothing."""


@dataclass(frozen=True, slots=True)
class ServiceGap:
    """The longest time without replies that touches a span. Times are CLOCK_BOOTTIME, ns.

    `ns` is 0 (and `start_at_ns` None) if every probe was answered in time. With one interruption
    the true length lies between `least_ns` and `most_ns` (None: no end was seen). `blind_ns` is
    how much of the span the pinger sent nothing in, which may hide a gap of that length.
    `last_reply_at_ns` and `next_reply_at_ns` are when the replies around the gap came.
    """

    start_at_ns: int | None
    ns: int
    least_ns: int
    most_ns: int | None
    lost: int
    late: int
    blind_ns: int
    last_reply_at_ns: int | None
    next_reply_at_ns: int | None


def service_gap(events: Iterable[Event], start_ns: int, end_ns: int) -> ServiceGap | None:
    """The longest gap of a ping's events that overlaps `start_ns` to `end_ns`.

    None where the ping cannot tell: it did not cover the whole span, and no gap touches it.
    """
    longest: PingGap | None = None
    summary: PingSummary | None = None
    blind_ns = 0
    for event in events:
        if isinstance(event, PingSummary):
            summary = event
        elif isinstance(event, PingGap):
            event_end_ns = event.start_at_ns + event.ns
            if event.start_at_ns >= end_ns or event_end_ns <= start_ns:
                continue
            if event.kind == OWN:
                blind_ns += min(event_end_ns, end_ns) - max(event.start_at_ns, start_ns)
            elif longest is None or event.ns > longest.ns:
                longest = event
    if longest is not None:
        return ServiceGap(
            longest.start_at_ns,
            longest.ns,
            longest.least_ns,
            longest.most_ns,
            longest.lost,
            longest.late,
            blind_ns,
            longest.before_reply_ns,
            longest.after_reply_ns,
        )
    if summary is None or summary.since_ns > start_ns or summary.settled_ns < end_ns:
        return None
    return ServiceGap(None, 0, 0, 0, 0, 0, blind_ns, None, None)
