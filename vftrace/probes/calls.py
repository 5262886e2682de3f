# SPDX-License-Identifier: MIT
"""The probes of system calls: a BPF object of their own, attached only while a VM migrates, for that VMM only."""

import ctypes
import platform
import struct
import time
from collections.abc import Iterable
from itertools import pairwise
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

_CALLER = struct.Struct("=8Q5I8B")
"""struct caller of bpf/calls.h, without its kinds."""

_TID, _TRACED, _NUMBER = 9, 10, 11
_NO_FD = 0xFFFFFFFF << 32

MAX_TRACED, MAX_CHAIN, BUCKETS, MAX_CALLERS = 1024, 8, 4096, 16384
"""The sizes of the tables in bpf/calls.h."""

_SETTLED_NS = 20_000_000
"""The age of a sum's last call after which the sum, of 10 ms, gets no further call."""


class CallProbes:
    """Traces the calls of the named processes only. vftrace works without these probes: `status` has the reason if one
    cannot be attached."""

    def __init__(self, first: Any) -> None:
        """Load the programs. `first`: the BPF object whose ring buffer is used."""
        self._probes = OnDemand(CALLS, "calls.bpf.c", first)
        self._traced: dict[int, int] = {}
        """By process: its entry in `traced`."""
        self._chains: dict[int, list[int]] = {}
        """By the last bits of a tgid: the entries of the processes that have them."""
        self._numbers: dict[int, int] = {}
        """The number of each entry that is in use."""
        self._number = 0
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
        index = next((i for i in range(1, MAX_TRACED) if i not in self._numbers), None)
        chain = self._chains.setdefault(pid % BUCKETS, [])
        if index is None or len(chain) == MAX_CHAIN:
            return None
        self._number += 1
        table = self._bpf["traced"]
        table[index] = table.Leaf(always=always, tgid=pid, number=self._number, index=index)
        chain.append(index)
        self._write_chain(pid)
        self._traced[pid] = index
        self._numbers[index] = self._number
        took = self._probes.attach()
        if took is None:
            self.untrace(pid)
        return took

    def mark_running(self, pid: int, tids: Iterable[int]) -> None:
        """Note the threads that have been inside KVM_RUN since before they were traced."""
        index = self._traced.get(pid)
        if index is None:
            return
        traced = self._bpf["traced"]
        marked = sum(self._mark_running(index, tid) for tid in tids)
        if marked:
            entry = traced[index]
            entry.running += marked
            traced[index] = entry

    def _mark_running(self, index: int, tid: int) -> bool:
        """Make the entry of a thread in KVM_RUN; returns whether it had none and there was room."""
        callers = self._bpf.raw("callers")
        number = self._numbers[index]
        places = [struct.pack("=I", place) for place in places_of(tid)]
        found = [_CALLER.unpack_from(callers.get(place)) for place in places]
        owners = [(each[_TID], each[_NUMBER]) for each in found]
        if (tid, number) in owners:
            return False
        for place, each in zip(places, found, strict=True):
            if not each[_NUMBER] or self._numbers.get(each[_TRACED]) != each[_NUMBER]:
                call = NUMBERS[platform.machine()]["SYS_IOCTL"] | _NO_FD
                in_call, in_run = 1, 1
                head = _CALLER.pack(
                    *(0, 0, 0, 0, 0, 0, call, 0),
                    *(KVM_RUN, tid, index, number, 0),
                    *(in_call, in_run, 0, 0, 0, 0, 0, 0),
                )
                callers.set(place, head)
                return True
        return False

    def _write_chain(self, pid: int) -> None:
        """Let the kernel side find the processes whose tgid has the same last bits."""
        bucket = pid % BUCKETS
        chain = [*self._chains[bucket], 0]
        # From the end, so that each entry that can be found leads to the next one.
        for before, index in reversed([*pairwise(chain)]):
            self._bpf["traced_next"][before] = ctypes.c_uint32(index)
        self._bpf["traced_first"][bucket] = ctypes.c_uint32(chain[0])
        if not self._chains[bucket]:
            del self._chains[bucket]

    def untrace(self, pid: int) -> None:
        """Stop tracing a process."""
        if pid not in self._traced:
            return
        self._take_sums(pid)
        index = self._traced.pop(pid)
        del self._numbers[index]
        self._chains[pid % BUCKETS].remove(index)
        self._write_chain(pid)
        self._bpf["traced"][index] = self._bpf["traced"].Leaf()
        self._bpf.raw("deleted_sums").delete([struct.pack("=I", pid)])
        self._deleted.pop(pid, None)
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
        traced = self._bpf["traced"]
        return {pid: traced[index].missed for pid, index in self._traced.items()}

    def close(self) -> None:
        """Detach everything."""
        self._probes.close()
        self._traced.clear()
        self._numbers.clear()

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


def places_of(tid: int) -> tuple[int, int]:
    """Return the two places that a thread may have in `callers` (place_of in bpf/calls.h)."""
    return tid % MAX_CALLERS, (tid * 0x9E3779B1 & 0xFFFFFFFF) >> 16 & MAX_CALLERS - 1


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _record(key: bytes, value: bytes) -> bytes:
    """Return a record as bpf/calls.h sends it, without a number of its own."""
    tgid, thread, nr, cmd, fd = _SUM_KEY.unpack(key)
    start, end, ns, longest, sleep, queue, ret, count = _SUM.unpack(value)
    head = (end, 0, _RECORD.size, Kind.CALL, 0, tgid, thread)
    body = (start, end, ns, longest, sleep, queue, ret, tgid, thread, nr, cmd, fd, count)
    return _RECORD.pack(*head, *body)
