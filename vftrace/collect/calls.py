# SPDX-License-Identifier: MIT
"""Decides whose system calls are traced and when, and which of them are written.

Tracing of a source begins when a thread other than the main thread logs dirty pages; tracing of a destination begins
when it starts to receive. Records are held back until the clock is read (the source has stopped) or set (the
destination begins to run). Calls that ended before the blackout are forgotten.
"""

import platform
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from vftrace import events
from vftrace.collect.batch import Intake
from vftrace.collect.clock import boottime_ns
from vftrace.events import Event, wire
from vftrace.events.layout import Kind
from vftrace.host import processes
from vftrace.host.processes import printable
from vftrace.probes.calls import CallProbes
from vftrace.syscalls import FD_FIRST, name_of
from vftrace.uapi import KVM_MEM_LOG_DIRTY_PAGES

KINDS = frozenset({int(Kind.CALL), int(Kind.OFF_CPU)})
"""Kinds of the records that `CallWatch.take` wants."""

MAX_HELD, MAX_HELD_IN_ALL, LEAST_HELD = 8192, 65_536, 512
"""How many records are held back: for one process, for all processes, and what each process may have in any case. The
oldest records beyond that are forgotten: a destination may receive for hours, and its blackout is at the end."""

QUIET_NS = 30_000_000_000
"""Tracing of a process ends after this time without any sign of a migration."""
AFTER_RUN_NS = 500_000_000
"""Tracing ends this long after the vCPUs ran again: calls that began in the blackout have ended by then."""
BUSY_NS = 1_000_000
"""A waiting destination receives if its main thread ran for this time between two looks."""
MAX_FDS = 1024
FD_FRESH_NS = 200_000_000
"""After this time an fd is looked up again: its number may stand for another file."""

LOOKED_AT = frozenset(
    {
        Kind.VCPU_CREATED,
        Kind.VM_CREATED,
        Kind.REGION,
        Kind.GET_DIRTY_LOG,
        Kind.RESET_DIRTY_RINGS,
        Kind.CLOCK,
        Kind.RUN,
        Kind.EXIT,
    }
)
"""Kinds of records whose events `CallWatch.see` needs; for other kinds the time is enough (`sign`)."""

_SIGNS = (events.GetDirtyLog, events.ResetDirtyRings)
_MACHINE = platform.machine()
_TAKES_FD = frozenset(nr for nr in range(1024) if name_of(_MACHINE, nr) in FD_FIRST)

_HEAD = struct.Struct("<QQ8xII")
"""at_ns, seq, tgid and tid of a record (struct vft_header in bpf/wire.h)."""
_CALL = struct.Struct("<96xI4xi")
"""nr and fd of struct vft_call."""
_END = struct.Struct("<40xQ")
"""end_ns of struct vft_call and struct vft_off_cpu."""


class _Traced(msgspec.Struct):
    """A process whose calls are traced."""

    destination: bool
    since_ns: int
    sign_ns: int
    next_seq: int = 0
    held: deque[bytes] = msgspec.field(default_factory=deque)
    passing: bool = False
    """Whether records are written at once: the guest is stopped."""
    ends_ns: int | None = None
    """When to stop tracing."""
    lost: int = 0
    missed: int = 0
    fds: dict[int, tuple[int, str]] = msgspec.field(default_factory=dict)
    """For each fd: when it was last looked up, and its target."""
    written: dict[int, str] = msgspec.field(default_factory=dict)
    """For each fd: the target that was written."""
    threads: set[int] = msgspec.field(default_factory=set)


def incoming_by_command_line(pid: int) -> bool:
    """Whether a process waits for a migration, by its command line."""
    return processes.identity_of(processes.command_line(pid)).incoming


class CallWatch:
    """Traces the calls of VMMs that migrate."""

    def __init__(
        self,
        intake: Intake,
        probes: CallProbes,
        on_migration: Callable[[int, bool], None] | None = None,
        is_incoming: Callable[[int], bool] = incoming_by_command_line,
    ) -> None:
        """`on_migration` is called with a process that begins to migrate, and whether it is a destination.
        `is_incoming` returns whether a process waits for a migration, by its command line."""
        self._intake = intake
        self._is_incoming = is_incoming
        self._on_migration = on_migration
        self._probes = probes
        self._traced: dict[int, _Traced] = {}
        self._waiting: dict[int, int] = {}
        """For each destination that has not run, by pid: the time that its main thread had run at the last look."""
        self._vcpus: dict[int, set[int]] = {}

    # -- who is traced --------------------------------------------------------------------------

    @property
    def any_migrates(self) -> bool:
        """Whether the calls of any process are traced."""
        return bool(self._traced)

    def see(self, event: Event) -> None:
        """Look at an event of the kernel side."""
        kind = type(event)
        pid = event.tgid
        self.sign(pid, event.at_ns)
        traced = self._traced.get(pid)
        if kind is events.VcpuCreated:
            self._vcpus.setdefault(pid, set()).add(event.tid)
        elif kind is events.VmCreated:
            self.meet(pid)
        elif isinstance(event, events.Region):
            self._region(event, traced)
        elif isinstance(event, _SIGNS):
            if traced is None and self._may_migrate(event):
                self._trace(pid, destination=False)
        elif isinstance(event, events.Clock):
            self._clock(event, traced)
        elif kind is events.Run:
            self._run(event, traced)
        elif kind is events.Exit:
            self.forget(pid)

    def sign(self, pid: int, at_ns: int) -> None:
        """Note a record of a process: if the process is traced, it still migrates."""
        traced = self._traced.get(pid)
        if traced is not None:
            traced.sign_ns = at_ns

    def meet(self, pid: int) -> None:
        """Note a new VM: a destination may begin to receive at any time."""
        if self._is_incoming(pid):
            self._waiting[pid] = 0

    def forget(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._waiting.pop(pid, None)
        self._vcpus.pop(pid, None)
        self._untrace(pid)

    def tick(self) -> None:
        """Look for destinations that receive, and stop tracing processes whose migration is over."""
        now = boottime_ns()
        for pid, before in list(self._waiting.items()):
            ran = _main_thread_ns(pid)
            self._waiting[pid] = ran
            if ran - before >= BUSY_NS:
                self._trace(pid, destination=True)
                if pid in self._traced:
                    self._traced[pid].sign_ns = now
        self._take_all(self._probes.settled())
        self._probes.detach_unused()
        self._report_missed()
        for pid, traced in list(self._traced.items()):
            due = traced.ends_ns is not None and traced.ends_ns <= now
            if due or now - traced.sign_ns > QUIET_NS:
                self._untrace(pid)

    def close(self) -> None:
        """Stop tracing all processes."""
        for pid in list(self._traced):
            self._untrace(pid)

    def _may_migrate(self, event: Event) -> bool:
        """Whether a thread may be a migration's: a migration has a thread of its own, which is not a vCPU's
        (`Process._may_migrate` in vftrace/analysis)."""
        return event.tid != event.tgid and event.tid not in self._vcpus.get(event.tgid, ())

    def _region(self, event: events.Region, traced: _Traced | None) -> None:
        if event.ret or not self._may_migrate(event):
            return
        if event.flags & KVM_MEM_LOG_DIRTY_PAGES:
            if traced is None:
                self._trace(event.tgid, destination=False)
            else:
                traced.ends_ns = None
        elif traced is not None and not traced.destination and not traced.passing:
            traced.ends_ns = event.at_ns + AFTER_RUN_NS

    def _clock(self, event: events.Clock, traced: _Traced | None) -> None:
        if traced is None:
            return
        if event.op == events.Clock.GET and event.last_exit_ns and not traced.destination:
            traced.ends_ns = None
            self._pass(event.tgid, traced, event.last_exit_ns)
        elif event.op == events.Clock.SET and traced.destination:
            self._pass(event.tgid, traced, 0)

    def _run(self, event: Event, traced: _Traced | None) -> None:
        arrived = self._waiting.pop(event.tgid, None) is not None
        if traced is None or not (arrived or traced.passing):
            return
        self._pass(event.tgid, traced, 0)
        traced.ends_ns = event.at_ns + AFTER_RUN_NS

    def _trace(self, pid: int, *, destination: bool) -> None:
        if pid in self._traced:
            return
        if self._on_migration is not None:
            self._on_migration(pid, destination)
        attach_ns = self._probes.trace(pid, always=destination)
        if attach_ns is None:
            return
        now = boottime_ns()
        # QEMU closes an image right after its last flush, before the reader could look at the fd.
        fds = {fd: (0, target) for fd, target in _targets(pid)}
        self._traced[pid] = _Traced(destination, now, now, fds=fds)
        if not destination:
            self._probes.mark_running(pid, processes.threads_in_kvm_run(pid))
        self._write_traced(pid, on=True, since_ns=now, attach_ns=attach_ns)

    def _untrace(self, pid: int) -> None:
        traced = self._traced.get(pid)
        if traced is None:
            return
        self._take_all(self._probes.settled(pid))
        self._report_missed()
        self._probes.untrace(pid)
        del self._traced[pid]
        self._write_traced(pid, on=False, since_ns=boottime_ns(), attach_ns=0)

    def _write_traced(self, pid: int, *, on: bool, since_ns: int, attach_ns: int) -> None:
        self._intake.write(
            events.CallsTraced,
            pid=pid,
            on=on,
            since_ns=since_ns,
            machine=_MACHINE,
            attach_ns=attach_ns,
        )

    # -- what is written ------------------------------------------------------------------------

    def take(self, record: bytes) -> None:
        """Take a record of the kernel side whose kind is one of `KINDS`."""
        _, seq, pid, _ = _HEAD.unpack_from(record)
        traced = self._traced.get(pid)
        if traced is None:
            return
        traced.lost += max(0, seq - traced.next_seq)
        traced.next_seq = max(traced.next_seq, seq + 1)
        self._take(pid, traced, record)

    def _take_all(self, records: Iterable[bytes]) -> None:
        """Take records of sums, which have no number."""
        for record in records:
            pid = _HEAD.unpack_from(record)[2]
            traced = self._traced.get(pid)
            if traced is not None:
                self._take(pid, traced, record)

    def _take(self, pid: int, traced: _Traced, record: bytes) -> None:
        # Look at once: when the record is written, the fd may be closed and the thread may have ended.
        if wire.kind_of(record) == Kind.CALL:
            nr, fd = _CALL.unpack_from(record)
            if nr in _TAKES_FD and fd >= 0:
                self._name_fd(pid, traced, fd)
        thread = _HEAD.unpack_from(record)[3]
        if thread not in traced.threads:
            self._name_thread(pid, traced, thread)
        if traced.passing:
            self._intake.write_record(record)
            return
        traced.held.append(record)
        most = min(MAX_HELD, max(LEAST_HELD, MAX_HELD_IN_ALL // len(self._traced)))
        while len(traced.held) > most:
            traced.since_ns = _end_ns(traced.held.popleft())

    def _pass(self, pid: int, traced: _Traced, from_ns: int) -> None:
        """Write the held-back records that ended after `from_ns`, and from now on all records."""
        if not traced.passing:
            traced.passing = True
            self._take_all(self._probes.settled())
            held = [record for record in traced.held if _end_ns(record) >= from_ns]
            self._write_traced(pid, on=True, since_ns=traced.since_ns, attach_ns=0)
            for record in held:
                self._intake.write_record(record)
        traced.held.clear()

    def _name_fd(self, pid: int, traced: _Traced, fd: int) -> None:
        now = boottime_ns()
        seen_ns, target = traced.fds.get(fd, (0, ""))
        if not target or now - seen_ns >= FD_FRESH_NS:
            target = target_of(pid, fd) or target
            traced.fds[fd] = now, target
        if target and traced.written.get(fd) != target:
            traced.written[fd] = target
            self._intake.write(events.CallFd, pid=pid, fd=fd, target=target)

    def _name_thread(self, pid: int, traced: _Traced, thread: int) -> None:
        traced.threads.add(thread)
        try:
            name = Path(f"/proc/{pid}/task/{thread}/comm").read_text().rstrip("\n")
        except OSError:
            return
        self._intake.write(events.CallThread, pid=pid, thread=thread, name=printable(name))

    def _report_missed(self) -> None:
        for pid, count in self._probes.missed().items():
            traced = self._traced.get(pid)
            if traced is not None and count + traced.lost > traced.missed:
                traced.missed = count + traced.lost
                self._intake.write(events.CallsMissed, pid=pid, count=traced.missed)


def target_of(pid: int, fd: int) -> str | None:
    """Return the target of an fd: a file's path, `socket`, `pipe`, or an anonymous inode's name; None if it is
    closed."""
    try:
        target = str(Path(f"/proc/{pid}/fd/{fd}").readlink())
    except OSError:
        return None
    if target.startswith("/"):
        return printable(target)
    kind, _, rest = target.partition(":")
    return printable(rest.strip("[]")) if kind == "anon_inode" else kind


def _targets(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the targets of a process's open fds; only some if there are very many."""
    try:
        entries = list(islice(Path(f"/proc/{pid}/fd").iterdir(), MAX_FDS))
    except OSError:
        return
    for entry in entries:
        target = target_of(pid, int(entry.name))
        if target:
            yield int(entry.name), target


def _end_ns(record: bytes) -> int:
    end: int = _END.unpack_from(record)[0]
    return end


def _main_thread_ns(pid: int) -> int:
    """Return how long a process's main thread has run (/proc/PID/schedstat); 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
