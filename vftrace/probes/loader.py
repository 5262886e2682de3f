# SPDX-License-Identifier: MIT
"""Loads and attaches the probes, and reads their records."""

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

from vftrace import events
from vftrace.errors import MachineError
from vftrace.mailbox.driver import Drivers
from vftrace.mailbox.drivers import DRIVERS
from vftrace.model.host import ProbeStatus
from vftrace.probes import btf, kernel, proof
from vftrace.probes.attach import attach_all, detach_all, first_line, programs
from vftrace.probes.bcc.process import package
from vftrace.probes.bpf.events import remove_left_over
from vftrace.probes.bpf.object import Object
from vftrace.probes.bpf.ring import RingBuffer, RingReader
from vftrace.probes.calls import CallProbes
from vftrace.probes.mailbox import MailboxProbes
from vftrace.probes.missed import MissedRuns
from vftrace.probes.module_watcher import ModuleProbes, instance
from vftrace.probes.programs import compiled
from vftrace.probes.registry import (
    BY_NAME,
    CALLS,
    CHANNEL,
    DIRTY_RING,
    FENTRY,
    IOCTL,
    KPROBE,
    KVM_FUNCTIONS,
    MAILBOX,
    NO_KVM,
    PROBES,
    PROCESS,
    TRACEPOINT,
    VCPUS,
    VFIO,
    VFIO_DATA,
    WAITS,
    Probe,
    Way,
    probe_of,
    status_of,
)
from vftrace.probes.tables import Tables
from vftrace.probes.vcpus import VcpuProbes
from vftrace.probes.vfio import VfioProbes
from vftrace.uapi import KVM_RUN, PAGE_SIZE

EVENT_BYTES = 8 << 20
"""Size of the ring buffer for everything but bitmaps: 200 migrations and 1,000 idle VMs fill it in 20 s."""

BULK_BYTES = 16 << 20
"""The smallest ring buffer for bitmaps."""

VM_BYTES, LEAST_VMS, MOST_VMS = 32 << 20, 1 << 14, 1 << 17
"""Memory of the smallest VM that a host is full of, and how many a host's tables have room for."""

FIRST_WATCHED = 1 << 31
"""The first id of the VMs that the collector watches; the kernel side (struct vm) counts from 0."""

RINGS = ("events", "bulk")
"""The ring buffers of the first object, in the order in which they are read."""

_WALKERS = {
    FENTRY: ("fexit__kvm_device_ioctl", Object.TRACING),
    KPROBE: ("walk", Object.KPROBE),
    TRACEPOINT: ("walk", Object.TRACEPOINT),
}
"""For each way: the tail-called program, and its type, which must be the type of its callers."""

_PAGE = os.sysconf("SC_PAGESIZE")


class Probes:
    """The attached probes and their ring buffers. Use as a context manager."""

    def __init__(
        self,
        on_record: Callable[[bytes], None],
        way: str | None = None,
        drivers: Drivers = DRIVERS,
        guest_memory: int | None = None,
    ) -> None:
        """`on_record` gets each record's bytes; `way` forces one way to attach; `drivers` limit how much of a
        mailbox's messages may leave the kernel. Dirty logs of `guest_memory` bytes of guests (the host's memory where
        not given) set the size of the ring buffer for bitmaps.

        Raises MachineError if a needed probe cannot be attached.
        """
        kernel.require_bpf()
        kernel.tracefs()
        self._on_record = on_record
        self._guest_memory = _memory() if guest_memory is None else guest_memory
        package()
        remove_left_over()
        self._ways: dict[str, tuple[str | None, str | None]] = {}
        self.unproved: dict[str, str] = {}
        """By probe: why it is not known whether its programs run."""
        self._load(way)
        for probe in (CHANNEL, PROCESS):
            self._ways[probe.name] = self._attach(probe, way)
        for status in self._own_status():
            if BY_NAME[status.name].needed and status.method is None and not status.waits:
                self._bpf.cleanup()
                raise MachineError(
                    f"probe {status.name} cannot be attached: {status.reason}",
                    fix="vftrace doctor",
                )
        self.vfio = VfioProbes(self._bpf, way)
        self.mailbox = MailboxProbes(self._bpf, drivers)
        self.calls = CallProbes(self._bpf)
        self.vcpus = VcpuProbes(self._bpf)
        self._tables = Tables(self._bpf)
        self._missed = MissedRuns()
        self._watched = FIRST_WATCHED
        rings = [RingBuffer(self._bpf.raw(name).fd, self._bpf.size(name)) for name in RINGS]
        self._reader = RingReader(rings, self._on_ring)
        self._leave_out(os.getpid())
        btf.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> tuple[ProbeStatus, ...]:
        """How each probe is attached now."""
        return (
            *self._own_status(),
            *self.vfio.status,
            *self.mailbox.status,
            self.calls.status,
            self.vcpus.status,
        )

    @property
    def cached(self) -> tuple[bool, ...]:
        """For each BPF object that is loaded, whether it came from the cache."""
        return (
            self._bpf.cached,
            *self.vfio.cached,
            *self.mailbox.cached,
            *self.calls.cached,
            *self.vcpus.cached,
        )

    def follow(self) -> bool:
        """Attach the probes of modules that were loaded since the last call; cheap without such a module.

        Returns True if KVM was loaded: VMs may run already.
        """
        self._tables.clean()
        come = [probes.follow() for probes in (self.vfio, self.mailbox, self._kvm)]
        if any(come):
            btf.forget()
        return come[-1]

    def poll(self, timeout_ms: int, most_s: float = math.inf) -> bool:
        """Wait for a record that wakes the reader, at most `timeout_ms`, then hand over the records.

        Ends after `most_s` in any case, and returns False if there are more records.
        """
        self._reader.wait(timeout_ms)
        return self._reader.read(most_s)

    @property
    def known_ns(self) -> int:
        """The time up to which all records were handed over (CLOCK_BOOTTIME)."""
        return self._reader.known_ns

    def lost(self) -> tuple[int, int]:
        """Records for which the ring buffers had no room so far: parts of bitmaps, and all others before them."""
        counts = self._bpf["lost"]
        return int(counts[0].value), int(counts[1].value)

    def lost_by_vm(self) -> dict[int, tuple[int, int]]:
        """Return `lost` by living process, for processes with losses."""
        return self._tables.lost()

    def uncounted(self) -> dict[int, int]:
        """Return for each process the calls and sends so far for which a table of the kernel side had no room."""
        return self._tables.not_counted()

    def full(self) -> dict[str, int]:
        """Return for each table of the kernel side the entries so far for which it had no room."""
        return self._tables.full()

    def untraced(self) -> dict[int, int]:
        """Return by user the VMs that are not traced, because the table of VMs had no room for them."""
        return self._tables.untraced()

    def missed_runs(self) -> dict[tuple[str, str], int]:
        """Return by probe and reason the runs so far that the kernel skipped."""
        loaded = (
            (PROBES, self._bpf),
            ((VFIO, VFIO_DATA), self.vfio.loaded),
            ((MAILBOX,), self.mailbox.loaded),
            ((CALLS,), self.calls.loaded),
            ((VCPUS,), self.vcpus.loaded),
        )
        return self._missed.total(
            (probe_of(missed.program, probes).name, missed)
            for probes, bpf in loaded
            if bpf is not None
            for missed in bpf.missed_runs()
        )

    def forget(self, tgid: int) -> None:
        """Stop watching a VMM that ended without an Exit record."""
        self._tables.forget(tgid)

    def watch(self, tgid: int, vcpu_tids: list[int]) -> None:
        """Watch a VMM that runs already; `vcpu_tids` are its threads inside KVM_RUN now."""
        vms, threads = self._bpf["vms"], self._bpf["threads"]
        if ctypes.c_uint32(tgid) not in vms:
            vm = vms.Leaf()
            # Its logging may be on already; counting its sends costs almost nothing.
            vm.logging = 1
            self._watched += 1
            vm.id = self._watched
            vms[ctypes.c_uint32(tgid)] = vm
        for tid in vcpu_tids:
            thread = threads.Leaf()
            thread.cmd = KVM_RUN
            threads[ctypes.c_uint64(tgid << 32 | tid)] = thread

    def streams(self) -> dict[int, int]:
        """The next `seq` of each watched process, and of the records of no process."""
        streams = {int(k.value): int(v.seq) for k, v in self._bpf["vms"].items()}
        return {events.NO_PROCESS: int(self._bpf["mailbox_seq"][0].value), **streams}

    def close(self) -> None:
        """Detach everything, without any effect on the watched processes."""
        self.calls.close()
        self.vcpus.close()
        self.mailbox.close()
        self.vfio.close()
        self._reader.close()
        self._bpf.cleanup()

    def _on_ring(self, record: bytes) -> None:
        self._tables.see(record)
        self._on_record(record)

    def _own_status(self) -> tuple[ProbeStatus, ...]:
        return tuple(
            status_of(probe, None, reason)
            if (reason := self._kvm.reasons.get(probe.name))
            else status_of(probe, *self._ways[probe.name])
            for probe in PROBES
        )

    def _load(self, forced: str | None) -> None:
        """Compile and attach the ioctl probe in the first way that the kernel accepts; the other probes use the same
        way."""
        reasons: list[str] = []
        for way in IOCTL.ways:
            if forced not in (None, way.name):
                continue
            reason = _refused(way) or self._try_ioctl(way)
            if reason is None:
                self._ways[IOCTL.name] = way.name, "; ".join(reasons) or None
                self._ways[DIRTY_RING.name] = TRACEPOINT, None
                return
            reasons.append(f"{way.name}: {reason}")
        raise MachineError(
            f"KVM's requests cannot be traced here: {'; '.join(reasons)}", fix="vftrace doctor"
        )

    def _try_ioctl(self, way: Way) -> str | None:
        """Compile for this way, load the walker, attach. Returns why that failed, after removing everything."""
        try:
            # fentry programs are attached in here
            flags = _cflags(way, self._guest_memory)
            self._bpf = compiled("kvm.bpf.c", flags, modules=("kvm",))
        except Exception as error:
            return first_line(error)
        try:
            walker, kind = _WALKERS[way.name]
            # Load the walker first, because the verifier takes longest for it. Tracing programs are loaded already.
            self._bpf.load_together({walker: kind} | programs(way, *PROCESS.ways))
            self._bpf["walkers"][0] = ctypes.c_int(self._bpf.load(walker, kind))
            never = kernel.never_runs(KVM_FUNCTIONS) if way.name == FENTRY else None
            reason = never or self._attach_ioctl(way) or self._never_runs(IOCTL, way)
        except Exception as error:
            reason = first_line(error)
        if reason is not None:
            self._bpf.cleanup()
        return reason

    def _attach_ioctl(self, way: Way) -> str | None:
        """Attach only the tracepoints of system calls, which do not need the kvm module and stay when it is
        unloaded."""
        rings = {DIRTY_RING.name: DIRTY_RING.ways[0]}
        if way.name == TRACEPOINT:
            self._kvm = KvmProbes(self._bpf, rings)
            return attach_all(self._bpf, way)
        self._kvm = KvmProbes(self._bpf, {IOCTL.name: way, **rings})
        reason = self._kvm.reasons[IOCTL.name]
        return None if reason in WAITS else reason

    def _leave_out(self, tgid: int) -> None:
        """Forget the VM of this process that proved that programs run, if there was one."""
        if tgid in self.streams():
            self._reader.leave_out(lambda record: self._tables.tgid_of(record) == tgid)
            self._tables.forget(tgid)

    def _never_runs(self, probe: Probe, way: Way) -> str | None:
        """Which attached programs the kernel does not run, None if it runs all, or if that cannot be found out."""
        self.unproved.pop(probe.name, None)
        try:
            return proof.never_runs(self._bpf, proof.PROOFS[probe.name, way.name])
        except proof.CannotProveError as error:
            self.unproved[probe.name] = str(error)
            return None

    def _attach(self, probe: Probe, forced: str | None) -> tuple[str | None, str | None]:
        """Attach a probe; returns the way, and why earlier ways failed."""
        reasons: list[str] = []
        ways = [way for way in probe.ways if forced == way.name] or probe.ways
        for way in ways:
            reason = _refused(way) or attach_all(self._bpf, way)
            if reason is None:
                reason = self._never_runs(probe, way)
                if reason is None:
                    return way.name, "; ".join(reasons) or None
                detach_all(self._bpf, way)
            reasons.append(f"{way.name}: {reason}")
        return None, "; ".join(reasons)


class KvmProbes(ModuleProbes):
    """The probes on functions and tracepoints of the kvm module, attached while it is loaded.

    While it is, the kernel refuses to unload kvm: tracepoints and fentry hold the module
    (kernel/trace/trace_event_perf.c, perf_trace_event_reg; kernel/bpf/trampoline.c).
    """

    def __init__(self, bpf: Any, ways: Mapping[str, Way]) -> None:
        """Attach the probes that can be attached now. `ways`: the ways, by the probe's name."""
        super().__init__("kvm")
        self._bpf = bpf
        self._ways = ways
        self.reasons: dict[str, str | None] = dict.fromkeys(ways, NO_KVM)
        """For each probe: why it is not attached; None if it is."""
        self.follow()

    def _on_load(self, _module: str) -> None:
        for name, way in self._ways.items():
            self.reasons[name] = attach_all(self._bpf, way)

    def _on_unload(self, _module: str) -> None:
        for name, way in self._ways.items():
            detach_all(self._bpf, way)
            self.reasons[name] = NO_KVM


def ring_bytes(memory: int) -> int:
    """Return the size of the ring buffer for bitmaps, a power of two, for guests with this memory (bytes).

    The size is eight times the largest dirty log of all memory, one bit for 4 KiB: clearing sends as much as reading,
    two rounds may follow in 20 ms, and the reader of a busy host may be late.
    """
    sweep = memory // PAGE_SIZE // 8
    size = BULK_BYTES
    while size < 8 * sweep:
        size *= 2
    return size


def table_sizes(memory: int) -> dict[str, int]:
    """Return the sizes of the kernel side's tables, powers of two, by name (bpf/common.h), on a host of `memory` bytes.

    One VM for each 32 MiB, from 16,384 to 131,072; for each VM four threads inside a call, memory slots, channels, and
    chunks of dirty rings' bitmaps; a chunk covers 128 MiB.
    """
    vms = LEAST_VMS
    while vms < min(memory // VM_BYTES, MOST_VMS):
        vms *= 2
    return {"VMS": vms} | dict.fromkeys(("THREADS", "SLOTS", "CHANNELS", "CHUNKS"), 4 * vms)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * _PAGE


def _refused(way: Way) -> str | None:
    """Return why this kernel does not support this way, if that is known without compiling."""
    if way.name == FENTRY:
        # loading ties these programs to the functions
        return kernel.refuses_fentry() if instance("kvm") is not None else NO_KVM
    return kernel.refuses_kprobes() if way.name == KPROBE else None


def _cflags(way: Way, guest_memory: int) -> list[str]:
    flags = [
        f"-DEVENT_PAGES={EVENT_BYTES // _PAGE}",
        f"-DBULK_PAGES={ring_bytes(guest_memory) // _PAGE}",
        f"-DWAY_{way.name.upper()}",
        *(f"-D{name}={size}" for name, size in table_sizes(guest_memory).items()),
    ]
    dead = kernel.tracepoint_field_offset("sched:sched_process_exit", "group_dead")
    if dead is not None:
        return [*flags, f"-DGROUP_DEAD_OFFSET={dead}"]
    signal = btf.member_offset("task_struct", "signal")
    live = btf.member_offset("signal_struct", "live")
    if signal is not None and live is not None:
        flags += [f"-DTASK_SIGNAL_OFFSET={signal}", f"-DSIGNAL_LIVE_OFFSET={live}"]
    return flags
