"""Migrations as a trace for Perfetto's UI (ui.perfetto.dev): tracks, slices and counters.

Made with the messages of Perfetto's own Python package (extra `perfetto`).
"""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from vftrace.errors import MachineError
from vftrace.outputs.timeline import Counter, Lane, Timeline, timeline_of

Json = dict[str, Any]

_SEQUENCE = 1


def perfetto_trace(placed: Sequence[tuple[Json, Json]]) -> bytes:
    """A serialised `perfetto.protos.Trace`. `placed`: each migration with its host's entry, as in the report.

    Times are CLOCK_BOOTTIME of the first host; another host's are laid beside it by the wall clocks.
    Raises MachineError, saying what to install, where the extra is missing.
    """
    try:
        # The package comes without types.
        pb2 = import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    except ImportError as error:
        raise MachineError(
            "--format perfetto needs Perfetto's messages: pip install 'vftrace[perfetto]'"
        ) from error
    trace: bytes = _Writer(pb2, placed).trace.SerializeToString()
    return trace


class _Writer:
    def __init__(self, pb2: Any, placed: Sequence[tuple[Json, Json]]) -> None:
        self._pb2 = pb2
        self.trace: Any = pb2.Trace()
        first = placed[0][0] if placed else None
        if first is not None and first["clock"]:
            self._clock(first["clock"][0])
        for number, (host, migration) in enumerate(placed):
            shift = 0 if first is None or host is first else _wall(host) - _wall(first)
            self._migration(number, migration, shift)

    def _packet(self) -> Any:
        packet = self.trace.packet.add()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _clock(self, sample: Json) -> None:
        """What ties boot time to the time of day."""
        packet = self._packet()
        clocks = self._pb2.ClockSnapshot.Clock
        at, offset = sample["at_ns"], sample["realtime_offset_ns"]
        packet.timestamp = at
        packet.clock_snapshot.clocks.add(clock_id=clocks.BOOTTIME, timestamp=at)
        packet.clock_snapshot.clocks.add(clock_id=clocks.REALTIME, timestamp=at + offset)
        packet.clock_snapshot.primary_trace_clock = self._pb2.BUILTIN_CLOCK_BOOTTIME

    def _migration(self, number: int, migration: Json, shift: int) -> None:
        line: Timeline = timeline_of(migration)
        parent = self._track(f"{number}", None, f"migration {line.title}, {migration['outcome']}")
        for index, lane in enumerate(line.lanes):
            self._lane(self._track(f"{number}/{index}", parent, lane.title, index), lane, shift)
        for index, counter in enumerate(line.counters, start=len(line.lanes)):
            track = self._track(f"{number}/{index}", parent, counter.title, index)
            self._counter(track, counter, shift)

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
            self._event(track, part.start_ns + shift, "TYPE_SLICE_BEGIN").name = part.name
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


def _wall(host: Json) -> int:
    """The host's wall clock beyond its boot time, ns; 0 where it is not known."""
    return int(host["clock"][0]["realtime_offset_ns"]) if host["clock"] else 0
