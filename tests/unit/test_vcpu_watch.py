# SPDX-License-Identifier: MIT
"""Whose vCPUs are followed, and until when."""

import os
from collections.abc import Mapping

from vftrace import events
from vftrace.collect import vcpus
from vftrace.collect.batch import Intake
from vftrace.collect.clock import boottime_ns
from vftrace.collect.vcpus import VcpuWatch
from vftrace.events import layout
from vftrace.host import threads
from vftrace.probes.vcpus import VcpuTotals
from vftrace.uapi import KVM_MEM_LOG_DIRTY_PAGES

PID, VCPU = 4_000_001, 4_000_003
"""No such processes: /proc has nothing of them."""


def totals(pid: int = PID) -> VcpuTotals:
    ns = tuple(100 if at == layout.VCPU_GUEST else 0 for at in range(16))
    return VcpuTotals(
        pid, 1000, 1100, layout.VCPU_QUEUE, ns, 7, 0, 0, 0, 0, 0, 0, 0, 0, (0,) * layout.VCPU_WAITS
    )


class Probes:
    """Stands for `VcpuProbes`: keeps the followed processes and the states of their vCPUs."""

    def __init__(self) -> None:
        self.now: dict[int, Mapping[int, tuple[int, bool]]] = {}
        self.read_ns = 0

    def watch(self, pid: int, now_ns: int, states: Mapping[int, tuple[int, bool]]) -> int:
        assert now_ns
        self.now[pid] = states
        return 7

    def unwatch(self, pid: int) -> None:
        del self.now[pid]

    def totals(self) -> dict[int, VcpuTotals]:
        self.read_ns = boottime_ns()
        return {pid + 2: totals(pid) for pid in self.now}

    def detach_unused(self) -> None:
        pass


class Bench:
    def __init__(self) -> None:
        self.probes, self.intake = Probes(), Intake()
        self.watch = VcpuWatch(self.intake, self.probes)  # type: ignore[arg-type]
        self.now = boottime_ns()

    def vcpu(self, number: int = 3) -> None:
        self.watch.see(events.VcpuCreated(self.now, 0, PID, VCPU, 9, number))

    def runs(self) -> None:
        self.watch.see(events.Run(self.now, 0, PID, VCPU, 0))

    def region(self, flags: int) -> None:
        self.watch.see(events.Region(self.now - 10**9, 0, PID, PID + 1, 0, flags, 0, 4096, 0, 0))

    def page(self, op: int) -> None:
        self.watch.see(events.Userfault(self.now - 10**9, 0, PID, PID, 1, 4096, op, 0))

    def samples(self) -> list[events.VcpuTime]:
        return [e for e in self.intake.drain().events if isinstance(e, events.VcpuTime)]


def test_a_source_is_followed_until_logging_is_off() -> None:
    bench = Bench()
    bench.vcpu()
    bench.watch.migrates(PID, destination=False)
    assert set(bench.probes.now[PID]) == {VCPU}
    bench.region(KVM_MEM_LOG_DIRTY_PAGES)
    bench.watch.tick()
    assert bench.probes.now
    bench.region(0)
    bench.watch.tick()
    assert not bench.probes.now


def test_a_destination_is_followed_for_a_second_after_it_runs() -> None:
    bench = Bench()
    bench.vcpu()
    bench.watch.migrates(PID, destination=True)
    bench.watch.tick()
    assert bench.probes.now
    bench.now -= 2 * 10**9
    bench.runs()
    bench.watch.tick()
    assert not bench.probes.now


def test_in_postcopy_a_destination_is_followed_until_its_memory_is_there() -> None:
    bench = Bench()
    bench.vcpu()
    bench.watch.migrates(PID, destination=True)
    bench.page(events.Userfault.UNREGISTER)  # QEMU's own trial, before
    bench.runs()
    bench.page(events.Userfault.COPY)
    bench.watch.tick()
    assert bench.probes.now
    bench.page(events.Userfault.UNREGISTER)
    bench.watch.tick()
    assert not bench.probes.now


def test_samples_show_which_vcpu_it_is_and_count_the_present_state() -> None:
    bench = Bench()
    bench.vcpu(number=3)
    bench.watch.migrates(PID, destination=False)
    bench.watch.tick()
    (sample,) = bench.samples()
    assert (sample.pid, sample.thread, sample.vcpu, sample.exits) == (PID, VCPU, 3, 7)
    assert sample.guest_ns == 100
    assert sample.queue_ns == sample.until_ns - 1100 > 0


def test_the_present_state_counts_no_longer_than_until_it_was_read() -> None:
    bench = Bench()
    bench.vcpu()
    bench.watch.migrates(PID, destination=True)
    for write in (bench.watch.tick, bench.runs, bench.watch.close):
        write()
        (sample,) = bench.samples()
        assert 1100 < sample.until_ns <= bench.probes.read_ns


def test_the_last_sample_is_written_when_it_is_over() -> None:
    bench = Bench()
    bench.watch.migrates(PID, destination=False)
    bench.watch.close()
    assert len(bench.samples()) == 1
    assert not bench.probes.now


def test_a_process_that_ends_is_forgotten() -> None:
    bench = Bench()
    bench.watch.migrates(PID, destination=False)
    bench.watch.see(events.Exit(bench.now, 0, PID, PID, 0, 0, 0))
    assert not bench.probes.now


def test_how_it_ran_before_is_written_when_it_begins_to_migrate() -> None:
    bench = Bench()
    own = os.getpid()
    bench.watch.meet(own, [own])
    bench.watch.migrates(own, destination=False)
    (before,) = [e for e in bench.intake.drain().events if isinstance(e, events.VcpuBaseline)]
    assert (before.pid, before.thread, before.vcpu) == (own, own, vcpus.NO_NUMBER)
    assert 0 < before.until_ns - before.from_ns < 10**9
    assert min(before.guest_ns, before.user_ns, before.system_ns, before.queue_ns) >= 0


def test_a_threads_use_is_read_from_proc() -> None:
    own = os.getpid()
    use = threads.use_of(own, own)
    assert use is not None
    assert use.user_ns > 0
    assert use.guest_ns == 0
    assert threads.use_of(PID, VCPU) is None


def test_a_thread_in_another_call_is_not_inside() -> None:
    own = os.getpid()
    assert threads.in_kvm_run(own, own) == (False, True)
    assert threads.in_kvm_run(PID, VCPU) == (False, False)
