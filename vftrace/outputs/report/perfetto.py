"""Migrations and virtual functions as a trace for Perfetto's UI (ui.perfetto.dev): tracks, slices, counters.

Made with the messages of Perfetto's own Python package (extra `perfetto`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from vftrace.errors import MachineError
from vftrace.outputs.report.timeline import Counter, Lane, Slice, Timeline, timeline_of

Json = dict[str, Any]

_SEQUENCE = 1


def perfetto_trace(placed: Sequence[tuple[Json, Json]], hosts: Sequence[Json] = ()) -> bytes:
    """A serialised `perfetto.protos.Trace`. `placed`: each migration with its host's entry, as in the report.
    `hosts`: those entries, for their virtual functions: a track of states and one of messages each.

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
    trace: bytes = _Writer(pb2, placed, hosts).trace.SerializeToString()
    return trace


class _Writer:
    def __init__(
        self, pb2: Any, placed: Sequence[tuple[Json, Json]], hosts: Sequence[Json]
    ) -> None:
        self._pb2 = pb2
        self.trace: Any = pb2.Trace()
        first = next((host for host in (*hosts, *(host for host, _ in placed))), None)
        if first is not None and first["clock"]:
            self._clock(first["clock"][0])
        for number, (host, migration) in enumerate(placed):
            shift = 0 if first is None or host is first else _wall(host) - _wall(first)
            self._migration(number, migration, shift)
        for host in hosts:
            shift = _wall(host) - _wall(hosts[0])
            for vf in host["vfs"]:
                if vf["states"] or vf["messages"]:
                    self._vf(host, vf, shift)

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

    def _vf(self, host: Json, vf: Json, shift: int) -> None:
        path = f"{host['boot_id']}/{vf['pf']}/{vf['vf']}"
        name = f"VF {vf['vf']} of {vf['pf']} on {host['name']}"
        parent = self._track(path, None, "".join(c if c.isprintable() else "?" for c in name))
        newest = [s["start_at_ns"] for s in vf["states"]] + [m["at_ns"] for m in vf["messages"]]
        states = [
            Slice(s["name"], s["start_at_ns"], s["end_at_ns"] or max(newest)) for s in vf["states"]
        ]
        lane = Lane("vf", "state", tuple(states))
        self._lane(self._track(f"{path}/state", parent, lane.title, 0), lane, shift)
        track = self._track(f"{path}/mailbox", parent, "mailbox", 1)
        for begin, end, name, arguments in _exchanges(vf["messages"]):
            event = self._event(
                track, begin + shift, "TYPE_SLICE_BEGIN" if end is not None else "TYPE_INSTANT"
            )
            event.name = name
            for key, value in arguments.items():
                event.debug_annotations.add(name=key, string_value=str(value))
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


def _exchanges(messages: Sequence[Json]) -> Iterator[tuple[int, int | None, str, Json]]:
    """What was said, each with begin, end, name and arguments: a request and its answer are one; of what has no
    answer, and is none, the end is None."""
    waiting: Json | None = None
    for message in messages:
        if message["latency_ns"] is not None:
            asked = waiting["arguments"] if waiting is not None else {}
            name = f"{_title(message)} {message['result']}"
            begin = message["at_ns"] - message["latency_ns"]
            yield begin, message["at_ns"], name, {**asked, **message["arguments"]}
            waiting = None
            continue
        if waiting is not None:
            yield waiting["at_ns"], None, f"{_title(waiting)} no answer", waiting["arguments"]
            waiting = None
        if message["direction"] == "from-vf" and message["result"] in ("none", "CTS"):
            waiting = message
        else:
            yield message["at_ns"], None, _title(message), message["arguments"]
    if waiting is not None:
        yield waiting["at_ns"], None, f"{_title(waiting)} no answer", waiting["arguments"]


def _title(message: Json) -> str:
    return message["message"] or f"0x{message['opcode']:04x}"


def _wall(host: Json) -> int:
    """The host's wall clock beyond its boot time, ns; 0 where it is not known."""
    return int(host["clock"][0]["realtime_offset_ns"]) if host["clock"] else 0
