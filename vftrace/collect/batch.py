# SPDX-License-Identifier: MIT
"""Records with their events: each record is decoded once, where it enters this process."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self, cast

from vftrace.collect.clock import boottime_ns
from vftrace.events import COLLECTOR, Event, wire
from vftrace.model.host import HostInfo


class Batch:
    """Records in their order of arrival. Each record's event is decoded when `events` is first read."""

    __slots__ = ("_events", "_later", "records")

    def __init__(
        self, records: list[bytes] | None = None, events: Sequence[Event] | None = None
    ) -> None:
        self.records: list[bytes] = [] if records is None else records
        self._events: list[Event | None] = [] if events is None else list(events)
        self._later: list[int] = []
        """The indexes in `_events` of the records that are not decoded yet."""

    @property
    def events(self) -> list[Event]:
        """Return the event of each record."""
        if len(self._events) < len(self.records):
            self._events += wire.decode_all(self.records[len(self._events) :])
        for at in self._later:
            self._events[at] = wire.decode(self.records[at])
        self._later.clear()
        return cast(list[Event], self._events)

    @classmethod
    def of(cls, records: Iterable[bytes]) -> Self:
        """Return a batch of these records."""
        return cls(list(records))

    def add(self, record: bytes) -> None:
        """Append one record without decoding it: a caller that only writes or sends records never needs its event."""
        self._later.append(len(self.records))
        self.records.append(record)
        self._events.append(None)

    def append(self, record: bytes, event: Event) -> None:
        """Append one record with its event."""
        self.records.append(record)
        self._events.append(event)


class Source(Protocol):
    """A source of records: `LiveSource`, `ReplaySource` or a `Session` around one."""

    @property
    def host(self) -> HostInfo:
        """The traced host."""

    @property
    def ended(self) -> bool:
        """Whether the source has no more records."""

    def now_ns(self) -> int:
        """The time on the clock of the events."""

    def read(self) -> Batch:
        """Wait a moment, then return the records that arrived."""

    def close(self) -> Batch:
        """Close the source; returns the last records."""


class Intake:
    """The records that a live source gathers between two reads: the kernel side's and the collector's own.

    The time of the collector's records is the time up to which it has read, not the present time. If the reader is
    late, a record of the present time among older ones would push these out of the window in which `Order` sorts.
    """

    def __init__(self) -> None:
        self._batch = Batch()
        self._seq = 0
        self._reached_ns = boottime_ns()

    def take_in(self, record: bytes, *, decode: bool) -> Event | None:
        """Append a record of the kernel side; returns its event if the caller needs it now."""
        self.reach(wire.time_of(record))
        if not decode:
            self._batch.add(record)
            return None
        event = wire.decode(record)
        self._batch.append(record, event)
        return event

    def reach(self, at_ns: int) -> None:
        """Note that everything up to this time has been read."""
        self._reached_ns = max(self._reached_ns, at_ns)

    def write(self, event_type: type[Event], /, **fields: Any) -> None:
        """Append a record of the collector, with the time up to which it has read."""
        cut = {name: wire.cut_text(value) for name, value in fields.items()}
        event = event_type(self._reached_ns, self._seq, COLLECTOR, os.getpid(), **cut)
        self._seq += 1
        self._batch.append(wire.encode(event), event)

    def write_record(self, record: bytes) -> None:
        """Append a record of the kernel side as a record of the collector, as `write` does; its contents are older."""
        head = (self._reached_ns, self._seq, len(record), wire.kind_of(record), 0, COLLECTOR)
        self._seq += 1
        self._batch.add(wire.HEADER.pack(*head, os.getpid()) + record[wire.HEADER.size :])

    def drain(self) -> Batch:
        """Return the records since the last call."""
        batch, self._batch = self._batch, Batch()
        return batch
