# SPDX-License-Identifier: MIT
"""Keeps the VMs of a host that waited for a migration, and the times at which their VMMs could listen for it."""

from msgspec.structs import replace

from vftrace import events
from vftrace.events import Event
from vftrace.model.report import WaitingVm

_TICK_NS = 10_000_000
"""USER_HZ is 100 in the uAPI of every architecture that has KVM (Process.start_time counts these)."""


class WaitingVms:
    """Takes the events of one host in order of time."""

    def __init__(self) -> None:
        self._made_ns: dict[int, int] = {}
        """By pid: when the latest vCPU was made before any vCPU ran."""
        self._incoming: set[int] = set()
        self._ran: set[int] = set()
        self._waiting: dict[int, WaitingVm] = {}
        self._gone: list[WaitingVm] = []

    @property
    def ready_at_ns(self) -> dict[int, int]:
        """Return by pid when the last vCPU was made, for VMs that QEMU's `-incoming` makes destinations.

        QEMU listens once its machine is made (softmmu/vl.c, qmp_x_exit_preconfig). Cloud Hypervisor listens first
        and makes its vCPUs when the state arrives.
        """
        return {pid: at for pid, at in self._made_ns.items() if pid in self._incoming}

    def found(self) -> tuple[WaitingVm, ...]:
        """Return the VMs that were started as destinations and never ran."""
        return (*self._gone, *(self._as_ready(vm) for vm in self._waiting.values()))

    def feed(self, event: Event) -> None:
        """Take one event."""
        match event:
            case events.VcpuCreated() if event.tgid not in self._ran:
                self._made_ns[event.tgid] = event.at_ns
            case events.Run():
                # A vCPU that is made after the VM ran was plugged later.
                self._ran.add(event.tgid)
                self._waiting.pop(event.tgid, None)
            case events.VcpuState():
                vm = self._waiting.get(event.tgid)
                if vm is not None:
                    self._waiting[event.tgid] = replace(vm, registers_set_ns=event.at_ns)
            case events.Process():
                self._identified(event)
            case events.Gone():
                self._end(event.pid, event.at_ns)
            case events.Exit():
                self._ran.discard(event.tgid)
                self._end(event.tgid, event.at_ns)
            case _:
                pass

    def _identified(self, event: events.Process) -> None:
        if event.late:
            self._made_ns.setdefault(event.pid, event.start_time * _TICK_NS)
        if not event.incoming:
            self._incoming.discard(event.pid)
            return
        self._incoming.add(event.pid)
        if not event.running and event.pid not in self._ran:
            vm = WaitingVm(event.pid, event.uuid, event.at_ns, None)
            self._waiting.setdefault(event.pid, vm)

    def _as_ready(self, vm: WaitingVm) -> WaitingVm:
        return replace(vm, ready_at_ns=self._made_ns.get(vm.pid, vm.ready_at_ns))

    def _end(self, pid: int, at_ns: int) -> None:
        vm = self._waiting.pop(pid, None)
        if vm is not None:
            self._gone.append(replace(self._as_ready(vm), ended_at_ns=at_ns))
