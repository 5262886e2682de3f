# SPDX-License-Identifier: MIT
"""Keeps the records before a migration, so that its recording begins with the identities and the state of the VMs.

All records of the last seconds are kept as they arrived (`Stream.ring`). Older records are kept if they still matter:
the VM, its vCPUs and memory slots, its devices, the bytes that its channels had sent, when it last ran and stopped. A
VM that has run for days costs a few kilobytes. Forgotten records leave no hole in the numbers of the records, because
the numbers are made anew; lost records do.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from msgspec.structs import astuple

from vftrace import events
from vftrace.analysis.sequence import SequenceTracker
from vftrace.events import Event, wire
from vftrace.uapi import KVM_MEM_LOG_DIRTY_PAGES

BEFORE_NS = 10_000_000_000
"""A destination's device may get its state this long before its source logs (analysis/pairing.py, SETUP_NS)."""
MAX_BEFORE_NS = 60_000_000_000
"""How long a thread that reads dirty logs may take to send: a dirty limit reads them for ever."""
STREAM_BYTES = 4 << 20
"""How many records of the last seconds are kept of one process; the oldest beyond that are forgotten."""
MAX_CHANNELS = 1024
MAX_DEVICE_REQUESTS = 256
MAX_VF_RECORDS = 32
MAX_VFS = 1024
MAX_OWN = 1024
"""How many of the collector's records about one process are kept: each fd and each device has one."""
MAX_OWN_LATELY = 16_384
"""How many of a process's call records are kept: each call in a blackout has one."""
_MAX_LOG = 64

_DEVICE_STATE = (
    events.VfioState,
    events.VfioReset,
    events.VfioDirtyTracking,
    events.VfioData,
)


_WHO_IS_WHO = (
    events.Process,
    events.FileDescriptor,
    events.Device,
    events.Gone,
    events.Uncounted,
    events.VmLost,
    events.CallsTraced,
    events.CallThread,
    events.CallFd,
    events.CallsMissed,
)
_PIECES = frozenset(c for c in wire.CLASSES.values() if "call_ns" in c.__struct_fields__)
"""Types of the parts of a bitmap, which come before the record of their call."""


class Entry(NamedTuple):
    """A kept record. `event` is None for a part of a bitmap, to save memory; `call` is the thread and time of the call
    that it belongs to. Not `counted`: its number belongs to another series (events.BitmapPart)."""

    at_ns: int
    seq: int
    record: bytes
    event: Event | None
    call: tuple[int, int] | None = None
    counted: bool = True


class Numbered(NamedTuple):
    """A kept record with the number that it gets in a recording."""

    at_ns: int
    seq: int
    record: bytes


class Stream:
    """The numbered records of one process, or of none, and those that are kept."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.uuid: str | None = None
        self.identity: events.Process | None = None
        self.ended_ns: int | None = None
        self.ring: deque[Entry] = deque()
        self.ring_bytes = 0
        self.own: dict[Hashable, Event] = {}
        """The collector's records about the process: the latest of each kind."""
        self.own_lately: deque[Event] = deque(maxlen=MAX_OWN_LATELY)
        """The collector's other recent records about the process."""
        self.last_seq = -1
        self.forgotten_until_ns = 0
        """The time since which every record is still in `ring`."""
        self.files: list[Any] = []
        """The recordings to which its records are written (flight.py)."""
        self.files_begun: deque[int] = deque()
        """When recent recordings of its migrations began (flight.py limits them)."""
        self._kept: dict[Hashable, Entry] = {}
        self._channels: dict[int, tuple[Entry | None, Entry]] = {}
        """For each fd: the latest totals, and those of the thread that sent before."""
        self._devices: deque[Entry] = deque(maxlen=MAX_DEVICE_REQUESTS)
        self._logs: dict[int, list[Entry]] = {}
        """For each logged slot: its last GET_DIRTY_LOG with its pieces, and the clears since."""
        self._pieces: dict[tuple[int, int], list[Entry]] = {}
        self._vfs: dict[tuple[str, int], deque[Entry]] = {}
        self._through = -1
        """The largest number that is no longer in `ring`."""
        self._numbers = SequenceTracker()
        self._lost_at: int | None = None
        """The number after a loss, if a record that is no longer in `ring` is missing."""

    def add(self, record: bytes, event: Event) -> None:
        """Keep a record."""
        if type(event) in _PIECES:
            call = event.tid, event.call_ns  # type: ignore[attr-defined]
            counted = type(event) is not events.BitmapPart
            self.ring.append(Entry(event.at_ns, event.seq, record, None, call, counted))
        else:
            self.ring.append(Entry(event.at_ns, event.seq, record, event))
        self.ring_bytes += len(record)
        if event.seq > self.last_seq and self.ring[-1].counted:
            self.last_seq = event.seq
        while self.ring_bytes > STREAM_BYTES:
            self._forget()

    def identify(self, event: Event) -> None:
        """Keep a record of the collector about the process."""
        if not isinstance(event, _WHO_IS_WHO):
            self.own_lately.append(event)
            return
        if isinstance(event, events.Process):
            self.identity, self.uuid = event, event.uuid
        key = _own_key(event)
        self.own.pop(key, None)
        self.own[key] = event
        if len(self.own) > MAX_OWN:
            del self.own[next(k for k, e in self.own.items() if e is not self.identity)]

    def forget_until(self, at_ns: int) -> None:
        """Forget records older than this, except those that still matter."""
        while self.own_lately and self.own_lately[0].at_ns < at_ns:
            self.own_lately.popleft()
        ring = self.ring
        while ring and ring[0].at_ns < at_ns:
            self._forget()

    def forget_half(self) -> None:
        """Forget the older half of the last seconds, to save memory."""
        most = self.ring_bytes // 2
        while self.ring_bytes > most:
            self._forget()

    def remembered(self) -> tuple[list[Numbered], int]:
        """Return all kept records with new numbers, and by how much the numbers of later records must be lowered."""
        everything = [*self._condensed(), *self.ring]
        found = [Numbered(e.at_ns, e.seq, e.record) for e in everything if not e.counted]
        entries = sorted((e for e in everything if e.counted), key=lambda entry: entry.seq)
        number, before = -1, self._through
        lost_at = self._lost_at
        for entry in entries:
            step = 1
            if entry.seq > self._through:
                step = entry.seq - before
                before = entry.seq
            if lost_at is not None and (entry.seq >= lost_at or entry.seq > self._through):
                step, lost_at = step + 1, None
            number += step
            found.append(Numbered(entry.at_ns, number, entry.record))
        if lost_at is not None:
            number += 1
        return found, before - number

    def _condensed(self) -> Iterator[Entry]:
        yield from self._kept.values()
        for before, latest in self._channels.values():
            if before is not None:
                yield before
            yield latest
        yield from self._devices
        for log in self._logs.values():
            yield from log
        for records in self._vfs.values():
            yield from records

    def _forget(self) -> None:
        """Take the oldest record out of `ring`."""
        entry = self.ring.popleft()
        self.ring_bytes -= len(entry.record)
        if entry.counted:
            self._pass(entry)
        self.forgotten_until_ns = max(self.forgotten_until_ns, entry.at_ns)
        if entry.event is None:
            if entry.call is not None:
                pieces = self._pieces.setdefault(entry.call, [])
                if len(pieces) < _MAX_LOG:
                    pieces.append(entry)
            return
        kind = type(entry.event)
        if kind in _LATEST:
            self._kept[_LATEST[kind](entry.event)] = entry
        elif kind in _CONDENSED:
            _CONDENSED[kind](self, entry, entry.event)

    def _pass(self, entry: Entry) -> None:
        """Check the number of a record that is removed from `ring`."""
        if self._numbers.skips_to(entry.seq):
            self._lost_at = entry.seq
        self._numbers.accept(entry.seq)
        if not self._numbers.holes and self._lost_at is not None and self._lost_at <= entry.seq:
            self._lost_at = None  # the record had arrived late
        self._through = max(self._through, entry.seq)

    # -- which old records still matter ----------------------------------------------------------

    def _thread_exit(self, _: Entry, event: events.ThreadExit) -> None:
        self._kept.pop(("vcpu", event.tid), None)
        self._kept.pop(("run", event.tid), None)

    def _region(self, entry: Entry, event: events.Region) -> None:
        if event.ret != 0:
            return
        if not event.flags & KVM_MEM_LOG_DIRTY_PAGES or event.size == 0:
            self._logs.pop(event.slot, None)
        if event.size == 0:
            self._kept.pop(("slot", event.slot), None)
        else:
            self._kept["slot", event.slot] = entry

    def _capability(self, entry: Entry, event: events.Capability) -> None:
        if event.ret == 0:
            self._kept["cap", event.cap] = entry

    def _run(self, entry: Entry, event: events.Run) -> None:
        self._kept.setdefault("first run", entry)
        self._kept["run", event.tid] = entry

    def _clock(self, entry: Entry, event: events.Clock) -> None:
        if event.op == events.Clock.GET and event.last_exit_ns:
            self._kept["stop"] = entry

    def _channel(self, entry: Entry, event: events.Channel) -> None:
        """Keep the latest totals, and those of the thread that sent before: a migration's bytes count from there."""
        before, latest = self._channels.pop(event.fd, (None, None))
        if latest is not None and isinstance(latest.event, events.Channel):
            if latest.event.first_ns != event.first_ns:
                before = None
            elif latest.event.sender_tid != event.sender_tid:
                before = latest
        self._channels[event.fd] = before, entry
        if len(self._channels) > MAX_CHANNELS:
            del self._channels[next(iter(self._channels))]

    def _get_dirty_log(self, entry: Entry, event: events.GetDirtyLog) -> None:
        pieces = self._pieces_of(event.tid, event.enter_ns)
        slot = self._kept.get(("slot", event.slot))
        region = slot.event if slot is not None else None
        logged = isinstance(region, events.Region) and region.flags & KVM_MEM_LOG_DIRTY_PAGES
        if logged and event.ret == 0:
            self._logs[event.slot] = [*pieces, entry]

    def _clear_dirty_log(self, entry: Entry, event: events.ClearDirtyLog) -> None:
        pieces = self._pieces_of(event.tid, event.enter_ns)
        log = self._logs.get(event.slot)
        if log is not None and event.ret >= 0:
            log += [*pieces, entry]
            if len(log) > 2 * _MAX_LOG:
                del self._logs[event.slot]

    def _pieces_of(self, tid: int, call_ns: int) -> list[Entry]:
        found = self._pieces.pop((tid, call_ns), [])
        for key in [key for key in self._pieces if key[0] == tid and key[1] < call_ns]:
            del self._pieces[key]
        return found

    def _device_state(self, entry: Entry, _: Event) -> None:
        self._devices.append(entry)

    def _device_closed(self, entry: Entry, event: events.VfioClose) -> None:
        """Keep the close of a device: it may have been unplugged for a migration that begins a minute later."""
        mine = [
            key
            for key in self._kept
            if isinstance(key, tuple) and key[0] in ("open", "can", "size") and key[1] == event.fd
        ]
        for key in mine:
            self._devices.append(self._kept.pop(key))
        self._devices.append(entry)

    def _mailbox(
        self, entry: Entry, event: events.Mailbox | events.Virtchnl | events.VfReset
    ) -> None:
        key = event.pf, event.vf
        if key not in self._vfs and len(self._vfs) >= MAX_VFS:
            del self._vfs[next(iter(self._vfs))]
        self._vfs.setdefault(key, deque(maxlen=MAX_VF_RECORDS)).append(entry)


def _own_key(event: Event) -> Hashable:
    """Return the key of a collector's record about a process; a later record with the same key replaces it."""
    match event:
        case events.Process() | events.Uncounted() | events.VmLost() | events.CallsMissed():
            return type(event)
        case events.CallsTraced():
            return type(event), event.on, event.attach_ns > 0
        case events.CallThread():
            return type(event), event.thread
        case events.FileDescriptor() | events.CallFd():
            return type(event), event.fd
        case events.Device():
            # The record of a closed fd still matters: the device may have been unplugged for a migration.
            return type(event), event.fd, event.address
        case _:
            return type(event), *astuple(event)[len(Event.__struct_fields__) :]


_LATEST: dict[type[Event], Callable[[Any], Hashable]] = {
    events.VmCreated: lambda _: "vm",
    events.VcpuCreated: lambda event: ("vcpu", event.tid),
    events.VcpuState: lambda _: "state",
    events.Exit: lambda _: "exit",
    # Without its pieces it counts as incomplete, and the totals of the next one begin at its totals.
    events.ResetDirtyRings: lambda _: "rings",
    events.VfioOpen: lambda event: ("open", event.fd, event.how),
    events.VfioMigration: lambda event: ("can", event.fd),
    events.VfioDataSize: lambda event: ("size", event.fd),
}
"""Types of old records of which only the latest is kept, with the key of which it is the latest."""

_CONDENSED: dict[type[Event], Callable[[Stream, Entry, Any], None]] = {
    events.ThreadExit: Stream._thread_exit,
    events.Region: Stream._region,
    events.Capability: Stream._capability,
    events.Run: Stream._run,
    events.Clock: Stream._clock,
    events.Channel: Stream._channel,
    events.GetDirtyLog: Stream._get_dirty_log,
    events.ClearDirtyLog: Stream._clear_dirty_log,
    events.VfioClose: Stream._device_closed,
    **dict.fromkeys(_DEVICE_STATE, Stream._device_state),
    events.Mailbox: Stream._mailbox,
    events.Virtchnl: Stream._mailbox,
    events.VfReset: Stream._mailbox,
}
"""The functions that keep old records, by the event's type; records of other types are forgotten."""
