# SPDX-License-Identifier: MIT
"""The main process's side of the reader process: a source whose records arrive over a socket pair."""

import atexit
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from vftrace import errors
from vftrace.collect.batch import Batch
from vftrace.collect.clock import boottime_ns
from vftrace.collect.messages import Failed, Faults, Kind, Link, Message, Ready, Start
from vftrace.events import wire
from vftrace.faults import FAULTS
from vftrace.host import processes
from vftrace.model.host import HostInfo, ReaderUse

READER = "vftrace.collect.reader"
_NAME = "vftrace-reader"
"""Name of its main thread, which ps(1) and top(1) show (proc_pid_comm(5))."""
POLL_MS = 100
"""How long one read waits. The reader writes ten ticks per second, so a wait is seldom that long."""
READ_BYTES = 256 << 10
READ_S = 0.05
"""What one read takes at most, so that the caller continues even if records arrive faster than they are decoded. The
caller writes them to the recording: what is in a read is lost if it is killed. With the reader's own 20 ms of waiting
and 50 ms of reading (live.py), and some 50 ms in which the caller processes the bytes before, that is 170 ms."""
END_S = 20.0
"""How long a reader may take to detach, send the remaining records, and end."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ReaderProcess:
    """A reader process that has been started: `wait` for it, or `end` it."""

    def __init__(
        self,
        way: str | None = None,
        profiles: Sequence[str] = (),
        guest_memory: int | None = None,
        user: str | None = None,
    ) -> None:
        """Start the process; arguments as for `LiveSource`. It changes to `user` after attaching, if this is root."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = _run_reader(its)
        self.link = Link(ours)
        self._failure: errors.VftraceError | None = None
        with contextlib.suppress(OSError):  # the reader has ended: `receive` raises why
            self.link.send_content(Kind.START, Start(way, tuple(profiles), guest_memory, user))
            while not self.link.flush():
                self._wait(select.POLLOUT, None)

    def wait(self) -> "RemoteSource":
        """Return the source as soon as the reader has attached. Raises the errors of `LiveSource`, after the reader's
        end."""
        try:
            ready = self.receive(None)
            assert ready is not None
            content = ready.content()
            assert isinstance(content, Ready)
        except BaseException:
            self.end(kill=True)
            raise
        return RemoteSource(self, content)

    def receive(self, timeout_ms: int | None) -> Message | None:
        """Return the next message; None if none arrives in this time.

        Raises the reader's error, or VftraceError if it ended without one.
        """
        if self._failure is not None:
            raise self._failure
        try:
            message = self.link.receive()
            if message is None and timeout_ms != 0:
                self._wait(select.POLLIN, timeout_ms)
                message = self.link.receive()
        except EOFError:
            self._failure = errors.VftraceError(self._how_it_ended())
            raise self._failure from None
        if message is not None and message.kind is Kind.FAILED:
            failed = message.content()
            assert isinstance(failed, Failed)
            self._failure = _error_of(failed)
            raise self._failure
        return message

    def end(self, *, kill: bool = False) -> None:
        """Close the socket, so that the reader ends, and wait for its end."""
        self.link.close()
        if kill:
            self._process.kill()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The reader's process id."""
        return self._process.pid

    def _wait(self, event: int, timeout_ms: int | None) -> None:
        poll = select.poll()
        poll.register(self.link, event)
        poll.poll(timeout_ms)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "the reader process has closed its connection: nothing is traced any more"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the reader process ended ({how}): nothing is traced any more"


class RemoteSource:
    """The records of the reader process, as a source."""

    def __init__(self, reader: ReaderProcess, ready: Ready) -> None:
        self.host: HostInfo = ready.host
        self.mailbox_refused = ready.mailbox_refused
        """Why mailboxes cannot be traced here; None if they can."""
        self.failure: errors.VftraceError | None = None
        """After `close`: why the last records are missing, None if they are not."""
        self._reader = reader
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it was closed: a live source never ends by itself."""
        return self._ended

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        return boottime_ns()

    @property
    def reader(self) -> ReaderUse:
        """The CPU time, memory and lateness of the reader process; any thread may call this.

        The lateness is the age of the next message, the oldest one that this process has not read.
        """
        waits_since_ns = None if self._ended else self._reader.link.next_at_ns()
        lateness = max(0, boottime_ns() - waits_since_ns) if waits_since_ns else 0
        use = processes.use_of(self._reader.pid)
        return ReaderUse(lateness) if use is None else ReaderUse(lateness, *use)

    def read(self) -> Batch:
        """Wait a moment, then return the records in order of arrival. Raises VftraceError if the reader has ended."""
        records: list[bytes] = []
        size, stop_at = 0, time.monotonic() + READ_S
        message = self._reader.receive(POLL_MS)
        while message is not None:
            records += self._take(message)
            size += len(message.data)
            if size >= READ_BYTES or time.monotonic() >= stop_at:
                break
            try:
                message = self._reader.receive(0)
            except errors.VftraceError:
                break  # return the records before the error; the next read raises it again
        return Batch(records)

    def close(self) -> Batch:
        """Let the reader detach and end; returns the last records, including the End record.

        `failure` is set if the reader did not reach its end.
        """
        if self._ended:
            return Batch()
        self._ended = True
        records: list[bytes] = []
        try:
            with contextlib.suppress(OSError):  # the reader has ended: `receive` raises why
                self._reader.link.send(Kind.CLOSE)
            while (message := self._reader.receive(int(END_S * 1000))) is not None:
                if message.kind is Kind.END:
                    return Batch(records)
                records += self._take(message)
            self.failure = errors.VftraceError(
                "the reader process does not end: its last records are missing"
            )
        except errors.VftraceError as error:
            self.failure = error
        finally:
            self._reader.end()
        return Batch(records)

    def _take(self, message: Message) -> list[bytes]:
        if message.kind is Kind.RECORDS:
            return wire.split(message.data)
        if message.kind is Kind.HOST:
            host = message.content()
            assert isinstance(host, HostInfo)
            self.host = host
        elif message.kind is Kind.FAULTS:
            faults = message.content()
            assert isinstance(faults, Faults)
            FAULTS.count_elsewhere(faults.counts)
            for text in faults.said:
                FAULTS.say(text)
        return []


class _Fork:
    """A forked child, used as a subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int:
        """Return its exit code, or minus the signal that ended it. Raises subprocess.TimeoutExpired."""
        if self._code is None:
            if timeout_s is not None:
                ended = os.pidfd_open(self.pid)
                try:
                    poll = select.poll()
                    poll.register(ended, select.POLLIN)
                    if not poll.poll(timeout_s * 1000):
                        raise subprocess.TimeoutExpired(READER, timeout_s)
                finally:
                    os.close(ended)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def kill(self) -> None:
        """End it at once."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)


def _run_reader(end: socket.socket) -> "_Fork | subprocess.Popen[bytes]":
    """Start the reader, a fork if this process has no threads yet, else a program of its own.

    A fork starts in a third of the time of another Python. It gets this process's memory, which holds no secrets yet,
    and none of its files. If there were other threads, the fork would keep the locks that they hold.

    The reader is in a session of its own and blocks the signals that end this process, because it has to run until it
    has sent its last records. It ends with the socket. If the kernel shares CPUs between sessions
    (CONFIG_SCHED_AUTOGROUP), the reader's priority is that of its session.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _exec_reader(end) if threading.active_count() > 1 else _fork_reader(end)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork_reader(end: socket.socket) -> _Fork:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        return _Fork(pid)
    code = 1
    try:
        _leave_parent(end.fileno())
        from vftrace.collect import reader

        code = reader.main(end.detach())
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the parent's is ended here: no `with` or `finally` that it is in.
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)


def _leave_parent(end: int) -> None:
    """Keep the socket and standard error, and nothing that the parent does at its end."""
    atexit._clear()
    os.setsid()
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_NAME)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.closerange(3, end)
    os.closerange(end + 1, max(end, os.sysconf("SC_OPEN_MAX")))


def _exec_reader(end: socket.socket) -> "subprocess.Popen[bytes]":
    """A Python of its own, which looks for modules where this process does, and with -P nowhere else: the working
    directory may be anybody's."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", READER, str(end.fileno())],
        pass_fds=[end.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,
    )


def _error_of(failed: Failed) -> errors.VftraceError:
    if failed.error == errors.MachineError.__name__:
        return errors.MachineError(failed.message, failed.fix)
    kind = {errors.UsageError.__name__: errors.UsageError}.get(failed.error, errors.VftraceError)
    return kind(failed.message)
