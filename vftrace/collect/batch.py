"""Records with their events: every record is decoded once, where it comes in."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from vftrace.collect.clock import boottime_ns
from vftrace.events import COLLECTOR, Event, wire
from vftrace.model.host import HostInfo


@dataclass(slots=True)
class Batch:
    """Records in their order of arrival, and the event of each."""

    records: list[bytes] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[bytes]) -> Self:
        """Decode records."""
        kept = list(records)
        return cls(kept, wire.decode_all(kept))

    def add(self, record: bytes) -> Event:
        """Append one record; returns its event."""
        event = wire.decode(record)
        self.records.append(record)
        self.events.append(event)
        return event


class Source(Protocol):
    """Where records come from: `LiveSource`, `ReplaySource` or a `Session` around one."""

    @property
    def host(self) -> HostInfo:
        """The traced host."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""

    def now_ns(self) -> int:
        """The time on the clock of the events."""

    def read(self) -> Batch:
        """Wait a moment, then return what came."""

    def close(self) -> Batch:
        """End; returns the last records."""


class Intake:
    """What a live source gathers between two reads: records of the kernel side and the collector's own."""

    def __init__(self) -> None:
        self._batch = Batch()
        self._seq = 0

    def take_in(self, record: bytes) -> Event:
        """Append a record of the kernel side; returns its event."""
        return self._batch.add(wire.shortened(record))

    def write(self, event_type: type[Event], /, **fields: Any) -> None:
        """Append a record of the collector's own, of now."""
        event = event_type(boottime_ns(), self._seq, COLLECTOR, os.getpid(), **fields)
        self._seq += 1
        self._batch.records.append(wire.encode(event))
        self._batch.events.append(event)

    def drain(self) -> Batch:
        """Return what came since the last call."""
        batch, self._batch = self._batch, Batch()
        return batch
