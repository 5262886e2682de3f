# SPDX-License-Identifier: MIT
"""The flight recorder: each migration of this host becomes one recording, with the time before and after it.

It gets every batch of records that the pump has taken, and asks the tracker what migrates. A recording holds the
records of the processes that may take part in its migration (its source, its destination, and processes with the same
UUID), and those of the host: ticks, clock, losses, network, mailboxes. Records get new numbers, so that records of
other processes leave no hole, and lost records still do.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from hashlib import blake2s
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from vftrace import events
from vftrace.analysis.clock_samples import ClockSamples
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.analysis.tracker import Tracker, Unsettled
from vftrace.archive import index
from vftrace.archive.before import BEFORE_NS, MAX_BEFORE_NS, Stream
from vftrace.archive.names import RUNNING, FileName, safe_vm
from vftrace.archive.retention import Limits
from vftrace.archive.writer import Handle, Writer
from vftrace.collect.batch import Batch
from vftrace.collect.recording import frames_of, head_of
from vftrace.events import COLLECTOR, NO_PROCESS, Event, wire
from vftrace.events.layout import Kind
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration, Outcome, Role, Snapshot
from vftrace.model.recorder import RecorderState
from vftrace.model.report import HostReport, MigrationReport
from vftrace.model.select import names_vm

AFTER_NS = 10_000_000_000
"""How long a recording continues after its migration, for the destination's devices and for changes of the outcome."""
AFTER_UNPLUG_NS = 65_000_000_000
"""The same if a device left the VM and no other has replaced it (analysis/devices/strategy.py, UNPLUG_WINDOW_NS)."""
FLUSH_NS = 100_000_000
LOOK_NS = 250_000_000
LOOK_AGAIN_NS = 5_000_000_000
"""How often a migration is built to see whether it has ended: where something ended, and else. A log line a second
after its end names the file by its outcome."""
STOP_S = 5.0
MAX_OPEN = 256
"""The most recordings that are written at once; each is an open file."""
MAX_PROCESSES = 32
"""The most processes in one recording: further processes with a VM's UUID are left out."""
MAX_WITHOUT_UUID = 16
MAX_FILES, FILES_NS = 30, 60_000_000_000
"""The most recordings that one process may begin within this time: a hostile one begins a thousand migrations per
second."""
MAX_ENDED = 256
MAX_KNOWN = 4096
TOTAL_BYTES = 64 << 20
"""The most kept records of all processes; beyond that, records of the process that sends most are forgotten first."""

_Part = OutgoingMigration | IncomingMigration


class _File(msgspec.Struct, eq=False):
    """A recording that is being written."""

    part: _Part
    process: Process
    handle: Handle
    host: HostInfo
    shift: dict[int, int] = msgspec.field(default_factory=dict)
    """For each process (or none): by how much the numbers of its records are lowered."""
    streams: dict[int, Stream] = msgspec.field(default_factory=dict)
    own: int = 0
    base: dict[Any, int] = msgspec.field(default_factory=dict)
    """The host's counters of losses when the recording began."""
    clock: ClockSamples = msgspec.field(default_factory=ClockSamples)
    waiting: list[bytes] = msgspec.field(default_factory=list)
    look_ns: int = 0
    build_ns: int = 0
    outcome: Outcome | None = None

    def add(self, stream: Stream, record: bytes, seq: int) -> None:
        """Add a record of a process, or of none."""
        # Parts of bitmaps have numbers of their own, which are not needed here.
        shift = 0 if wire.kind_of(record) == Kind.BITMAP else self.shift[stream.pid]
        self.waiting.append(wire.with_seq(record, seq - shift) if shift else record)

    def note(self, event: Event) -> None:
        """Add a record of the collector's own."""
        if isinstance(event, _COUNTERS):
            event = replace(event, count=event.count - self.base.get(_counter(event), 0))
        elif isinstance(event, events.ClockSample):
            self.clock.add(event)
        self.waiting.append(wire.encode(replace(event, seq=self.own)))
        self.own += 1


class FlightRecorder:
    """Keeps recordings in a directory. Only the pump's thread calls `take` and `finish`; any thread may read the
    state."""

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        say: Callable[[str], None],
        wanted: Collection[str] = (),
    ) -> None:
        """`say` gets one line about each kind of trouble; `wanted`: only migrations of these VMs (all if empty)."""
        self.directory = directory
        self._writer = Writer(directory, limits, say, self._index)
        self._wanted = wanted
        self._streams: dict[int, Stream] = {}
        self._ended: deque[Stream] = deque()
        self._unowned = Stream(NO_PROCESS)
        self._host_records: deque[Event] = deque()
        self._addresses: dict[tuple[str, int], events.VfAddress] = {}
        self._counters: dict[Any, int] = {}
        self._clock: events.ClockSample | None = None
        self._files: dict[int, _File] = {}
        """By id of the part."""
        self._over: dict[int, _Part] = {}
        """Parts whose recording is closed, or was not begun, until the tracker has settled them."""
        self._paths: dict[tuple[int, int], Handle] = {}
        self._last_numbers: dict[int, int] | None = None
        """For each process: the number of its records when tracing ended."""
        self._ring_bytes = 0
        self._flushed_ns = 0
        self._followed_ns = 0
        self._now_ns = 0
        self._writer.start()

    @property
    def state(self) -> RecorderState:
        """The state of the recorder: kept and lost recordings."""
        return self._writer.state

    def file_of(self, migration: Migration) -> Path | None:
        """Return the recording of a migration, by its present name; None without one."""
        handle = self._paths.get((migration.pid, migration.started_at_ns))
        if handle is None or handle.lost:
            return None
        return self.directory / str(handle.name)

    def take(self, batch: Batch, tracker: Tracker, host: HostInfo) -> None:
        """Take a batch that the pump has just read; the tracker may be some milliseconds behind."""
        ticked = False
        for record, event in zip(batch.records, batch.events, strict=True):
            tgid = event.tgid
            if tgid == COLLECTOR:
                self._take_own(event)
                ticked = ticked or type(event) is events.Tick
            elif tgid == NO_PROCESS:
                self._add(self._unowned, record, event)
            else:
                stream = self._stream(tgid, event.at_ns)
                self._add(stream, record, event)
                if type(event) is events.Exit:
                    self._end(stream, event.at_ns)
        if ticked:
            self._follow(tracker, host)
            self._forget(tracker)
        now = time.monotonic_ns()
        if now - self._flushed_ns >= FLUSH_NS:
            self._flushed_ns = now
            self._flush()

    def finish(self, tracker: Tracker, host: HostInfo) -> None:
        """End the input: close all recordings, and wait until they are written."""
        self._follow(tracker, host)
        parts = {id(part[1]): part for part in tracker.unsettled()}
        for key, file in list(self._files.items()):
            self._close(file, tracker.build(parts[key]) if key in parts else None)
        self._writer.stop(STOP_S)

    def _index(self, path: Path, row: index.Row | None) -> None:
        """Add a closed recording to the index; the writer's thread calls this."""
        problem = index.add(path, row)
        if problem is not None:
            self._writer.say_once(problem)

    # -- records --------------------------------------------------------------------------------

    def _stream(self, pid: int, at_ns: int) -> Stream:
        stream = self._streams.get(pid)
        if stream is None or (stream.ended_ns is not None and at_ns > stream.ended_ns):
            stream = self._streams[pid] = Stream(pid)
        return stream

    def _stream_of(self, process: Process) -> Stream:
        """Return the records of a process that the tracker knows; it may have ended since."""
        return self._streams.setdefault(process.pid, Stream(process.pid))

    def _add(self, stream: Stream, record: bytes, event: Event) -> None:
        before = stream.ring_bytes
        stream.add(record, event)
        self._ring_bytes += stream.ring_bytes - before
        if self._ring_bytes > TOTAL_BYTES:
            self._ring_bytes -= stream.ring_bytes
            stream.forget_half()
            self._ring_bytes += stream.ring_bytes
        for file in stream.files:
            file.add(stream, record, event.seq)

    def _take_own(self, event: Event) -> None:
        self._now_ns = max(self._now_ns, event.at_ns)
        if isinstance(event, events.End):
            self._last_numbers = event.streams
        if isinstance(event, (events.End, events.RecordedMigration)):
            return
        pid = None if isinstance(event, events.NetAddress) else getattr(event, "pid", None)
        if pid is not None:
            self._take_identity(pid, event)
            return
        match event:
            case (
                events.Lost()
                | events.NetMissed()
                | events.TableFull()
                | events.Untraced()
                | events.MissedRuns()
            ):
                self._counters[_counter(event)] = event.count
            case events.VfAddress():
                self._addresses[event.pf, event.vf] = event
            case events.ClockSample():
                self._clock = event
            case _:
                pass
        self._host_records.append(event)
        for file in self._files.values():
            file.note(event)

    def _take_identity(self, pid: int, event: Event) -> None:
        # Most records of the collector about a process may arrive after its end.
        stream = self._streams.get(pid)
        if stream is None or isinstance(event, events.Process):
            stream = self._stream(pid, event.at_ns)
        stream.identify(event)
        for file in self._files.values():
            if file in stream.files:
                file.note(event)
            elif isinstance(event, events.Process) and self._concerns(file, stream):
                self._include(file, stream)
        if isinstance(event, events.Gone):
            self._end(stream, event.at_ns)

    def _end(self, stream: Stream, at_ns: int) -> None:
        if stream.ended_ns is None:
            stream.ended_ns = at_ns
            self._ended.append(stream)

    def _forget(self, tracker: Tracker) -> None:
        """Forget records that no future recording needs."""
        latest = self._now_ns - BEFORE_NS
        while self._host_records and self._host_records[0].at_ns < latest:
            self._host_records.popleft()
        self._unowned.forget_until(latest)
        total = self._unowned.ring_bytes
        for pid, stream in self._streams.items():
            if stream.own_lately or (stream.ring and stream.ring[0].at_ns < latest):
                waits = tracker.waits_since_ns(pid)
                since = latest if waits is None else min(latest, waits)
                stream.forget_until(max(since, self._now_ns - MAX_BEFORE_NS))
            total += stream.ring_bytes
        self._ring_bytes = total
        while self._ended and (
            len(self._ended) > MAX_ENDED
            or (self._ended[0].ended_ns or 0) < self._now_ns - MAX_BEFORE_NS
        ):
            stream = self._ended.popleft()
            if self._streams.get(stream.pid) is stream:
                del self._streams[stream.pid]

    # -- migrations -----------------------------------------------------------------------------

    def _follow(self, tracker: Tracker, host: HostInfo) -> None:
        """Begin and close recordings as migrations begin and end."""
        parts = {id(part[1]): part for part in tracker.unsettled()}
        self._over = {key: part for key, part in self._over.items() if key in parts}
        paired = {id(pair.incoming) for _, _, pair in parts.values() if pair is not None}
        for key, file in list(self._files.items()):
            if key in paired:
                # Its source is on this host too, and the source's recording has all of this.
                self._leave(file)
                self._writer.discard(file.handle)
            elif key not in parts:
                self._close(file, None)
        for key, part in parts.items():
            if key not in self._files and key not in self._over:
                self._begin(part, host)
            begun = self._files.get(key)
            if begun is not None:
                if part[2] is not None:
                    self._include_process(begun, part[2].destination)
                self._look(begun, part, tracker)

    def _begin(self, part: Unsettled, host: HostInfo) -> None:
        process, attempt, pair = part
        if self._wanted and not _is_wanted(process, self._wanted):
            self._over[id(attempt)] = attempt
            return
        for other in list(self._files.values()):
            if other.process is process and other.outcome is not None:
                self._close(other, None)
        stream = self._stream_of(process)
        if not self._may_begin(stream):
            self._over[id(attempt)] = attempt
            return
        started = _began_ns(attempt)
        name = self._name(process, started, host)
        first = min([self._now_ns, *(event.at_ns for event in self._host_records)])
        head = head_of(replace(host, started_at_ns=first))
        file = _File(attempt, process, self._writer.create(name, head), host)
        file.build_ns = self._now_ns + LOOK_AGAIN_NS
        file.base = dict(self._counters)
        self._files[id(attempt)] = file
        self._know(process.pid, started, file)
        number = attempt.number if isinstance(attempt, OutgoingMigration) else 0
        mine = events.RecordedMigration(first, 0, COLLECTOR, 0, process.pid, started, number)
        peers = [] if pair is None else [self._stream_of(pair.destination)]
        self._fill(file, [stream, *peers], mine, lost=stream.forgotten_until_ns > started)

    def _may_begin(self, stream: Stream) -> bool:
        lately = stream.files_begun
        while lately and lately[0] < self._now_ns - FILES_NS:
            lately.popleft()
        if len(lately) >= MAX_FILES:
            self._writer.lose(
                f"one VM begins more than {MAX_FILES} migrations per minute: not all of them are recorded"
            )
            return False
        if len(self._files) >= MAX_OPEN:
            self._writer.lose(
                f"more than {MAX_OPEN} migrations run at once: not all of them are recorded"
            )
            return False
        lately.append(self._now_ns)
        return True

    def _name(self, process: Process, started_ns: int, host: HostInfo) -> FileName:
        offset = self._clock.realtime_offset_ns if self._clock is not None else None
        if offset is None:
            offset = time.time_ns() - self._now_ns
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            milliseconds=(started_ns + offset) // 1_000_000
        )
        identity = process.identity
        vm = safe_vm(identity.name if identity else None, process.uuid, process.pid)
        # If the recorder was restarted, one migration has two recordings, in two files.
        parts = (host.boot_id, process.pid, started_ns, host.started_at_ns)
        unique = blake2s(repr(parts).encode(), digest_size=4).hexdigest()
        return FileName(at, vm, RUNNING, unique)

    def _fill(
        self, file: _File, streams: Iterable[Stream], mine: events.RecordedMigration, *, lost: bool
    ) -> None:
        """Begin a recording with the kept records of the time before."""
        # A process that ended before took part in another migration.
        began = mine.started_at_ns
        there = [s for s in self._everyone() if s.ended_ns is None or s.ended_ns >= began]
        alike = [s for s in there if s.uuid is not None and s.uuid == file.process.uuid]
        if file.process.uuid is None:
            alike = [s for s in there if _waits_without_uuid(s)][-MAX_WITHOUT_UUID:]
        included = list(dict.fromkeys((*streams, *alike[-MAX_PROCESSES:])))
        found: list[tuple[int, bytes | Event]]
        found = [(event.at_ns, event) for event in self._addresses.values()]
        found += [(event.at_ns, event) for event in self._host_records]
        found += self._join(file, self._unowned)
        for stream in included:
            found += self._join(file, stream)
        if lost:
            file.shift[file.process.pid] -= 1  # its first records are no longer kept
        oldest = min((at_ns for at_ns, _ in found), default=self._now_ns)
        file.note(replace(mine, at_ns=oldest))
        self._write_sorted(file, found)

    @staticmethod
    def _write_sorted(file: _File, found: list[tuple[int, bytes | Event]]) -> None:
        for _, each in sorted(found, key=lambda item: item[0]):
            if isinstance(each, bytes):
                file.waiting.append(each)
            else:
                file.note(each)

    def _join(self, file: _File, stream: Stream) -> list[tuple[int, bytes | Event]]:
        """Add a stream to a recording; returns its kept records."""
        records, file.shift[stream.pid] = stream.remembered()
        file.streams[stream.pid] = stream
        stream.files.append(file)
        found: list[tuple[int, bytes | Event]] = [
            (each.at_ns, wire.with_seq(each.record, each.seq)) for each in records
        ]
        # The collector's own come after the record that they are about, whose time they have.
        found += [(e.at_ns, e) for e in (*stream.own.values(), *stream.own_lately)]
        return found

    def _include(self, file: _File, stream: Stream) -> None:
        """Add a process that may take part in a migration whose recording has begun."""
        self._write_sorted(file, self._join(file, stream))

    def _include_process(self, file: _File, process: Process) -> None:
        stream = self._stream_of(process)
        if file not in stream.files:
            self._include(file, stream)

    def _concerns(self, file: _File, stream: Stream) -> bool:
        """Whether a process that has just been identified may take part in a migration."""
        if len(file.streams) >= MAX_PROCESSES:
            return False
        uuid = file.process.uuid
        if uuid is not None:
            return stream.uuid == uuid
        return _waits_without_uuid(stream) and len(file.streams) < MAX_WITHOUT_UUID

    def _everyone(self) -> list[Stream]:
        return list(dict.fromkeys((*self._ended, *self._streams.values())))

    def _look(self, file: _File, part: Unsettled, tracker: Tracker) -> None:
        """Check whether a migration has ended."""
        if self._now_ns < file.look_ns:
            return
        file.look_ns = self._now_ns + LOOK_NS
        # Building migrations is most of a tracer's work.
        if file.outcome is None and not _may_be_over(part) and self._now_ns < file.build_ns:
            return
        file.build_ns = self._now_ns + LOOK_AGAIN_NS
        migration = tracker.build(part)
        file.outcome = migration.outcome
        self._know(migration.pid, migration.started_at_ns, file)
        if migration.outcome is None:
            self._writer.rename(file.handle, file.handle.name.ended(RUNNING))
            return
        self._writer.rename(file.handle, file.handle.name.ended(migration.outcome))
        after = AFTER_UNPLUG_NS if migration.awaits_device else AFTER_NS
        if migration.ended_at_ns is None or self._now_ns - migration.ended_at_ns >= after:
            self._close(file, migration)

    def _close(self, file: _File, migration: Migration | None) -> None:
        """Close a recording; `migration` is its migration, if that was just built."""
        self._leave(file)
        self._over[id(file.part)] = file.part
        outcome = file.outcome if migration is None else migration.outcome
        if migration is not None:
            self._know(migration.pid, migration.started_at_ns, file)
            self._note_load(file, migration)
            if migration.incomplete and not migration.contested:
                # The losses may be of a process that this recording does not have.
                file.note(events.Uncounted(self._now_ns, 0, COLLECTOR, 0, file.process.pid, 0))
        file.note(events.End(self._now_ns, 0, COLLECTOR, 0, self._numbers(file)))
        name = file.handle.name.ended(outcome or Outcome.UNKNOWN)
        row = None if migration is None else _row(migration, file, str(name))
        self._writer.close(file.handle, name, frames_of(file.waiting), row)

    def _leave(self, file: _File) -> None:
        del self._files[id(file.part)]
        for stream in file.streams.values():
            stream.files.remove(file)

    def _numbers(self, file: _File) -> dict[int, int]:
        """Return for each living process the number that its next record would have in this recording."""
        last = self._last_numbers
        found = {}
        for pid, stream in file.streams.items():
            if stream.ended_ns is None and (last is None or pid in last or pid == NO_PROCESS):
                after = stream.last_seq + 1 if last is None else last.get(pid, stream.last_seq + 1)
                found[pid] = after - file.shift[pid]
        return found

    def _note_load(self, file: _File, migration: Migration) -> None:
        """Note the save that a VM was loaded from: the saved VM has ended, so the recording has none of its records."""
        stream = file.streams.get(file.process.pid)
        save = migration.save
        identity = stream.identity if stream is not None else None
        if identity is None or save is None or migration.role != Role.DESTINATION:
            return
        if identity.load_channel is None:
            file.note(
                replace(
                    identity,
                    at_ns=self._now_ns,
                    load_channel=save.channel,
                    load_path=save.path,
                    load_program=save.program,
                )
            )

    def _know(self, pid: int, started_ns: int, file: _File) -> None:
        self._paths[pid, started_ns] = file.handle
        while len(self._paths) > MAX_KNOWN:
            del self._paths[next(iter(self._paths))]

    def _flush(self) -> None:
        for file in self._files.values():
            if file.waiting:
                self._writer.append(file.handle, frames_of(file.waiting))
                file.waiting = []


def _row(migration: Migration, file: _File, name: str) -> index.Row:
    """Return the row that a list would read of a migration from its recording."""
    clock = tuple(file.clock.kept)
    shot = Snapshot(migration.started_at_ns, (), (migration,), 0, 0, 0, clock)
    found = MigrationReport.of_one_host(HostReport(file.host, shot), migration)
    return index.row_of(found, name, 1)


_COUNTERS = (
    events.Lost,
    events.NetMissed,
    events.TableFull,
    events.Untraced,
    events.MissedRuns,
)


def _counter(event: Event) -> Any:
    """Return the key of a counter of losses, whose records have its total since vftrace started."""
    if isinstance(event, events.MissedRuns):
        return type(event), event.probe, event.reason
    return type(event), getattr(event, "table", getattr(event, "uid", None))


def _began_ns(part: _Part) -> int:
    return part.started_at_ns if isinstance(part, OutgoingMigration) else part.first_act_ns


def _may_be_over(part: Unsettled) -> bool:
    """Whether an event shows that a migration may have ended."""
    _, own, pair = part
    incoming = own if isinstance(own, IncomingMigration) else pair.incoming if pair else None
    if isinstance(own, OutgoingMigration) and own.ended:
        return True
    return incoming is not None and (
        incoming.running_at_ns is not None or incoming.ended_at_ns is not None
    )


def _waits_without_uuid(stream: Stream) -> bool:
    identity = stream.identity
    return identity is not None and identity.uuid is None and identity.incoming


def _is_wanted(process: Process, wanted: Collection[str]) -> bool:
    identity = process.identity
    name = identity.name if identity is not None else None
    return names_vm(wanted, name, process.uuid, [str(process.pid)])
