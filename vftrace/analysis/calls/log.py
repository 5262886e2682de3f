# SPDX-License-Identifier: MIT
"""Keeps the recorded calls of one process, with their names."""

from collections import deque

import msgspec

from vftrace import events, syscalls
from vftrace.model.calls import BlackoutCalls, CallSide, CallSpan, CauseKind

MAX_RECORDS = 8192
"""How many calls and times off the CPU are kept of one process; the oldest beyond that are dropped and count as
missed."""
MAX_NAMES = 4096

_NOT_BEGUN = frozenset({"clone", "clone3", "fork", "vfork", "execve", "execveat", "ioctl"})
"""Calls that are ignored if they began before they were traced: a new thread's first return is from the call that
made it, and an ioctl of unknown request is KVM_RUN."""

CHANNEL = "migration channel"

CallEvent = (
    events.Call
    | events.OffCpu
    | events.CallsTraced
    | events.CallThread
    | events.CallFd
    | events.CallsMissed
)


class CallLog(msgspec.Struct):
    """The log of one process's calls, fed with events. `version` changes with each event."""

    version: int = 0
    calls: deque[tuple[events.Call, str | None]] = msgspec.field(
        default_factory=lambda: deque(maxlen=MAX_RECORDS)
    )
    """Each call with the target of its fd at that time."""
    off_cpu: deque[events.OffCpu] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_RECORDS))
    traced: list[tuple[int, int | None]] = msgspec.field(default_factory=list)
    """The times between which the process was traced."""
    threads: dict[int, str] = msgspec.field(default_factory=dict)
    fds: dict[int, str] = msgspec.field(default_factory=dict)
    machine: str = ""
    attach_ns: int | None = None
    missed: int = 0
    forgotten: int = 0
    made: tuple[object, BlackoutCalls] | None = None
    """The latest result, with the state of the logs that it was made of."""

    def feed(self, event: CallEvent) -> None:
        """Take an event."""
        self.version += 1
        match event:
            case events.Call():
                self.forgotten += self._first_count() if len(self.calls) == MAX_RECORDS else 0
                self.calls.append((event, self.fds.get(event.fd)))
            case events.OffCpu():
                self.off_cpu.append(event)
            case events.CallsTraced():
                self._traced(event)
            case events.CallThread():
                if len(self.threads) < MAX_NAMES:
                    self.threads[event.thread] = event.name
            case events.CallFd():
                if len(self.fds) < MAX_NAMES or event.fd in self.fds:
                    self.fds[event.fd] = event.target
            case events.CallsMissed():
                self.missed = max(self.missed, event.count)

    def _first_count(self) -> int:
        return self.calls[0][0].count

    def _traced(self, event: events.CallsTraced) -> None:
        self.machine = event.machine
        lasting = bool(self.traced) and self.traced[-1][1] is None
        if event.on:
            self.attach_ns = event.attach_ns or self.attach_ns
            if lasting:
                # Calls that were held back until now may begin later than the tracing.
                self.traced.pop()
            self.traced.append((event.since_ns, None))
        elif lasting:
            self.traced[-1] = self.traced[-1][0], event.since_ns
        del self.traced[:-64]

    def spans(
        self,
        side: CallSide,
        start_ns: int,
        end_ns: int,
        parts: dict[int, str],
        channel_fds: frozenset[int],
    ) -> list[CallSpan]:
        """Return the calls that overlap a time, and those just before and after it. `parts` names the parts of
        threads."""
        found = []
        for call, target in self.calls:
            name = syscalls.name_of(self.machine, call.nr)
            began = call.start_ns or self._began(call.end_ns)
            if call.end_ns < began or (not call.start_ns and name in _NOT_BEGUN):
                continue
            if call.end_ns <= start_ns or began > end_ns + _AFTER_NS:
                continue
            on = target if name in syscalls.FD_FIRST else None
            if name in syscalls.FD_FIRST and call.fd in channel_fds:
                on = CHANNEL
            kind = _kind(name, on, call)
            if name == "ioctl":
                name = syscalls.request_name(call.cmd, on)
                # An fd of a VM, of a vCPU or of /dev/kvm: the request shows which.
                on = None if (on or "").startswith(("kvm-", "/dev/kvm")) else on
            ns = call.ns if call.start_ns else call.end_ns - began
            found.append(
                CallSpan(
                    side=side,
                    tid=call.thread,
                    thread=self._thread(call.thread, parts),
                    kind=kind,
                    call=name,
                    target=on,
                    start_ns=began,
                    end_ns=call.end_ns,
                    ns=min(ns, call.end_ns - began),
                    longest_ns=max(call.longest_ns, ns if call.count == 1 else 0),
                    count=call.count,
                    sleep_ns=call.sleep_ns,
                    queue_ns=call.queue_ns,
                )
            )
        for off in self.off_cpu:
            if start_ns < off.end_ns and off.start_ns <= min(off.end_ns, end_ns + _AFTER_NS):
                lasted = off.end_ns - off.start_ns
                found.append(
                    CallSpan(
                        side,
                        off.thread,
                        self._thread(off.thread, parts),
                        _OFF_CPU.get(off.reason, CauseKind.PAGE_FAULT),
                        None,
                        None,
                        off.start_ns,
                        off.end_ns,
                        lasted,
                        lasted,
                        1,
                    )
                )
        return found

    def _began(self, at_ns: int) -> int:
        """Return the earliest known time inside a call that ended at a time and began before it was traced."""
        return max((since for since, _ in self.traced if since <= at_ns), default=at_ns)

    def _thread(self, tid: int, parts: dict[int, str]) -> str:
        return parts.get(tid) or self.threads.get(tid) or f"thread {tid}"


_AFTER_NS = 1_000_000_000
"""Cut the time of a thread's own code where its next call began."""

_OFF_CPU = {
    events.OffCpu.QUEUED: CauseKind.RUN_QUEUE,
    events.OffCpu.STOPPED: CauseKind.STOPPED,
    events.OffCpu.SLEPT: CauseKind.PAGE_FAULT,
}


def _kind(name: str, target: str | None, call: events.Call) -> CauseKind:
    """Return the kind of a call. A transfer is work if its thread was mostly awake, or if it was on a file."""
    does = syscalls.does(name)
    if does == syscalls.Does.WAIT:
        return CauseKind.WAIT
    if does == syscalls.Does.WORK or (target or "").startswith("/"):
        return CauseKind.CALL
    return CauseKind.CHANNEL if 2 * call.sleep_ns > call.ns or not call.start_ns else CauseKind.CALL
