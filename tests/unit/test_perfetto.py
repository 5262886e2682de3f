# SPDX-License-Identifier: MIT
"""The Perfetto trace, parsed with Perfetto's own messages and compared with the migration."""

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.two_hosts import RECORDINGS, boot_of, golden
from vftrace.cli import main
from vftrace.model.migration import (
    DeviceState,
    DeviceUse,
    Migration,
    Role,
    VfPhase,
    VfUse,
)
from vftrace.model.report import Report
from vftrace.outputs.report.perfetto import perfetto_trace

# The package comes without types.
pb: Any = import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")

NAMES = sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz"))
Track = tuple[str, ...]


class Parsed:
    """Tracks by path of names; slices and counter values in order."""

    def __init__(self, content: bytes) -> None:
        self.trace = pb.Trace.FromString(content)
        described = {
            p.track_descriptor.uuid: p.track_descriptor
            for p in self.trace.packet
            if p.HasField("track_descriptor")
        }
        assert 0 not in described
        self.paths: dict[int, Track] = {}
        for uuid, d in described.items():
            path: tuple[str, ...] = (d.name,)
            if d.parent_uuid:
                path = (described[d.parent_uuid].name, *path)
            self.paths[uuid] = path
        self.units = {
            self.paths[u]: d.counter for u, d in described.items() if d.HasField("counter")
        }
        self.slices: dict[Track, list[tuple[str, int, int]]] = {}
        self.values: dict[Track, list[tuple[int, float]]] = {}
        self.instants: dict[Track, list[tuple[str, int]]] = {}
        opened: dict[Track, tuple[str, int]] = {}
        for packet in self.trace.packet:
            if not packet.HasField("track_event"):
                continue
            event, at = packet.track_event, packet.timestamp
            track = self.paths[event.track_uuid]
            if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
                assert track not in opened
                opened[track] = event.name, at
            elif event.type == pb.TrackEvent.TYPE_SLICE_END:
                name, start = opened.pop(track)
                self.slices.setdefault(track, []).append((name, start, at))
            elif event.type == pb.TrackEvent.TYPE_INSTANT:
                self.instants.setdefault(track, []).append((event.name, at))
            else:
                assert event.type == pb.TrackEvent.TYPE_COUNTER
                self.values.setdefault(track, []).append((at, event.double_counter_value))
        assert not opened


def parsed(name: str, tmp_path: Path) -> tuple[Parsed, tuple[Migration, ...]]:
    out = tmp_path / "t.pftrace"
    path = RECORDINGS / f"{name}.vft.gz"
    assert main(["report", "--format", "perfetto", "-o", str(out), str(path)]) == 0
    return Parsed(out.read_bytes()), boot_of(*golden(name)).snapshot.migrations


@pytest.mark.parametrize("name", NAMES)
def test_tracks_follow_their_own_order_and_never_overlap(name: str, tmp_path: Path) -> None:
    found, migrations = parsed(name, tmp_path)
    for slices in found.slices.values():
        assert all(start <= end for _, start, end in slices)
        assert all(a[2] <= b[1] for a, b in pairwise(slices))
    roots = [path for path in found.paths.values() if len(path) == 1]
    assert len(roots) == len(migrations)


@pytest.mark.parametrize("name", ["completed-slow", "libvirt", "postcopy", "cancel-precopy"])
def test_the_tracks_of(name: str, tmp_path: Path) -> None:
    found, (m,) = parsed(name, tmp_path)
    tracks: dict[str, Any] = {path[1]: slices for path, slices in found.slices.items()}
    for role in ("source", "destination"):
        mine = [p for p in m.phases if p.role == role]
        assert [s[0] for s in tracks.get(f"{role} phases", [])] == [p.name for p in mine]
        for drawn, phase in zip(tracks.get(f"{role} phases", []), mine, strict=True):
            assert drawn[1] == phase.start_at_ns
            if phase.end_at_ns is not None and phase.name != "running":
                assert drawn[2] == phase.end_at_ns
    assert [(s[1], s[2] - s[1]) for s in tracks["rounds"]] == [
        (r.at_ns, r.duration_ns) for r in m.rounds
    ]
    if m.downtime.vcpu_ns is None:
        assert [s[0] for s in tracks["vCPUs"]] == ["running"]
        return
    assert [s[0] for s in tracks["vCPUs"]] == ["running", "stopped", "running"]
    stopped = tracks["vCPUs"][1]
    assert stopped[2] - stopped[1] == m.downtime.vcpu_ns
    assert sum(s[2] - s[1] for s in tracks["blackout"]) == m.downtime.vcpu_ns


def test_counters_are_the_guests_rate_and_the_bytes_sent(tmp_path: Path) -> None:
    found, (m,) = parsed("completed-slow", tmp_path)
    values = {path[1]: v for path, v in found.values.items()}
    assert values["sent"][0][1] == 0
    assert values["sent"][-1][1] == m.channel.bytes
    # The demo's guest dirties 1000 pages a second (vftrace.demo.scenarios, completed-slow).
    before_the_stop = [value for at, value in values["dirty rate"] if at < m.rounds[4].at_ns]
    assert before_the_stop
    for value in before_the_stop:
        assert value == pytest.approx(1000 * 4096, rel=0.05)
    units = {path[1]: unit for path, unit in found.units.items()}
    assert units["sent"].unit == pb.CounterDescriptor.UNIT_SIZE_BYTES
    assert units["dirty rate"].unit_name == "bytes/s"


def test_the_clock_ties_boot_time_to_the_time_of_day(tmp_path: Path) -> None:
    found, _ = parsed("libvirt", tmp_path)
    snapshot = boot_of(*golden("libvirt")).snapshot
    (clocks,) = [p.clock_snapshot for p in found.trace.packet if p.HasField("clock_snapshot")]
    assert clocks.primary_trace_clock == pb.BUILTIN_CLOCK_BOOTTIME
    by_id = {clock.clock_id: clock.timestamp for clock in clocks.clocks}
    boot, real = by_id[pb.BUILTIN_CLOCK_BOOTTIME], by_id[pb.BUILTIN_CLOCK_REALTIME]
    assert (boot, real - boot) == snapshot.clock[0][:2]


def test_devices_and_vfs_have_tracks() -> None:
    found = boot_of(*golden("completed-slow"))
    (m,) = found.snapshot.migrations
    start = m.started_at_ns
    device = DeviceUse(
        address="0000:01:10.0",
        id=None,
        role=Role.SOURCE,
        driver=None,
        peer_address=None,
        states=(
            # What it was before the migration is drawn from its begin on.
            DeviceState("RUNNING", start - 5_000_000),
            DeviceState("PRE_COPY", start + 1000),
            DeviceState("STOP_COPY", start + 5000),
        ),
        state_ns=(),
        bytes=None,
    )
    # The destination refused its first state: it was never in one (QEMU's RESUMING, -22).
    refused = replace(device, id="vf0", role=Role.DESTINATION, states=())
    phases = (VfPhase("reset", start, start + 700), VfPhase("ready", start + 700, None))
    vf = VfUse("0000:01:00.0", 3, None, Role.SOURCE, phases)
    m = replace(m, devices=(device, refused), vfs=(vf,))
    snapshot = replace(found.snapshot, migrations=(m,))
    trace = perfetto_trace(Report.of_hosts([replace(found, snapshot=snapshot)]))
    assert trace.left_out == ()
    tracks = {path[1]: slices for path, slices in Parsed(trace.data).slices.items()}
    states = tracks["0000:01:10.0 (source)"]
    assert [(s[0], s[2] - s[1]) for s in states[:2]] == [("RUNNING", 1000), ("PRE_COPY", 4000)]
    assert "vf0 (destination)" not in tracks
    assert tracks["VF 3 of 0000:01:00.0 (source)"][0] == ("reset", start, start + 700)


def test_a_migration_that_cannot_be_written_leaves_the_others() -> None:
    found = boot_of(*golden("four-at-once"))
    first, *others = found.snapshot.migrations
    # No packet can hold such a time; a damaged recording may.
    damaged = replace(first, rounds=(replace(first.rounds[0], at_ns=1 << 65), *first.rounds[1:]))
    snapshot = replace(found.snapshot, migrations=(damaged, *others))
    trace = perfetto_trace(Report.of_hosts([replace(found, snapshot=snapshot)]))
    (line,) = trace.left_out
    assert str(first.name) in line
    parents = {path[0] for path in Parsed(trace.data).slices}
    assert len(parents) == len(others)


def test_virtual_functions_have_tracks_of_states_and_messages(tmp_path: Path) -> None:
    """The lab's script (tests/lab/jobs/mailbox.py): what was answered is a slice, the rest an instant."""
    import json

    golden_mailbox = RECORDINGS.parent / "mailbox"
    out = tmp_path / "t.pftrace"
    recording = golden_mailbox / "6.12.vft.gz"
    assert main(["report", "--format", "perfetto", "-o", str(out), str(recording)]) == 0
    found = Parsed(out.read_bytes())
    script = json.loads((golden_mailbox / "6.12-ixgbe.truth.json").read_text())
    for number in range(script["vfs"]):
        sent = [e for e in script["log"] if e.get("vf") == number and e["verb"] == "send"]
        # Neither an answer of the VF itself, nor a repeated message, is paired as a request.
        asked = [e for e in sent if e["replied"] and not e["words"][0] >> 30]
        track = f"VF {number} of {script['pf']} on lab", "mailbox"
        begin, end = script["started_at_ns"], script["ended_at_ns"]
        slices = [s for s in found.slices.get(track, []) if begin < s[1] < end]
        assert len(slices) == len(asked)
        for (_, start, end), entry in zip(slices, asked, strict=True):
            assert entry["at_ns"] < start <= end
        assert all(a[2] <= b[1] for a, b in pairwise(slices))
        assert "PF_CONTROL" in [name for name, _ in found.instants[track]]
    states = found.slices[f"VF 1 of {script['pf']} on lab", "state"]
    assert [s[0] for s in states][:3] == ["reset", "negotiating", "configuring"]


def test_the_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace.perfetto_trace_pb2", None)
    path = str(RECORDINGS / "libvirt.vft.gz")
    assert main(["report", "--format", "perfetto", "-o", str(tmp_path / "x"), path]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'vftrace[perfetto]'" in line
    assert not (tmp_path / "x").exists()
