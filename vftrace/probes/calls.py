# SPDX-License-Identifier: MIT
"""The probes of system calls: a BPF object of their own, attached only while a VM migrates, for that VMM only."""

import ctypes
import platform
import struct
import time
from collections.abc import Iterable
from typing import Any

from vftrace.events import layout
from vftrace.events.layout import Kind
from vftrace.model.host import ProbeStatus
from vftrace.probes.machine import NUMBERS
from vftrace.probes.on_demand import OnDemand
from vftrace.probes.registry import CALLS
from vftrace.uapi import KVM_RUN

_SUM_KEY = struct.Struct("=IIIIi4x")
_SUM = struct.Struct("=QQQQQQqQ")
_RECORD = struct.Struct("=" + layout.HEADER[0] + layout.BODIES[Kind.CALL][0])
"""struct sum_key and struct sum of bpf/calls.h; struct vft_call of bpf/wire.h."""

_SETTLED_NS = 20_000_000
"""The age of a sum's last call after which the sum, of 10 ms, gets no further call."""


class CallProbes:
    """Traces the calls of the named processes only. vftrace works without these probes: `status` has the reason if one
    cannot be attached."""

    def __init__(self, first: Any) -> None:
        """Load the programs. `first`: the BPF object whose ring buffer is used."""
        self._probes = OnDemand(CALLS, "calls.bpf.c", first)
        self._traced: set[int] = set()
        self._deleted: dict[int, int] = {}

    @property
    def _bpf(self) -> Any:
        return self._probes.bpf

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

    @property
    def traced(self) -> frozenset[int]:
        """The processes whose calls are traced."""
        return frozenset(self._traced)

    def trace(self, pid: int, *, always: bool) -> int | None:
        """Trace a process from now on, `always` or only while no thread of it is in KVM_RUN.

        Returns how long attaching took, ns, 0 if the probes were attached; None if the process cannot be traced. Call
        `mark_running` afterwards for the threads that are in KVM_RUN already.
        """
        if self._bpf is None:
            return None
        if pid in self._traced:
            return 0
        table = self._bpf["traced"]
        entry = table.Leaf()
        entry.always = always
        try:
            table[ctypes.c_uint32(pid)] = entry
        except OSError:  # the table is full
            return None
        self._traced.add(pid)
        took = self._probes.attach()
        if took is None:
            self.untrace(pid)
        return took

    def mark_running(self, pid: int, tids: Iterable[int]) -> None:
        """Note the threads that have been inside KVM_RUN since before they were traced."""
        callers, traced = self._bpf["callers"], self._bpf["traced"]
        marked = 0
        for tid in tids:
            key = ctypes.c_uint32(tid)
            if key in callers:
                continue
            caller = callers.Leaf()
            caller.tgid, caller.in_run = pid, 1
            caller.nr, caller.cmd = NUMBERS[platform.machine()]["SYS_IOCTL"], KVM_RUN
            callers[key] = caller
            marked += 1
        key = ctypes.c_uint32(pid)
        if marked and key in traced:
            entry = traced[key]
            entry.running += marked
            traced[key] = entry

    def untrace(self, pid: int) -> None:
        """Stop tracing a process."""
        if pid not in self._traced:
            return
        self._take_sums(pid)
        self._traced.discard(pid)
        for name in ("traced", "deleted_sums"):
            self._bpf.raw(name).delete([struct.pack("=I", pid)])
        self._deleted.pop(pid, None)
        at = self._bpf["callers"].Leaf.tgid.offset
        callers = self._bpf.raw("callers")
        callers.delete([key for key, value in callers.items() if _u32(value, at) == pid])
        self._probes.left()

    def detach_unused(self) -> None:
        """Detach the probes if no process has been traced for a while."""
        self._probes.detach_unused(used=bool(self._traced))

    def settled(self, pid: int | None = None) -> list[bytes]:
        """Return the complete sums of short calls, as records; all sums of `pid` if it is given.

        A call that its thread adds to such a sum at the same moment is lost.
        """
        return self._take_sums(pid) if self._traced else []

    def missed(self) -> dict[int, int]:
        """Return for each process the number of calls that were not recorded so far, because there were too many."""
        if not self._traced:
            return {}
        at = self._bpf["traced"].Leaf.missed.offset
        return {
            _u32(key, 0): int.from_bytes(value[at : at + 8], "little")
            for key, value in self._bpf.raw("traced").items()
        }

    def close(self) -> None:
        """Detach everything."""
        self._probes.close()
        self._traced.clear()

    def _take_sums(self, pid: int | None) -> list[bytes]:
        """Delete sums and return them as records: all sums of one process, or the complete sums of all processes."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        table = self._bpf.raw("sums")
        found = []
        for key, value in list(table.items()):
            tgid = _u32(key, 0)
            ended = int.from_bytes(value[8:16], "little")
            if tgid != pid and (pid is not None or now - ended < _SETTLED_NS):
                continue
            last = table.take(key)
            value = value if last is None else last
            if last is None:
                table.delete([key])
            found.append(_record(key, value))
            self._deleted[tgid] = self._deleted.get(tgid, 0) + 1
        for tgid, count in self._deleted.items():
            self._bpf["deleted_sums"][ctypes.c_uint32(tgid)] = ctypes.c_uint64(count)
        return found


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _record(key: bytes, value: bytes) -> bytes:
    """Return a record as bpf/calls.h sends it, without a number of its own."""
    tgid, thread, nr, cmd, fd = _SUM_KEY.unpack(key)
    start, end, ns, longest, sleep, queue, ret, count = _SUM.unpack(value)
    head = (end, 0, _RECORD.size, Kind.CALL, 0, tgid, thread)
    body = (start, end, ns, longest, sleep, queue, ret, tgid, thread, nr, cmd, fd, count)
    return _RECORD.pack(*head, *body)
