# SPDX-License-Identifier: MIT
"""The probes of vCPUs: a BPF object of their own, attached only while a VM migrates, for the vCPUs of that VM only."""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from vftrace.events import layout
from vftrace.model.host import ProbeStatus
from vftrace.probes.on_demand import OnDemand
from vftrace.probes.registry import VCPUS

_STATES, _WAITS = 16, 32
_VCPU = struct.Struct(f"=QQQQ{_STATES}QQQQQQQQQ{_WAITS}IIIIIBBBBB3x")
"""STATES, WAITS and struct vcpu of bpf/vcpu.h."""
_VM = bytes(8)
"""struct watched_vm."""
_TORN = 3
"""How often an entry that changed while it was read is read again."""


class VcpuTotals(msgspec.Struct, frozen=True):
    """The kernel side's totals of one thread: its times by state; the present state counts only until
    `since_ns`."""

    pid: int
    begun_ns: int
    since_ns: int
    state: int
    ns: tuple[int, ...]
    exits: int
    faults: int
    ring_full: int
    waits: int
    wait_ns: int
    longest_wait_ns: int
    held_from_ns: int
    held_until_ns: int
    held_state: int
    wait: tuple[int, ...]

    def until(self, now_ns: int) -> tuple[int, tuple[int, ...]]:
        """Return up to when the times count, and these with the present state counted until then. `now_ns`: a time
        before the totals were read."""
        until = max(now_ns, self.since_ns)
        ns = list(self.ns)
        if self.state < _STATES:
            ns[self.state] += until - self.since_ns
        return until, tuple(ns)


class VcpuProbes:
    """Follows the vCPUs of the named processes. vftrace works without these probes: `status` has the reason if one
    cannot be attached."""

    def __init__(self, first: Any) -> None:
        """Load the programs. `first`: the BPF object whose ring buffer is used."""
        self._probes = OnDemand(VCPUS, "vcpu.bpf.c", first)
        self._watched: set[int] = set()

    @property
    def status(self) -> ProbeStatus:
        """How the probes are attached now."""
        return self._probes.status

    @property
    def loaded(self) -> Any:
        """The BPF object; None if it cannot be loaded."""
        return self._probes.bpf

    @property
    def cached(self) -> tuple[bool, ...]:
        """Whether the programs came from the cache; empty without programs."""
        return self._probes.cached

    def watch(self, pid: int, now_ns: int, states: Mapping[int, tuple[int, bool]]) -> int | None:
        """Follow the vCPUs of a process from now on. `states`: by thread, its present state, and whether it sleeps.

        Other vCPUs are added when they enter the guest. Returns how long attaching took, ns; None if
        the process cannot be followed.
        """
        if self._probes.bpf is None:
            return None
        if pid in self._watched:
            return 0
        try:
            self._probes.bpf.raw("watched_vms").set(_u32(pid), _VM)
            vcpus = self._probes.bpf.raw("vcpus")
            for tid, (state, asleep) in states.items():
                vcpus.set(_u32(tid), _fresh(pid, now_ns, state, asleep=asleep))
        except OSError:  # the table is full
            self._forget(pid)
            return None
        self._watched.add(pid)
        took = self._probes.attach()
        if took is None:
            self.unwatch(pid)
        return took

    def unwatch(self, pid: int) -> None:
        """Stop following the vCPUs of a process."""
        if pid in self._watched:
            self._watched.discard(pid)
            self._forget(pid)
            self._probes.left()

    def totals(self) -> dict[int, VcpuTotals]:
        """Return by thread the totals of all followed vCPUs."""
        if not self._watched:
            return {}
        table = self._probes.bpf.raw("vcpus")
        found = {}
        for key, value in table.items():
            totals = _totals(value)
            for _ in range(_TORN):
                if sum(totals.ns) == totals.since_ns - totals.begun_ns:
                    break
                again = table.get(key)
                totals = totals if again is None else _totals(again)
            found[int.from_bytes(key, "little")] = totals
        return found

    def detach_unused(self) -> None:
        """Detach the probes if no process has been followed for a while."""
        self._probes.detach_unused(used=bool(self._watched))

    def close(self) -> None:
        """Detach everything."""
        self._probes.close()
        self._watched.clear()

    def _forget(self, pid: int) -> None:
        self._probes.bpf.raw("watched_vms").delete([_u32(pid)])
        vcpus = self._probes.bpf.raw("vcpus")
        vcpus.delete([key for key, value in vcpus.items() if _totals(value).pid == pid])


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


def _fresh(pid: int, now_ns: int, state: int, *, asleep: bool) -> bytes:
    zeroes: Iterable[int] = (0,) * (2 + _STATES + 8 + _WAITS)
    back = layout.VCPU_EXIT if state == layout.VCPU_IDLE else layout.VCPU_USER
    return _VCPU.pack(now_ns, now_ns, *zeroes, pid, state, back, 0, asleep, 0, 0, 0, asleep)


def _totals(value: bytes) -> VcpuTotals:
    begun, since, _, _, *rest = _VCPU.unpack(value)
    ns, rest = rest[:_STATES], rest[_STATES:]
    counts, rest = rest[:8], rest[8:]
    wait, (pid, state, _, held_state, *_) = rest[:_WAITS], rest[_WAITS:]
    exits, faults, ring_full, waits, wait_ns, longest, held_from, held_until = counts
    return VcpuTotals(
        pid=pid,
        begun_ns=begun,
        since_ns=since,
        state=state,
        ns=tuple(ns),
        exits=exits,
        faults=faults,
        ring_full=ring_full,
        waits=waits,
        wait_ns=wait_ns,
        longest_wait_ns=longest,
        held_from_ns=held_from,
        held_until_ns=held_until,
        held_state=held_state,
        wait=tuple(wait[: layout.VCPU_WAITS]),
    )
