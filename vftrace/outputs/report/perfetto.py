# SPDX-License-Identifier: MIT
"""Makes a trace for Perfetto's UI (ui.perfetto.dev) of migrations and virtual functions: tracks, slices, counters.

It uses the messages of Perfetto's own Python package (extra `perfetto`).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import msgspec

from vftrace.errors import MachineError
from vftrace.faults import FAULTS, Where
from vftrace.mailbox.driver import Value
from vftrace.mailbox.message import Message
from vftrace.model import figures
from vftrace.model.migration import Outcome
from vftrace.model.report import HostReport, MigrationReport, Report
from vftrace.model.vf import VfHistory
from vftrace.outputs.report.timeline import Counter, Lane, Slice, timeline_of

_SEQUENCE = 1

Arguments = Mapping[str, Value]


class PerfettoTrace(msgspec.Struct, frozen=True):
    """A serialised `perfetto.protos.Trace`; `left_out` names the parts that could not be written."""

    data: bytes
    left_out: tuple[str, ...]


def perfetto_trace(report: Report) -> PerfettoTrace:
    """Return a trace with a track for each migration (lanes and counters) and each virtual function (states, messages).

    Times are CLOCK_BOOTTIME of the first host; times of other hosts are mapped to it by the wall clocks.
    Raises MachineError, which names the package to install, if the extra is missing.
    """
    try:
        # The package has no types.
        pb2 = import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    except ImportError as error:
        raise MachineError(
            "--format perfetto needs Perfetto's messages: pip install 'vftrace[perfetto]'"
        ) from error
    trace: Any = pb2.Trace()
    left_out = []
    for what, write in _parts(report):
        # Write each part into its own trace, so that a time that no packet can hold (damaged recordings) spoils one
        # part only.
        part = pb2.Trace()
        try:
            write(_Writer(pb2, part))
        except ValueError as error:
            # A time that no packet can hold: the recording is damaged, not vftrace.
            left_out.append(f"{what}: {type(error).__name__}: {error}")
        except Exception as error:
            FAULTS.contained(Where.REPORT, error, f"{what} is not in the trace")
            left_out.append(f"{what}: {type(error).__name__}: {error}")
        else:
            trace.MergeFrom(part)
    return PerfettoTrace(trace.SerializeToString(), tuple(left_out))


def _parts(report: Report) -> Iterator[tuple[str, "Callable[[_Writer], None]"]]:
    """Yield the parts of the trace: for each part its name, and the function that writes it."""
    first = report.hosts[0] if report.hosts else None
    if first is not None and first.snapshot.clock:
        at, offset, _ = first.snapshot.clock[0]
        yield "the clock", lambda writer: writer.clock(at, offset)
    for number, found in enumerate(report.migrations):
        m = found.migration
        name = f"migration {figures.title(m.name, m.uuid, m.pid)}"
        yield name, partial(_write_migration, number, found, first)
    for host in report.hosts:
        for life in host.snapshot.vfs:
            if life.states or life.recent:
                name = figures.printable(f"VF {life.vf} of {life.pf}")
                yield name, partial(_write_vf, host, life, first)


def _write_migration(
    number: int, found: MigrationReport, first: HostReport | None, writer: "_Writer"
) -> None:
    writer.migration(number, found, _shift(found.host, first, found.migration.started_at_ns))


def _write_vf(
    host: HostReport, life: VfHistory, first: HostReport | None, writer: "_Writer"
) -> None:
    writer.vf(host, life, _shift(host, first, host.info.started_at_ns))


def _shift(host: HostReport, first: HostReport | None, at_ns: int) -> int:
    """Return the first host's CLOCK_BOOTTIME minus this host's at `at_ns`, by their wall clocks."""
    if first is None or host is first:
        return 0
    realtime = figures.realtime_ns(host.snapshot.clock, at_ns)
    clock = first.snapshot.clock
    offset = figures.realtime_offset_ns(clock, clock[0][0]) if clock else None
    return 0 if realtime is None or offset is None else realtime - offset - at_ns


class _Writer:
    def __init__(self, pb2: Any, trace: Any) -> None:
        self._pb2 = pb2
        self.trace = trace

    def _packet(self) -> Any:
        packet = self.trace.packet.add()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def clock(self, at_ns: int, offset_ns: int) -> None:
        """Write the snapshot that relates boot time to the time of day."""
        packet = self._packet()
        clocks = self._pb2.ClockSnapshot.Clock
        packet.timestamp = at_ns
        snapshot = packet.clock_snapshot
        snapshot.clocks.add(clock_id=clocks.BOOTTIME, timestamp=at_ns)
        snapshot.clocks.add(clock_id=clocks.REALTIME, timestamp=at_ns + offset_ns)
        snapshot.primary_trace_clock = self._pb2.BUILTIN_CLOCK_BOOTTIME

    def migration(self, number: int, found: MigrationReport, shift: int) -> None:
        """Write a parent track with the lanes and counters of one migration below it."""
        line = timeline_of(found)
        outcome = found.migration.outcome or Outcome.UNKNOWN
        parent = self._track(f"{number}", None, f"migration {line.title}, {outcome}")
        for index, lane in enumerate(line.lanes):
            self._lane(self._track(f"{number}/{index}", parent, lane.title, index), lane, shift)
        for index, counter in enumerate(line.counters, start=len(line.lanes)):
            track = self._track(f"{number}/{index}", parent, counter.title, index)
            self._counter(track, counter, shift)

    def vf(self, host: HostReport, life: VfHistory, shift: int) -> None:
        """Write a parent track with the states and the messages of one virtual function below it."""
        path = f"{host.boot_id}/{life.pf}/{life.vf}"
        name = figures.printable(f"VF {life.vf} of {life.pf} on {host.name}")
        parent = self._track(path, None, name)
        newest = max([s.start_at_ns for s in life.states] + [m.at_ns for m in life.recent])
        states = [
            Slice(s.name, s.start_at_ns, newest if s.end_at_ns is None else s.end_at_ns)
            for s in life.states
        ]
        lane = Lane("vf", "state", tuple(states))
        self._lane(self._track(f"{path}/state", parent, lane.title, 0), lane, shift)
        track = self._track(f"{path}/mailbox", parent, "mailbox", 1)
        for begin, end, title, arguments in _exchanges(life.recent):
            kind = "TYPE_SLICE_BEGIN" if end is not None else "TYPE_INSTANT"
            event = self._event(track, begin + shift, kind)
            event.name = figures.printable(title)
            for key, value in arguments.items():
                text = figures.printable(str(value))
                event.debug_annotations.add(name=figures.printable(key), string_value=text)
            if end is not None:
                self._event(track, end + shift, "TYPE_SLICE_END")

    def _track(self, path: str, parent: int | None, name: str, rank: int = 0) -> int:
        uuid = int.from_bytes(hashlib.sha256(f"vftrace/{path}".encode()).digest()[:8], "big")
        descriptor = self._packet().track_descriptor
        descriptor.uuid = uuid
        descriptor.name = name
        if parent is None:
            descriptor.child_ordering = self._pb2.TrackDescriptor.EXPLICIT
        else:
            descriptor.parent_uuid = parent
            descriptor.sibling_order_rank = rank
        return uuid

    def _lane(self, track: int, lane: Lane, shift: int) -> None:
        for part in lane.slices:
            begin = self._event(track, part.start_ns + shift, "TYPE_SLICE_BEGIN")
            begin.name = figures.printable(part.name)
            self._event(track, part.end_ns + shift, "TYPE_SLICE_END")

    def _counter(self, track: int, counter: Counter, shift: int) -> None:
        descriptor = self.trace.packet[-1].track_descriptor.counter
        if counter.unit == "bytes":
            descriptor.unit = self._pb2.CounterDescriptor.UNIT_SIZE_BYTES
        else:
            descriptor.unit_name = counter.unit
        for at_ns, value in counter.values:
            event = self._event(track, at_ns + shift, "TYPE_COUNTER")
            event.double_counter_value = value

    def _event(self, track: int, at_ns: int, kind: str) -> Any:
        packet = self._packet()
        packet.timestamp = at_ns
        packet.track_event.track_uuid = track
        packet.track_event.type = getattr(self._pb2.TrackEvent, kind)
        return packet.track_event


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[int, int | None, str, Arguments]]:
    """Yield messages, each with begin, end, name and arguments: a request and its answer are one entry; the end is None
    for a message without an answer."""
    waiting: Message | None = None
    for message in messages:
        if message.latency_ns is not None:
            asked = waiting.arguments if waiting is not None else {}
            name = f"{message.title} {message.result}"
            begin = message.at_ns - message.latency_ns
            yield begin, message.at_ns, name, {**asked, **message.arguments}
            waiting = None
            continue
        if waiting is not None:
            yield waiting.at_ns, None, f"{waiting.title} no answer", waiting.arguments
            waiting = None
        if message.direction == "from-vf" and message.result in ("none", "CTS"):
            waiting = message
        else:
            yield message.at_ns, None, message.title, message.arguments
    if waiting is not None:
        yield waiting.at_ns, None, f"{waiting.title} no answer", waiting.arguments
