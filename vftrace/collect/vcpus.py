# SPDX-License-Identifier: MIT
"""Decides whose vCPUs are followed and when, and writes where their time goes.

A source is followed from the time at which it logs dirty pages. A destination is followed from the time at which it
receives, until it has run for a second, or in postcopy until it has all pages. How a vCPU spent its time before is read
from /proc, so seldom that it costs almost nothing.
"""

from collections import deque

import msgspec

from vftrace import events
from vftrace.collect.batch import Intake
from vftrace.collect.clock import boottime_ns
from vftrace.events import Event, layout
from vftrace.events.layout import Kind
from vftrace.host import threads
from vftrace.probes.vcpus import VcpuProbes, VcpuTotals
from vftrace.uapi import KVM_MEM_LOG_DIRTY_PAGES

LOOK_EVERY_NS = 60_000_000_000
"""The interval of reading /proc for each VM's vCPUs, which takes 20 us for each vCPU."""
MAX_LOOKED_AT = 16
"""How many vCPUs of one VM are read; of more, only the first ones."""
LEAST_BASELINE_NS = 10_000_000_000
"""If the last look is more recent than this, the baseline begins with the look before."""

SAMPLED_AT_ONCE = 8
"""How many vCPUs have their totals written at every tick; if there are more, at every second tick, and so on."""

QUIET_NS = 30_000_000_000
"""Following a process ends after this time without any sign of a migration."""
AFTER_OFF_NS = 500_000_000
"""Following ends this long after logging was switched off, and after all pages of postcopy have arrived."""
AFTER_RUN_NS = 1_000_000_000
"""Following ends this long after a destination began to run, unless it is in postcopy."""

AFTER_PAGE_NS = 10_000_000_000
"""Following ends this long after the last page of postcopy: its channel may break and recover."""

LOOKED_AT = frozenset({Kind.VCPU_CREATED, Kind.REGION, Kind.RUN, Kind.CLOCK, Kind.UFFD, Kind.EXIT})
"""Kinds of records whose events `VcpuWatch.see` needs; for other kinds the time is enough (`sign`)."""

NO_NUMBER = 0xFFFF_FFFF
"""The number of a vCPU that is not known."""

Look = dict[int, threads.ThreadUse]
"""By thread."""


class _Vm(msgspec.Struct):
    """A VM's vCPUs: their numbers by thread, and the last two looks, each with its time."""

    numbers: dict[int, int] = msgspec.field(default_factory=dict)
    looks: deque[tuple[int, Look]] = msgspec.field(default_factory=lambda: deque(maxlen=2))


class _Followed(msgspec.Struct):
    """A process whose vCPUs are followed."""

    destination: bool
    sign_ns: int
    ends_ns: int | None = None
    runs: bool = False
    """Whether a destination runs its guest."""


class VcpuWatch:
    """Follows the vCPUs of VMs that migrate."""

    def __init__(self, intake: Intake, probes: VcpuProbes) -> None:
        self._intake = intake
        self._probes = probes
        self._vms: dict[int, _Vm] = {}
        self._due: deque[tuple[int, int]] = deque()
        """When to look at each process again, in order."""
        self._followed: dict[int, _Followed] = {}
        self._ticks = 0

    def meet(self, pid: int, tids: list[int]) -> None:
        """Note a VM, with these threads inside KVM_RUN."""
        vm = self._vm(pid)
        for tid in tids:
            vm.numbers.setdefault(tid, NO_NUMBER)
        self._look(pid, vm, boottime_ns())

    def migrates(self, pid: int, *, destination: bool) -> None:
        """Note that a VM begins to migrate."""
        now = boottime_ns()
        followed = self._followed.get(pid)
        if followed is not None:
            followed.sign_ns, followed.ends_ns = now, None
            return
        vm = self._vm(pid)
        states = {tid: _state_of(pid, tid) for tid in vm.numbers}
        if self._probes.watch(pid, now, states) is None:
            return
        self._followed[pid] = _Followed(destination, now)
        if not destination:
            self._write_baseline(pid, vm, now)

    def see(self, event: Event) -> None:
        """Look at an event of the kernel side."""
        pid = event.tgid
        match event:
            case events.VcpuCreated():
                vm = self._vm(pid)
                if event.tid != pid:
                    vm.numbers[event.tid] = event.vcpu_id
            case events.Run():
                self._vm(pid).numbers.setdefault(event.tid, NO_NUMBER)
                self._runs(event)
            case events.Exit():
                self.forget(pid)
        followed = self._followed.get(pid)
        if followed is None:
            return
        followed.sign_ns = event.at_ns
        if isinstance(event, events.Clock):
            # The guest has stopped, or is about to run: write a sample now, because times between samples are
            # interpolated.
            self._write_of(pid)
        elif isinstance(event, events.Region):
            if event.flags & KVM_MEM_LOG_DIRTY_PAGES:
                followed.ends_ns = None
            elif not followed.destination and not event.ret:
                followed.ends_ns = event.at_ns + AFTER_OFF_NS
        elif isinstance(event, events.Userfault) and followed.runs:
            # QEMU registers and unregisters a page of its own before, to find out whether the kernel supports it.
            gone = event.op == events.Userfault.UNREGISTER
            followed.ends_ns = event.at_ns + (AFTER_OFF_NS if gone else AFTER_PAGE_NS)

    def sign(self, pid: int, at_ns: int) -> None:
        """Note a record of a process: if the process is followed, it still migrates."""
        followed = self._followed.get(pid)
        if followed is not None:
            followed.sign_ns = at_ns

    def forget(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._unfollow(pid)
        self._vms.pop(pid, None)

    def tick(self) -> None:
        """Write samples, stop following processes whose migration is over, and read the other VMs' vCPUs at
        intervals."""
        now = boottime_ns()
        self._ticks += 1
        if self._followed:
            # A state that was read counts until the time taken before: the vCPU may have left it since it was read.
            totals = self._probes.totals()
            if self._ticks % max(1, len(totals) // SAMPLED_AT_ONCE) == 0:
                self._write(totals, now)
        for pid, followed in list(self._followed.items()):
            due = followed.ends_ns is not None and followed.ends_ns <= now
            if due or now - followed.sign_ns > QUIET_NS:
                self._unfollow(pid)
        self._probes.detach_unused()
        while self._due and self._due[0][0] <= now:
            pid = self._due.popleft()[1]
            vm = self._vms.get(pid)
            if vm is not None:
                if pid not in self._followed:
                    self._look(pid, vm, now)
                self._due.append((now + LOOK_EVERY_NS, pid))

    def close(self) -> None:
        """Stop following all processes."""
        for pid in list(self._followed):
            self._unfollow(pid)

    def _vm(self, pid: int) -> _Vm:
        vm = self._vms.get(pid)
        if vm is None:
            vm = self._vms[pid] = _Vm()
            self._due.append((boottime_ns() + LOOK_EVERY_NS, pid))
        return vm

    def _runs(self, event: events.Run) -> None:
        vm = self._vms[event.tgid]
        if not vm.looks:
            self._look(event.tgid, vm, boottime_ns())
        followed = self._followed.get(event.tgid)
        if followed is not None and followed.destination and not followed.runs:
            followed.runs = True
            followed.ends_ns = event.at_ns + AFTER_RUN_NS
            self._write_of(event.tgid)

    def _unfollow(self, pid: int) -> None:
        if self._followed.pop(pid, None) is None:
            return
        self._write_of(pid)
        self._probes.unwatch(pid)

    # -- how it was before ----------------------------------------------------------------------

    def _look(self, pid: int, vm: _Vm, now: int) -> None:
        look = _look(pid, vm)
        if look:
            vm.looks.append((now, look))

    def _write_baseline(self, pid: int, vm: _Vm, now: int) -> None:
        """Write how the vCPUs spent the time since the last look, or since the look before if the last is too
        recent."""
        if not vm.looks:
            return
        recent = now - vm.looks[-1][0] < LEAST_BASELINE_NS
        since, before = vm.looks[0 if recent else -1]
        for tid, use in _look(pid, vm).items():
            if tid in before:
                self._intake.write(
                    events.VcpuBaseline,
                    pid=pid,
                    thread=tid,
                    vcpu=vm.numbers.get(tid, NO_NUMBER),
                    from_ns=since,
                    until_ns=now,
                    guest_ns=use.guest_ns - before[tid].guest_ns,
                    user_ns=use.user_ns - before[tid].user_ns,
                    system_ns=use.system_ns - before[tid].system_ns,
                    queue_ns=use.queue_ns - before[tid].queue_ns,
                )

    # -- where the time goes --------------------------------------------------------------------

    def _write_of(self, pid: int) -> None:
        now = boottime_ns()
        self._write({t: v for t, v in self._probes.totals().items() if v.pid == pid}, now)

    def _write(self, totals: dict[int, VcpuTotals], now: int) -> None:
        for tid, each in totals.items():
            if each.pid not in self._vms:
                continue
            until, ns = each.until(now)
            self._intake.write(
                events.VcpuTime,
                begun_ns=each.begun_ns,
                until_ns=until,
                guest_ns=ns[layout.VCPU_GUEST],
                idle_ns=ns[layout.VCPU_IDLE],
                fault_ns=ns[layout.VCPU_FAULT],
                exit_ns=ns[layout.VCPU_EXIT],
                user_ns=ns[layout.VCPU_USER],
                queue_ns=ns[layout.VCPU_QUEUE],
                throttle_ns=ns[layout.VCPU_THROTTLE],
                limit_ns=ns[layout.VCPU_LIMIT],
                ring_ns=ns[layout.VCPU_RING],
                stopped_ns=ns[layout.VCPU_STOPPED],
                unknown_ns=ns[layout.VCPU_UNKNOWN],
                exits=each.exits,
                faults=each.faults,
                ring_full=each.ring_full,
                waits=each.waits,
                wait_ns=each.wait_ns,
                longest_wait_ns=each.longest_wait_ns,
                held_from_ns=each.held_from_ns,
                held_until_ns=each.held_until_ns,
                pid=each.pid,
                thread=tid,
                vcpu=self._vms[each.pid].numbers.get(tid, NO_NUMBER),
                held_state=each.held_state,
                wait=each.wait,
            )


def _look(pid: int, vm: _Vm) -> Look:
    found = {}
    for tid in list(vm.numbers)[:MAX_LOOKED_AT]:
        use = threads.use_of(pid, tid)
        if use is not None:
            found[tid] = use
    return found


def _state_of(pid: int, tid: int) -> tuple[int, bool]:
    """Return a vCPU's present state (bpf/wire.h), and whether it sleeps."""
    inside, asleep = threads.in_kvm_run(pid, tid)
    if not inside:
        return layout.VCPU_STOPPED, asleep
    return (layout.VCPU_IDLE if asleep else layout.VCPU_EXIT), asleep
