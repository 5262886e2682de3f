# SPDX-License-Identifier: MIT
"""The reader process: empties the ring buffers, identifies processes and devices, and sends the records to the main
process.

Only the reader is privileged, and it opens no internet socket. It decodes only the records that it needs to identify
processes and devices. The main process may be late: records that it has not taken yet wait in the reader, in bounded
memory (backlog.py). The reader ends on a message of the main process, and at once if the main process has ended.

It is a fork of the main process, or `python -P -m vftrace.collect.reader FD` (remote.py). FD is its end of the socket
pair (messages.py).
"""

import errno
import os
import select
import signal
import socket
import sys
import traceback

from vftrace import errors
from vftrace.collect.backlog import Backlog
from vftrace.collect.batch import Batch
from vftrace.collect.clock import boottime_ns
from vftrace.collect.live import POLL_MS, LiveSource
from vftrace.collect.messages import LONGEST, Failed, Faults, Kind, Link, Message, Ready, Start
from vftrace.faults import FAULTS
from vftrace.host import memory, priority, privileges
from vftrace.probes import kernel

NICENESS = -10
"""The reader's niceness, better than that of the VMMs if the kernel allows it: a full ring buffer loses records."""
CAPABILITIES = (
    privileges.CAP_BPF,
    privileges.CAP_PERFMON,
    privileges.CAP_SYS_PTRACE,
    privileges.CAP_DAC_READ_SEARCH,
)
"""The capabilities after attaching, for BPF maps, perf events of modules loaded later, and /proc/PID/fd of others."""

_DEBUG_VARIABLE = "VFTRACE_DEBUG"


def capabilities() -> tuple[int, ...]:
    """Return the capabilities that the reader keeps on this kernel. It attaches probes of modules loaded later, of
    devices that can migrate and of a migration's system calls by perf events."""
    if kernel.perf_events_need_admin():
        return (*CAPABILITIES, privileges.CAP_SYS_ADMIN)
    return CAPABILITIES


class Reader:
    """A live source, and its records that the main process has not taken yet."""

    def __init__(self, source: LiveSource, link: Link) -> None:
        self._source = source
        self._link = link
        self._backlog = Backlog()
        self._memory = memory.AfterFloods()
        self._host = source.host
        self._faults = sum(FAULTS.counts.values())
        self._said: list[str] = []
        # The main process prints or logs such lines.
        FAULTS.say = self._said.append

    def run(self) -> None:
        """Read and send until the main process sends CLOSE, then send the rest. Raises EOFError or OSError if it has
        ended."""
        while not self._closing():
            if self._backlog:
                # The ring buffer must not wait for the main process; only a full backlog may.
                _wait(self._link, select.POLLOUT, POLL_MS)
            if not self._backlog.full:
                self._take(self._source.read(0 if self._backlog else POLL_MS))
            else:
                _wait(self._link, select.POLLOUT, POLL_MS)
            self._send()
        self._take(self._source.close())
        while self._backlog or self._link.busy:
            _wait(self._link, select.POLLOUT, None)
            self._send()
        self._link.send(Kind.END)

    def _closing(self) -> bool:
        message = self._link.receive()
        return message is not None and message.kind is Kind.CLOSE

    def _take(self, batch: Batch) -> None:
        # Every message has the time: the oldest waiting message shows how late the main process is.
        now_ns = boottime_ns()
        self._backlog.add(now_ns, batch.records)
        self._memory.note(self._backlog.size)
        if dropped := self._backlog.take_dropped():
            self._source.count_dropped(dropped)
        if self._source.host != self._host:
            self._host = self._source.host
            self._link.send_content(Kind.HOST, self._host, now_ns)
        counts = FAULTS.counts
        if sum(counts.values()) != self._faults:
            self._faults = sum(counts.values())
            self._link.send_content(Kind.FAULTS, Faults(dict(counts), tuple(self._said)), now_ns)
            self._said.clear()

    def _send(self) -> None:
        while self._backlog and self._link.flush():
            at_ns, records = self._backlog.take(LONGEST)
            if records:
                self._link.send(Kind.RECORDS, b"".join(records), at_ns)


def main(fd: int) -> int:
    """Follow the messages of the main process at the other end; returns the exit code."""
    privileges.end_with_parent(signal.SIGKILL)
    link = Link(socket.socket(fileno=fd))
    try:
        try:
            _trace(link)
        except errors.VftraceError as error:
            fix = error.fix if isinstance(error, errors.MachineError) else None
            _fail(link, Failed(type(error).__name__, str(error), fix))
            return error.exit_code
        except (EOFError, BrokenPipeError, ConnectionError):
            raise
        except OSError as error:
            few = error.errno in (errno.EMFILE, errno.ENFILE)
            fix = "ulimit -n 1024" if few else None
            said = f"the reader cannot continue: {error.strerror or error}"
            _fail(link, Failed(errors.MachineError.__name__, said, fix))
            return errors.MachineError.exit_code
        except Exception as error:
            if os.environ.get(_DEBUG_VARIABLE):
                traceback.print_exc()
            said = (
                f"internal error in the reader, please report it: {type(error).__name__}: {error}"
            )
            _fail(link, Failed(errors.VftraceError.__name__, said, None))
            return errors.VftraceError.exit_code
    except (EOFError, BrokenPipeError, ConnectionError):
        return 0  # the main process has ended, and nobody would read a message
    return 0


def _trace(link: Link) -> None:
    start = _start(link)
    source = LiveSource(start.way, start.profiles, start.guest_memory)
    _confine(start.user)
    link.send_content(Kind.READY, Ready(source.host, source.probes.mailbox.refused))
    memory.give_back()  # programs, and the BTF in which functions and members were looked up
    Reader(source, link).run()


def _start(link: Link) -> Start:
    message: Message | None = None
    while message is None:
        _wait(link, select.POLLIN, None)
        message = link.receive()
    content = message.content()
    assert isinstance(content, Start)
    return content


def _wait(link: Link, event: int, timeout_ms: int | None) -> None:
    poll = select.poll()
    poll.register(link, event)
    poll.poll(timeout_ms)


def _confine(user: str | None) -> None:
    """Drop the privileges and memory that only attaching needs."""
    priority.improve(NICENESS)
    privileges.keep_only(capabilities(), user)
    privileges.deny_internet()
    privileges.end_with_parent(signal.SIGKILL)


def _fail(link: Link, failed: Failed) -> None:
    link.send_content(Kind.FAILED, failed)
    while not link.flush():
        _wait(link, select.POLLOUT, None)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
