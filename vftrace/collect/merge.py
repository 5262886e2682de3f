"""Several recordings: those of one boot share a clock and are read as one, whatever order they came in."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import structs

from vftrace import events
from vftrace.analysis.devices.vf_history import MAX_RECENT, Mailboxes
from vftrace.analysis.hosts.waiting import WaitingVms
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.errors import VftraceError
from vftrace.events import COLLECTOR, Event
from vftrace.mailbox.driver import Drivers
from vftrace.mailbox.profile import ProfileError, drivers_of
from vftrace.model.report import HostReport, PingRecording, Report

_PING = (events.PingSettings, events.PingGap, events.PingSummary)


def load(paths: Iterable[Path], profiles: Sequence[str] = (), recent: int = MAX_RECENT) -> Report:
    """Read recordings of one or several hosts, pings among them; hosts come in the order of the files.

    `profiles`: texts of mailbox profiles, beside those in the recordings. `recent` is that of `Mailboxes`.

    Raises VftraceError where a file cannot be read or is no recording.
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
    """Read the recordings of one boot: those of the whole host as one, each that was kept for one migration by
    itself, since it has parts of others."""

    def new() -> Reader:
        return Reader(Mailboxes(drivers, recent))

    if len(recordings) == 1:
        reader = new()
        reader.read(events_of(recordings[0]))
        yield reader
        return
    streams = [list(events_of(recording)) for recording in recordings]
    kept = [stream for stream in streams if _is_kept(stream)]
    for stream in kept:
        reader = new()
        reader.read(stream)
        yield reader
    others = [stream for stream in streams if not _is_kept(stream)]
    if others:
        reader = new()
        reader.read(merge([stream for stream in others if not _is_ping(stream)]))
        for stream in others:
            if _is_ping(stream):
                reader.note(stream)
        yield reader


def _drivers(recordings: Iterable[Recording], profiles: Sequence[str]) -> Drivers:
    try:
        return drivers_of([text for r in recordings for text in r.host.profiles], profiles)
    except ProfileError as error:
        raise VftraceError(f"the recordings' profiles: {error}") from error


class Reader:
    """Feeds a tracker with one boot's events and keeps what only joining needs.

    `pings` and `clocks` go by the pid of who wrote them.
    """

    def __init__(self, mailboxes: Mailboxes | None = None) -> None:
        self.tracker = Tracker(mailboxes=mailboxes or Mailboxes())
        self.waiting = WaitingVms()
        self.pings: dict[int, list[Event]] = {}
        self.clocks: dict[int, list[tuple[int, int, int]]] = {}

    def read(self, stream: Iterable[Event]) -> None:
        """Everything of this boot, in order of time."""
        for event in stream:
            self.tracker.feed(event)
            self._keep(event)
        self.tracker.finish()

    def note(self, stream: Iterable[Event]) -> None:
        """A ping's own recording: nothing of it concerns the tracker."""
        for event in stream:
            self._keep(event)

    def _keep(self, event: Event) -> None:
        self.waiting.feed(event)
        match event:
            case events.ClockSample():
                sample = (event.at_ns, event.realtime_offset_ns, event.error_ns)
                self.clocks.setdefault(event.tid, []).append(sample)
            case events.PingSettings() | events.PingGap() | events.PingSummary():
                self.pings.setdefault(event.tid, []).append(event)
            case _:
                pass
        if event.tid in self.pings:
            self.clocks.setdefault(event.tid, [])


def merge(streams: list[list[Event]]) -> Iterator[Event]:
    """The recordings of one boot as one, in order of time.

    A process that two of them saw at the same time is taken from the one that has more of it; one that they
    saw after each other from both, with a hole between. The collectors' own records are numbered anew.
    """
    tasks = [_Task(stream) for stream in streams]
    chosen: dict[int, list[_Task]] = {}
    for pid in sorted({pid for task in tasks for pid in task.spans}):
        chosen[pid] = _choose(pid, [task for task in tasks if pid in task.spans])
    lost: dict[int, int] = {}
    own = 0
    parts = [
        [(e.at_ns, index, e) for e in _of_chosen(task, chosen)] for index, task in enumerate(tasks)
    ]
    for _, index, event in heapq.merge(*parts, key=lambda item: item[:2]):
        if event.tgid != COLLECTOR:
            yield event
            continue
        own += tasks[index].holes_before(event)
        if isinstance(event, events.Lost):
            lost[index] = event.count
            event = structs.replace(event, count=sum(lost.values()))
        yield structs.replace(event, seq=own)
        own += 1


class _Task:
    """One recording: for each process when it was seen, and how its numbers are shifted."""

    def __init__(self, stream: list[Event]) -> None:
        self.events = stream
        self.spans: dict[int, tuple[int, int, int]] = {}
        self.exits: set[int] = set()
        self.shift: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._missing: dict[int, int] = {}
        self._said = 0
        own = missing = 0
        for event in stream:
            if event.tgid == COLLECTOR:
                missing += max(0, event.seq - own)
                own = max(own, event.seq + 1)
                self._missing[event.seq] = missing
                continue
            first, _, count = self.spans.get(event.tgid, (event.at_ns, 0, 0))
            self.spans[event.tgid] = (first, event.at_ns, count + 1)
            self.last[event.tgid] = max(event.seq, self.last.get(event.tgid, 0))
            if isinstance(event, events.Exit):
                self.exits.add(event.tgid)

    def holes_before(self, event: Event) -> int:
        """How many of the collector's own records are missing before this one."""
        missing = self._missing[event.seq] - self._said
        self._said += missing
        return missing


def _choose(pid: int, tasks: list[_Task]) -> list[_Task]:
    """The recordings a process is taken from, in order of time."""
    kept: list[_Task] = []
    for task in sorted(tasks, key=lambda t: -t.spans[pid][2]):
        first, last, _ = task.spans[pid]
        if all(last < k.spans[pid][0] or k.spans[pid][1] < first for k in kept):
            kept.append(task)
    kept.sort(key=lambda task: task.spans[pid][0])
    number = 0
    for task in kept:
        task.shift[pid] = number
        # A pid whose process has ended begins again; else what came between is missing.
        number = 0 if pid in task.exits else number + task.last[pid] + 2
    return kept


def _of_chosen(task: _Task, chosen: dict[int, list[_Task]]) -> Iterator[Event]:
    for event in task.events:
        if event.tgid != COLLECTOR:
            if task in chosen[event.tgid]:
                yield structs.replace(event, seq=event.seq + task.shift[event.tgid])
        elif isinstance(event, (events.Process, events.FileDescriptor, events.Gone)):
            if event.pid not in chosen or task in chosen[event.pid]:
                yield event
        elif isinstance(event, events.End):
            # What another recording saw is not in this one's list, which would read as a loss.
            continue
        else:
            yield event


def _is_kept(stream: list[Event]) -> bool:
    return any(isinstance(event, events.RecordedMigration) for event in stream[:16])


def _is_ping(stream: list[Event]) -> bool:
    return any(isinstance(event, _PING) for event in stream[:16])
