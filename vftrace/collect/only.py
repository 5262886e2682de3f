# SPDX-License-Identifier: MIT
"""Selects the records of some VMs from a live trace, for a recording of these VMs only."""

from collections.abc import Sequence

from msgspec import structs

from vftrace import events
from vftrace.collect.batch import Batch
from vftrace.events import COLLECTOR, NO_PROCESS, Event, wire
from vftrace.model.select import names_vm

_MAX_WAITING = 65_536
"""How many records may wait until their processes are named; a host has fewer."""


class OnlyVms:
    """Drops the records of all processes but those of the wanted VMs.

    Records of the host are kept: time, clocks, losses, interfaces, mailboxes. A VM that starts later is included
    as soon as the collector has named its process; earlier records of the kernel side wait for that. The
    collector's own records get new numbers, so that dropped records do not look like lost ones.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = tuple(wanted)
        self._is_wanted: dict[int, bool] = {}
        self._waiting: dict[int, list[tuple[bytes, Event]]] = {}
        self._number_waiting = 0
        self._seq = 0
        self.found: set[str] = set()
        """The wanted words that have matched a process."""

    def keep(self, batch: Batch) -> Batch:
        """Return the records of a batch that are kept, in their order."""
        kept: list[tuple[bytes, Event]] = []
        for record, event in zip(batch.records, batch.events, strict=True):
            if event.tgid == COLLECTOR:
                if isinstance(event, events.Process):
                    self._meet(event)
                    kept += self._release(event.pid)
                if self._concerns(event):
                    kept.append(self._numbered(record, event))
                continue
            if isinstance(event, events.VmCreated):
                # The pid may belong to another process now. The collector names it whenever it makes a VM.
                self._is_wanted.pop(event.tgid, None)
            if event.tgid == NO_PROCESS or self._is_wanted.get(event.tgid):
                kept.append((record, event))
            elif event.tgid not in self._is_wanted:
                self._wait(record, event)
        return Batch([record for record, _ in kept], [event for _, event in kept])

    def _meet(self, event: events.Process) -> None:
        mine = [w for w in self._wanted if names_vm([w], event.name, event.uuid, [str(event.pid)])]
        self.found.update(mine)
        self._is_wanted[event.pid] = bool(mine)

    def _wait(self, record: bytes, event: Event) -> None:
        if self._number_waiting >= _MAX_WAITING:
            # Drop the oldest: the collector has not named their processes and will not.
            self._number_waiting -= len(self._waiting.pop(next(iter(self._waiting))))
        self._waiting.setdefault(event.tgid, []).append((record, event))
        self._number_waiting += 1

    def _release(self, pid: int) -> list[tuple[bytes, Event]]:
        waiting = self._waiting.pop(pid, [])
        self._number_waiting -= len(waiting)
        return waiting if self._is_wanted[pid] else []

    def _concerns(self, event: Event) -> bool:
        """Whether a record of the collector is about a wanted process, by its `pid`, or about no process."""
        pid: int | None = getattr(event, "pid", None)
        return True if pid is None else self._is_wanted.get(pid, False)

    def _numbered(self, record: bytes, event: Event) -> tuple[bytes, Event]:
        seq, self._seq = self._seq, self._seq + 1
        if isinstance(event, events.End):
            # A process without any record here would look like one whose records were lost.
            streams = {
                pid: number
                for pid, number in event.streams.items()
                if pid == NO_PROCESS or self._is_wanted.get(pid)
            }
            event = structs.replace(event, seq=seq, streams=streams)
            return wire.encode(event), event
        return wire.with_seq(record, seq), structs.replace(event, seq=seq)

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the wanted words that have matched no process so far."""
        return tuple(word for word in self._wanted if word not in self.found)
