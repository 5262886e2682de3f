# SPDX-License-Identifier: MIT
"""Two hosts: the joined figures are the unshifted ones within the reported uncertainty."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.unit.two_hosts import (
    boot_of,
    golden,
    host_of,
    join,
    lab,
    only,
    renamed,
    shifted,
    write,
)
from vftrace import events
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.cli import main
from vftrace.collect.merge import load
from vftrace.events import COLLECTOR, wire
from vftrace.model.migration import Checkpoint, Migration
from vftrace.model.report import HostReport, MigrationReport, PingRecording

CUT = ("completed-slow", "libvirt", "postcopy", "no-uuid")
SECONDS = 10**9


class Halves:
    """A golden recording, cut once; `boots` puts the halves on clocks of their own."""

    def __init__(self, name: str) -> None:
        self.host, self.records = golden(name)
        self.whole = boot_of(self.host, self.records)
        self.migration = self.whole.snapshot.migrations[0]
        assert self.migration.peer_pid is not None
        self.source = only(self.records, {self.migration.pid})
        self.destination = only(self.records, {self.migration.peer_pid})

    def boots(self, shift_ns: int, errors: tuple[int, int], off: int = 0) -> list[HostReport]:
        """`off`: how wrong the destination's wall clock is, ns."""
        source = [shifted(record, 0, errors[0]) for record in self.source]
        destination = [shifted(record, shift_ns, errors[1]) for record in self.destination]
        if off:
            destination = [_wall_clock_off(record, off) for record in destination]
        return [
            boot_of(host_of("alpha", "boot-a", self.host), source),
            boot_of(host_of("beta", "boot-b", self.host, shift_ns), destination),
        ]


def _wall_clock_off(record: bytes, off: int) -> bytes:
    event = wire.decode(record)
    if not isinstance(event, events.ClockSample):
        return record
    wrong = event.realtime_offset_ns + off
    return wire.encode(structs.replace(event, realtime_offset_ns=wrong))


_HALVES: dict[str, Halves] = {}


def halves(name: str) -> Halves:
    if name not in _HALVES:
        _HALVES[name] = Halves(name)
    return _HALVES[name]


def only_one(joined: tuple[MigrationReport, ...]) -> MigrationReport:
    assert len(joined) == 1
    assert joined[0].migration.role == "stitched"
    return joined[0]


def never_impossible(m: Migration) -> None:
    assert m.downtime.vcpu_ns is not None
    assert m.downtime.vcpu_ns >= 0
    known = [c for c in m.downtime.checkpoints if c.ns is not None]
    assert all(c.ns is not None and c.ns >= 0 for c in known)
    assert sum(c.ns or 0 for c in known) == m.downtime.vcpu_ns
    assert all(p.end_at_ns is None or p.end_at_ns >= p.start_at_ns for p in m.phases)


@pytest.mark.parametrize("name", CUT)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_the_joined_downtime_is_the_real_one_within_its_uncertainty(
    name: str, data: st.DataObject
) -> None:
    cut = halves(name)
    real = cut.migration.downtime.vcpu_ns
    assert real is not None
    # Seconds to days either way, but the destination's clock must not go below zero.
    earliest = min(wire.decode(record).at_ns for record in cut.destination)
    shift = data.draw(st.integers(-earliest + SECONDS, 30 * 24 * 3600 * SECONDS))
    errors = data.draw(st.tuples(*[st.integers(1_000, 2 * UNSYNCHRONISED_NS)] * 2))
    total = sum(error for error in errors if error < UNSYNCHRONISED_NS)
    # A wall clock may be wrong by what the bounds admit.
    off = data.draw(st.integers(-total, total))
    found = only_one(join(cut.boots(shift, errors, off)))
    never_impossible(found.migration)
    assert found.uncertainty_ns is not None
    assert found.migration.downtime.vcpu_ns is not None
    assert abs(found.migration.downtime.vcpu_ns - real) <= found.uncertainty_ns
    assert found.offset is not None
    assert found.offset.low <= -shift <= found.offset.high


@pytest.mark.parametrize("name", CUT)
def test_with_good_clocks_everything_else_is_as_on_one_host(name: str) -> None:
    cut = halves(name)
    found = only_one(join(cut.boots(3600 * SECONDS, (1, 1)))).migration
    real = cut.migration
    assert (found.outcome, found.cause, found.postcopy) == ("completed", None, real.postcopy)
    assert (found.pid, found.peer_pid) == (real.pid, real.peer_pid)
    assert [(p.role, p.name) for p in found.phases] == [(p.role, p.name) for p in real.phases]
    # What is left is the drift allowed for between the newest clock sample and the handover.
    for mine, theirs in zip(found.phases, real.phases, strict=True):
        assert mine.start_at_ns == pytest.approx(theirs.start_at_ns, abs=2_000_000)
    for cm, ct in zip(found.downtime.checkpoints, real.downtime.checkpoints, strict=True):
        assert (cm.at_ns is None) == (ct.at_ns is None)
    assert found.rounds == real.rounds
    assert found.ended_at_ns == pytest.approx(real.ended_at_ns, abs=2_000_000)


def test_wall_clocks_that_nobody_sets_bound_nothing_but_causality_does() -> None:
    cut = halves("completed-slow")
    found = only_one(join(cut.boots(77 * SECONDS, (UNSYNCHRONISED_NS, UNSYNCHRONISED_NS))))
    assert found.offset is not None
    assert found.offset.low_why == "state is read before it is loaded"
    assert found.offset.high_why == "the source connects to who listens"


def test_a_wall_clock_further_off_than_it_reports_is_a_contradiction() -> None:
    cut = halves("completed-slow")
    # The real offset is 0; the wall clocks say the destination ran a second before the source stopped.
    joined = join(cut.boots(0, (1000, 1000), off=-SECONDS))
    assert [j.migration.role for j in joined] == ["source", "destination"]
    for found in joined:
        assert any("clocks contradict each other" in warning for warning in found.warnings)
        assert found.migration.downtime.vcpu_ns is None
        assert found.uncertainty_ns is None


def test_there_and_back_bounds_the_clocks_from_both_sides() -> None:
    host, records = golden("there-and-back")
    there, back = boot_of(host, records).snapshot.migrations
    assert there.peer_pid is not None
    assert back.peer_pid is not None
    assert there.peer_pid == back.pid
    shift = 5 * SECONDS
    unset = UNSYNCHRONISED_NS
    alpha = [shifted(r, 0, unset) for r in only(records, {there.pid, back.peer_pid})]
    beta = [shifted(r, shift, unset) for r in only(records, {there.peer_pid})]
    joined = join(
        [
            boot_of(host_of("alpha", "boot-a", host), alpha),
            boot_of(host_of("beta", "boot-b", host, shift), beta),
        ]
    )
    assert [j.migration.role for j in joined] == ["stitched", "stitched"]
    for found, real in zip(joined, (there, back), strict=True):
        assert found.migration.downtime.vcpu_ns is not None
        assert real.downtime.vcpu_ns is not None
        assert found.uncertainty_ns is not None
        assert abs(found.migration.downtime.vcpu_ns - real.downtime.vcpu_ns) <= found.uncertainty_ns
        # Each way bounds the other: milliseconds, where one way alone leaves the whole migration.
        assert found.uncertainty_ns < 10_000_000


def _ping(boot_id: str, before: int, after: int) -> PingRecording:
    """One probe answered at `before`, the next sent right behind; answered again from `after` on."""
    gap = events.PingGap(
        at_ns=after,
        seq=0,
        tgid=COLLECTOR,
        tid=1,
        kind="lost",
        start_at_ns=before + 1_000_000,
        ns=after - before - 1_000_000,
        least_ns=0,
        most_ns=after - before,
        lost=5,
        late=0,
        missed=0,
        before_sent_ns=before - 200_000,
        before_reply_ns=before,
        after_sent_ns=after - 200_000,
        after_reply_ns=after,
    )
    return PingRecording(boot_id, (), (gap,))


@pytest.mark.parametrize("boot_id", ["boot-a", "boot-b"])
def test_a_ping_bounds_what_nothing_else_does(boot_id: str) -> None:
    cut = halves("libvirt")
    shift = 100 * SECONDS
    boots = cut.boots(shift, (UNSYNCHRONISED_NS, UNSYNCHRONISED_NS))
    without = only_one(join(boots))
    times = {c.name: c.at_ns for c in cut.migration.downtime.checkpoints}
    stopped, ran = times[Checkpoint.VCPUS_STOPPED], times[Checkpoint.VCPUS_RUNNING]
    assert stopped is not None
    assert ran is not None
    clock = 0 if boot_id == "boot-a" else shift
    ping = _ping(boot_id, stopped - 900_000 + clock, ran + 1_100_000 + clock)
    found = only_one(join(boots, [ping]))
    assert found.uncertainty_ns is not None
    assert without.uncertainty_ns is not None
    assert found.uncertainty_ns < without.uncertainty_ns / 5
    assert found.migration.downtime.vcpu_ns is not None
    real = cut.migration.downtime.vcpu_ns
    assert real is not None
    assert abs(found.migration.downtime.vcpu_ns - real) <= found.uncertainty_ns
    assert found.service_ns == ran - stopped + 2_000_000 - 1_000_000
    assert "ping" in (found.offset.high_why if found.offset else "")


def test_without_a_uuid_two_that_fit_are_not_joined() -> None:
    cut = halves("no-uuid")
    first, second = cut.boots(0, (1000, 1000))
    third = renamed(first, "gamma", "boot-c")
    # The same source again on a third host: either may be the one.
    third = structs.replace(
        third,
        snapshot=structs.replace(
            third.snapshot,
            migrations=tuple(structs.replace(m) for m in third.snapshot.migrations),
        ),
    )
    joined = join([first, second, third])
    assert {j.migration.role for j in joined} == {"source", "destination"}
    assert all(any("several migrations on other hosts" in w for w in j.warnings) for j in joined)


@pytest.mark.parametrize("proved", [True, False])
def test_very_many_attempts_of_one_vm(proved: bool) -> None:
    """More attempts than are compared one by one: only the guest's clock shows which belong together."""
    first, second = halves("completed-fast").boots(100 * SECONDS, (1000, 1000))

    def many(host: HostReport) -> HostReport:
        (m,) = host.snapshot.migrations
        assert m.guest_clock_ns is not None
        clocks = [m.guest_clock_ns + number if proved else None for number in range(70)]
        copies = tuple(structs.replace(m, guest_clock_ns=clock) for clock in clocks)
        return structs.replace(host, snapshot=structs.replace(host.snapshot, migrations=copies))

    found = join([many(first), many(second)])
    if proved:
        assert [j.migration.role for j in found] == ["stitched"] * 70
        assert not any(j.warnings for j in found)
    else:
        assert len(found) == 140
        assert all("more attempts than vftrace compares" in j.warnings[0] for j in found)


# -- files ----------------------------------------------------------------------------------------


SCHEMA = json.loads((Path(__file__).parents[2] / "vftrace" / "report.schema.json").read_text())


def report(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["report", "--format", "json", *map(str, words)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA)
    return found


def ping_records(before: int, after: int, clock: tuple[int, int]) -> list[bytes]:
    """A ping's recording: a second before and after the gap, and a clock sample (offset, error)."""
    (gap,) = _ping("", before, after).events
    start, end = before - SECONDS, after + SECONDS
    head = (COLLECTOR, 77)
    found: list[events.Event] = [
        events.PingSettings(
            start, 0, *head, "192.0.2.9", "192.0.2.9", "icmp", 0, 1_000_000, SECONDS, "fifo"
        ),
        events.ClockSample(start, 1, *head, *clock),
        structs.replace(gap, seq=2, tid=77),
        events.PingSummary(end, 3, *head, start, end, 2000, 1995, 5, *[0] * 13),
        events.End(end, 4, *head, {}),
    ]
    return [wire.encode(event) for event in found]


@pytest.mark.parametrize("where", ["source", "destination", "elsewhere"])
def test_a_pings_file_fills_the_service_downtime(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = halves("libvirt")
    shift, third = 100 * SECONDS, -500 * SECONDS
    boots = {"source": ("boot-a", 0), "destination": ("boot-b", shift), "elsewhere": ("c", third)}
    boot_id, clock = boots[where]
    times = {c.name: c.at_ns for c in cut.migration.downtime.checkpoints}
    stopped, ran = times[Checkpoint.VCPUS_STOPPED], times[Checkpoint.VCPUS_RUNNING]
    assert stopped is not None
    assert ran is not None
    offset = cut.whole.snapshot.clock[0][1]
    gap = (stopped - 2_000_000 + clock, ran + 3_000_000 + clock)
    files = [
        write(
            tmp_path / "a.vft",
            host_of("alpha", "boot-a", cut.host),
            [shifted(r, 0, 20_000_000) for r in cut.source],
        ),
        write(
            tmp_path / "b.vft",
            host_of("beta", "boot-b", cut.host, shift),
            [shifted(r, shift, 20_000_000) for r in cut.destination],
        ),
    ]
    without = report(capsys, *files)["migrations"][0]
    ping = write(
        tmp_path / "ping.vft",
        structs.replace(host_of(where, boot_id, cut.host), probes=()),
        ping_records(*gap, (offset - clock, 100_000)),
    )
    said = report(capsys, *files, ping)
    assert len(said["hosts"]) == (3 if where == "elsewhere" else 2)
    (migration,) = said["migrations"]
    down = migration["downtime"]
    assert down["service_ns"] == gap[1] - gap[0] - 1_000_000
    real = cut.migration.downtime.vcpu_ns
    assert real is not None
    assert abs(down["vcpu_ns"] - real) <= down["uncertainty_ns"]
    assert down["uncertainty_ns"] <= without["downtime"]["uncertainty_ns"]


def test_two_files_of_two_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = halves("completed-slow")
    shift = -1000 * SECONDS
    files = [
        write(tmp_path / "a.vft", host_of("alpha", "boot-a", cut.host), cut.source),
        write(
            tmp_path / "b.vft",
            host_of("beta", "boot-b", cut.host, shift),
            [shifted(r, shift) for r in cut.destination],
        ),
    ]
    for order in (files, files[::-1]):
        said = report(capsys, *order)
        assert {host["name"] for host in said["hosts"]} == {"alpha", "beta"}
        (migration,) = said["migrations"]
        assert (migration["host"], migration["peer_host"]) == ("alpha", "beta")
        assert migration["role"] == "stitched"
        real = cut.migration.downtime.vcpu_ns
        assert (
            abs(migration["downtime"]["vcpu_ns"] - real) <= migration["downtime"]["uncertainty_ns"]
        )
    assert main(["report", *map(str, files)]) == 0
    text = capsys.readouterr().out
    assert "pid" in text
    assert "on alpha" in text
    assert " to " in text.splitlines()[0]


def test_recordings_of_one_boot_share_its_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = halves("completed-slow")
    files = [
        write(tmp_path / "a.vft", cut.host, cut.source),
        write(tmp_path / "b.vft", cut.host, cut.destination),
    ]
    said = report(capsys, *files)
    assert len(said["hosts"]) == 1
    (migration,) = said["migrations"]
    assert migration["downtime"]["vcpu_ns"] == cut.migration.downtime.vcpu_ns
    assert migration["downtime"]["uncertainty_ns"] == 0
    assert migration["incomplete"] is False


def test_the_same_recording_twice_is_the_same_once(tmp_path: Path) -> None:
    cut = halves("completed-slow")
    path = write(tmp_path / "a.vft", cut.host, cut.records)
    twice = load([path, path])
    assert twice.hosts[0].snapshot.migrations == cut.whole.snapshot.migrations
    assert load([path]).hosts[0].snapshot.migrations == cut.whole.snapshot.migrations


def test_a_loss_in_one_of_two_recordings_is_still_one(tmp_path: Path) -> None:
    cut = halves("completed-slow")
    damaged = [r for n, r in enumerate(cut.source) if n != len(cut.source) // 2]
    loaded = load(
        [
            write(tmp_path / "a.vft", cut.host, damaged),
            write(tmp_path / "b.vft", cut.host, cut.destination),
        ]
    )
    assert [m.incomplete for m in loaded.hosts[0].snapshot.migrations] == [True]


def test_devices_are_joined_too() -> None:
    host, records = lab("6.12-kprobe")
    shift = 77 * SECONDS
    moved = [
        m
        for m in boot_of(host, records).snapshot.migrations
        if m.strategy == "vfio" and m.outcome == "completed"
    ]
    assert len(moved) > 3
    for real in moved:
        assert real.peer_pid is not None
        source = [shifted(r, 0, 1000) for r in only(records, {real.pid})]
        destination = [shifted(r, shift, 1000) for r in only(records, {real.peer_pid})]
        found = only_one(
            join(
                [
                    boot_of(host_of("alpha", "boot-a", host), source),
                    boot_of(host_of("beta", "boot-b", host, shift), destination),
                ]
            )
        )
        m, unsure = found.migration, found.uncertainty_ns
        assert unsure is not None
        never_impossible(m)
        assert m.strategy == "vfio"
        assert [c.at_ns is None for c in m.downtime.checkpoints] == [
            c.at_ns is None for c in real.downtime.checkpoints
        ]
        assert [(d.role, d.address, d.peer_address) for d in m.devices] == [
            (d.role, d.address, d.peer_address) for d in real.devices
        ]
        for mine, theirs in zip(m.devices, real.devices, strict=True):
            assert [s.state for s in mine.states] == [s.state for s in theirs.states]
        assert len(m.downtime.devices) == len(real.downtime.devices)
        for away, truly in zip(m.downtime.devices, real.downtime.devices, strict=True):
            assert away.ns is not None
            assert truly.ns is not None
            assert abs(away.ns - truly.ns) <= unsure
