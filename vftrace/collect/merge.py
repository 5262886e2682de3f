# SPDX-License-Identifier: MIT
"""Reads several recordings: those of one boot share a clock and are read as one, in any order of the files."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import structs

from vftrace import events
from vftrace.analysis.devices.vf_history import MAX_RECENT, Mailboxes
from vftrace.analysis.hosts.waiting import WaitingVms
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import STANDARD, Recording
from vftrace.collect.replay import events_of
from vftrace.errors import VftraceError
from vftrace.events import COLLECTOR, Event, wire
from vftrace.events.layout import Kind
from vftrace.mailbox.driver import Drivers
from vftrace.mailbox.profile import ProfileError, drivers_of
from vftrace.model.report import HostReport, PingRecording, Report

_PING = frozenset(
    event.KIND
    for event in (
        events.PingSettings,
        events.PingGap,
        events.PingSummary,
        events.PingRoundTrips,
    )
)
_FIRST = 16
"""The records at the beginning of a recording among which is the one that names its migration."""


def load(paths: Iterable[Path], profiles: Sequence[str] = (), recent: int = MAX_RECENT) -> Report:
    """Read recordings of one or several hosts, pings among them; hosts come in the order of the files.

    `profiles`: texts of mailbox profiles, beside those in the recordings. `recent` is that of `Mailboxes`.

    Raises VftraceError if a file cannot be read or is not a recording.
    """
    by_boot: dict[str, list[Recording]] = {}
    for path in paths:
        recording = Recording(path)
        by_boot.setdefault(recording.host.boot_id, []).append(recording)
    hosts, pings = [], []
    for boot_id, recordings in by_boot.items():
        drivers = _drivers(recordings, profiles)
        # The one that traced names the probes; a ping has none.
        host = max((r.host for r in recordings), key=lambda host: len(host.probes))
        for reader in _readers(recordings, drivers, recent):
            waiting = reader.waiting
            snapshot = reader.tracker.snapshot()
            hosts.append(HostReport(host, snapshot, waiting.ready_at_ns, waiting.found()))
            pings += [
                PingRecording(boot_id, tuple(reader.clocks[tid]), tuple(found))
                for tid, found in reader.pings.items()
            ]
    damage = tuple(
        f"{recording.path}: {why}"
        for recordings in by_boot.values()
        for recording in recordings
        if (why := recording.not_whole) is not None
    )
    return Report.of_hosts(hosts, pings, damage)


def _readers(recordings: list[Recording], drivers: Drivers, recent: int) -> "Iterator[Reader]":
    """Read the recordings of one boot: those of the whole host as one; each one that was kept for one migration by
    itself, because it has parts of other migrations."""

    def new() -> Reader:
        return Reader(Mailboxes(drivers, recent))

    if len(recordings) == 1:
        reader = new()
        reader.read(events_of(recordings[0]))
        yield reader
        return
    streams = [_Stream(recording) for recording in recordings]
    others = []
    for stream in streams:
        if stream.is_kept:
            reader = new()
            reader.read(stream)
            yield reader
        else:
            others.append(stream)
    if others:
        reader = new()
        reader.read(merge([stream for stream in others if not stream.is_ping]))
        for stream in others:
            if stream.is_ping:
                reader.note(stream)
        yield reader


def _drivers(recordings: Iterable[Recording], profiles: Sequence[str]) -> Drivers:
    try:
        return drivers_of([text for r in recordings for text in r.host.profiles], profiles)
    except ProfileError as error:
        raise VftraceError(f"the recordings' profiles: {error}") from error


class Reader:
    """Feeds a tracker with one boot's events and keeps the data that only joining needs.

    The keys of `pings` and `clocks` are the pids of the processes that wrote them.
    """

    def __init__(self, mailboxes: Mailboxes | None = None) -> None:
        self.tracker = Tracker(mailboxes)
        self.waiting = WaitingVms()
        self.pings: dict[int, list[Event]] = {}
        self.clocks: dict[int, list[tuple[int, int, int]]] = {}

    def read(self, stream: Iterable[Event]) -> None:
        """Read all events of this boot, in order of time."""
        for event in stream:
            self.tracker.feed(event)
            self._keep(event)
        self.tracker.finish()

    def note(self, stream: Iterable[Event]) -> None:
        """Note a ping's own recording, which the tracker does not need."""
        for event in stream:
            self._keep(event)

    def _keep(self, event: Event) -> None:
        self.waiting.feed(event)
        match event:
            case events.ClockSample():
                sample = (event.at_ns, event.realtime_offset_ns, event.error_ns)
                self.clocks.setdefault(event.tid, []).append(sample)
            case (
                events.PingSettings()
                | events.PingGap()
                | events.PingSummary()
                | events.PingRoundTrips()
            ):
                self.pings.setdefault(event.tid, []).append(event)
            case _:
                pass
        if event.tid in self.pings:
            self.clocks.setdefault(event.tid, [])


class _Stream:
    """The events of a recording in order of time. Each iteration reads the file again, so that only a part of it is in
    memory. An input that can be read only once, such as a pipe, is kept in memory as its records.

    For each process `spans` has the time in which it was seen and the number of its records.
    """

    def __init__(self, recording: Recording) -> None:
        """Read all of it once."""
        self._path = recording.path
        self._held: list[list[bytes]] | None = None
        batches: Iterable[list[bytes]] = recording.batches()
        if recording.path == STANDARD or not recording.path.is_file():
            batches = self._held = list(batches)
        self.spans: dict[int, tuple[int, int, int]] = {}
        self.last: dict[int, int] = {}
        self.exits: set[int] = set()
        self.shift: dict[int, int] = {}
        first: list[int] = []
        for batch in batches:
            first += (wire.kind_of(record) for record in batch[: _FIRST - len(first)])
            self._look(batch)
        self.is_kept = events.RecordedMigration.KIND in first
        self.is_ping = not _PING.isdisjoint(first)

    def __iter__(self) -> Iterator[Event]:
        if self._held is not None:
            return events_of(record for batch in self._held for record in batch)
        return events_of(Recording(self._path))

    def _look(self, batch: list[bytes]) -> None:
        for record in batch:
            at_ns, seq, _, kind, _, tgid, _ = wire.HEADER.unpack_from(record)
            if tgid == COLLECTOR:
                continue
            first, last, count = self.spans.get(tgid, (at_ns, at_ns, 0))
            self.spans[tgid] = min(first, at_ns), max(last, at_ns), count + 1
            if kind != Kind.BITMAP:
                self.last[tgid] = max(seq, self.last.get(tgid, 0))
            if kind == events.Exit.KIND:
                self.exits.add(tgid)


def merge(streams: list[_Stream]) -> Iterator[Event]:
    """Merge the recordings of one boot into one sequence, in order of time.

    A process that two recordings saw at the same time is taken from the one with more records of it. A process that
    they saw one after the other is taken from both, with a hole between. The collectors' records get new numbers.
    """
    chosen: dict[int, list[_Stream]] = {}
    for pid in sorted({pid for stream in streams for pid in stream.spans}):
        chosen[pid] = _choose(pid, [stream for stream in streams if pid in stream.spans])
    lost: dict[int, int] = {}
    own = 0
    parts = [_of_chosen(stream, chosen, index) for index, stream in enumerate(streams)]
    for _, index, holes, event in heapq.merge(*parts, key=lambda item: item[:2]):
        if event.tgid != COLLECTOR:
            yield event
            continue
        own += holes
        if isinstance(event, events.Lost):
            lost[index] = event.count
            event = structs.replace(event, count=sum(lost.values()))
        yield structs.replace(event, seq=own)
        own += 1


def _choose(pid: int, streams: list[_Stream]) -> list[_Stream]:
    """Return the recordings from which a process is taken, in order of time."""
    kept: list[_Stream] = []
    for stream in sorted(streams, key=lambda s: -s.spans[pid][2]):
        first, last, _ = stream.spans[pid]
        if all(last < k.spans[pid][0] or k.spans[pid][1] < first for k in kept):
            kept.append(stream)
    kept.sort(key=lambda stream: stream.spans[pid][0])
    number = 0
    for stream in kept:
        stream.shift[pid] = number
        # A pid whose process has ended begins again; otherwise the records in between are missing.
        number = 0 if pid in stream.exits else number + stream.last.get(pid, -1) + 2
    return kept


def _of_chosen(
    stream: _Stream, chosen: dict[int, list[_Stream]], index: int
) -> Iterator[tuple[int, int, int, Event]]:
    """Yield the events taken from a recording: time, `index`, the number of the collector's records that are missing
    before one of its own, and the event."""
    next_own = holes = 0
    for event in stream:
        if event.tgid != COLLECTOR:
            # Records that another recorder has written since the first read belong to no process here.
            if stream in chosen.get(event.tgid, ()):
                shifted = structs.replace(event, seq=event.seq + stream.shift[event.tgid])
                yield event.at_ns, index, 0, shifted
            continue
        holes += max(0, event.seq - next_own)
        next_own = max(next_own, event.seq + 1)
        if isinstance(event, (events.Process, events.FileDescriptor, events.Gone)):
            if event.pid in chosen and stream not in chosen[event.pid]:
                continue
        elif isinstance(event, events.End):
            # This list lacks the processes of another recording, which would look like a loss.
            continue
        yield event.at_ns, index, holes, event
        holes = 0
