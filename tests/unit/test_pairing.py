# SPDX-License-Identifier: MIT
"""The guest's clock that a destination sets proves it, rather than its command line."""

from pathlib import Path

import pytest
from msgspec import structs

from tests.unit.two_hosts import boot_of, golden, host_of, join, only, shifted
from vftrace import events
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.collect.merge import Reader
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, Clock, Process, wire
from vftrace.model.migration import Checkpoint, Migration
from vftrace.model.report import HostReport
from vftrace.outputs.text.words import warnings

SPOOFED = Path(__file__).parents[1] / "golden" / "hosts" / "spoofed-uuid.vft.gz"
"""A QEMU guest moved between two processes while a third one, of 64 MiB and no more than KVM_CREATE_VM,
KVM_CREATE_VCPU, KVM_SET_CLOCK and KVM_RUN, had the guest's UUID and `-incoming` on its command line."""


def spoofed() -> HostReport:
    recording = Recording(SPOOFED)
    return boot_of(recording.host, recording)


def by_kernel() -> tuple[int, int, int]:
    """The source, the process that set the clock which it had read, and the impostor: by the requests alone."""
    records = [wire.decode(record) for record in Recording(SPOOFED)]
    (impostor,) = {e.pid for e in records if isinstance(e, Process) and e.vmm == "x"}
    clocks = [e for e in records if isinstance(e, Clock) and e.clock]
    read = {e.clock: e.tgid for e in clocks if e.op == Clock.GET and e.last_exit_ns}
    sets = {e.clock: e.tgid for e in clocks if e.op == Clock.SET and e.tgid != read.get(e.clock)}
    victims = {e.pid for e in records if isinstance(e, Process) and e.name == "victim"}
    ((source, destination),) = {
        (read[clock], sets[clock]) for clock in read.keys() & sets if read[clock] in victims
    }
    return source, destination, impostor


def test_a_source_that_ran_on_keeps_the_clock_that_it_read() -> None:
    """Its destination may have set it: both hosts' traces of the failed migration have one id by it."""
    host, records = golden("dest-killed-blackout")
    (m,) = boot_of(host, records).snapshot.migrations
    clocks = [e for e in map(wire.decode, records) if isinstance(e, Clock) and e.tgid == m.pid]
    runs = [e for e in map(wire.decode, records) if isinstance(e, events.Run) and e.tgid == m.pid]
    # The migration thread reads it at the stop and when it saves the state (QEMU hw/i386/kvm/clock.c).
    reads = [e for e in clocks if e.op == Clock.GET and e.tid != m.pid]
    assert m.outcome == "failed"
    assert len(reads) == 2
    assert runs[-1].at_ns > reads[0].at_ns
    assert m.guest_clock_ns == reads[-1].clock


def test_an_impostor_is_not_the_destination() -> None:
    source, destination, impostor = by_kernel()
    found = {m.pid: m for m in spoofed().snapshot.migrations}
    moved = found[source]
    assert (moved.role, moved.peer_pid) == ("stitched", destination)
    assert moved.downtime.vcpu_ns is not None
    assert not moved.contested
    assert not moved.incomplete
    assert destination not in found
    assert found[impostor].role == "destination"
    assert found[impostor].contested
    assert any("CONTESTED" in warning for warning in warnings(found[impostor]))


def test_the_other_vm_of_the_recording_is_not_contested() -> None:
    others = [m for m in spoofed().snapshot.migrations if m.pid not in by_kernel()]
    assert others
    assert not any(m.contested for m in others)


def beside(name: str, act: events.Event) -> Migration:
    """The migration of a golden recording in which process 999 has the VM's UUID, waits, and makes one request."""
    decoded = list(events_of(golden(name)[1]))
    (uuid,) = {e.uuid for e in decoded if isinstance(e, Process)}
    at = act.at_ns
    decoded += [
        events.VmCreated(at - 30, 0, 999, 999, 5),
        Process(at - 20, 0, COLLECTOR, 1, 999, 1, uuid, "x", "x", True, False, False, False),
        act,
    ]
    decoded.sort(key=lambda event: event.at_ns)
    own = [index for index, event in enumerate(decoded) if event.tgid == COLLECTOR]
    for number, index in enumerate(own):
        decoded[index] = structs.replace(decoded[index], seq=number)
    reader = Reader()
    reader.read(decoded)
    (found,) = [m for m in reader.tracker.snapshot().migrations if m.pid != 999]
    return found


@pytest.fixture(name="truth")
def _truth() -> tuple[Migration, int]:
    host, records = golden("completed-slow")
    (found,) = boot_of(host, records).snapshot.migrations
    saved = found.downtime.times[Checkpoint.STATE_SAVED]
    return found, saved


@pytest.mark.parametrize("after_save", [-(10**9), 10_000])
def test_registers_alone_do_not_make_a_destination(
    truth: tuple[Migration, int], after_save: int
) -> None:
    """Also at the moment at which the real destination loads: the real one's clock overrules it."""
    real, saved = truth
    at = saved + after_save
    found = beside("completed-slow", events.VcpuState(at, 1, 999, 999, 0))
    assert found == real


def test_an_impostor_that_no_clock_refutes_makes_it_contested() -> None:
    """A guest that was paused before reads no clock when it is moved: the other VM may be the destination."""
    host, records = golden("paused-before")
    (real,) = boot_of(host, records).snapshot.migrations
    loaded = real.downtime.times[Checkpoint.DEVICES_LOADED]
    found = beside("paused-before", events.VcpuState(loaded - 1_000_000, 1, 999, 999, 0))
    assert found.contested
    assert found.incomplete


@pytest.mark.parametrize("error_ns", [1000, UNSYNCHRONISED_NS])
def test_an_impostor_on_another_host_is_not_joined(error_ns: int) -> None:
    """The source, its destination and the impostor each on a host of its own."""
    recording = Recording(SPOOFED)
    records = list(recording)
    hosts = [
        boot_of(
            host_of(f"host-{number}", f"boot-{number}", recording.host),
            [shifted(r, number * 10**12, error_ns) for r in only(records, {pid})],
        )
        for number, pid in enumerate(by_kernel())
    ]
    moved, impostor = join(hosts)
    source, destination, other = by_kernel()
    assert (moved.migration.pid, moved.migration.peer_pid) == (source, destination)
    assert moved.peer is not None
    assert moved.peer.name == "host-1"
    assert not moved.warnings
    assert (impostor.migration.pid, impostor.peer) == (other, None)
    assert any("another guest clock" in warning for warning in impostor.warnings)
