"""A recording through the same code as live data: bytes, events, order, tracker."""

from collections.abc import Iterable, Iterator
from itertools import islice

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.tracker import Tracker
from vftrace.collect.order import Order
from vftrace.events import Event, wire

_BATCH = 1024


def events_of(records: Iterable[bytes]) -> Iterator[Event]:
    """Decode and sort; records that cannot be decoded at all are dropped by the recording's own checks."""
    order = Order()
    rest = iter(records)
    while batch := list(islice(rest, _BATCH)):
        yield from order.push(list(map(wire.decode, batch)))
    yield from order.flush()


def track(records: Iterable[bytes], mailboxes: Mailboxes | None = None) -> Tracker:
    """A tracker that has seen everything, and knows that there is nothing more."""
    tracker = Tracker(mailboxes=mailboxes or Mailboxes())
    for event in events_of(records):
        tracker.feed(event)
    tracker.finish()
    return tracker
