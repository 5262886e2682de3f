# SPDX-License-Identifier: MIT
"""Runs one ping in the main process: starts the sending process, and feeds the ledger."""

import errno
import fcntl
import os
import select
import signal
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from vftrace.errors import VftraceError
from vftrace.ping import sender
from vftrace.ping.gaps import Gap
from vftrace.ping.ledger import Ledger
from vftrace.ping.probes import TCP, UDP, Pinger, Target
from vftrace.ping.sender import Schedule, Sender

_START_AFTER_NS = 50_000_000
_READ_BYTES = 1 << 16
_LARGEST_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031


class SenderProcess:
    """The sending process and the two pipes to it. A context manager: leaving it ends the process."""

    def __init__(self, pinger: Pinger, schedule: Schedule) -> None:
        self._from_sender, to_parent = os.pipe()
        control, self._control = os.pipe()
        # The pipe has room for some seconds in which this process does not run.
        fcntl.fcntl(self._from_sender, _F_SETPIPE_SZ, _LARGEST_PIPE)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._from_sender)
            os.close(self._control)
            _send_and_exit(pinger, schedule, to_parent, control)
        os.close(to_parent)
        os.close(control)
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(self._from_sender, select.POLLIN)

    def read(self, wait_ms: int) -> list[tuple[int, int, int, int, int]] | None:
        """Return the records that arrived (sender.RECORD), [] if none arrived in that time, None at the end."""
        if not self._poll.poll(wait_ms):
            return []
        data = os.read(self._from_sender, _READ_BYTES)
        if not data:
            return None
        self._buffer += data
        return list(sender.records_in(self._buffer))

    def stop(self) -> None:
        """Stop sending, but continue to read replies."""
        if self._control >= 0:
            os.write(self._control, b"s")

    def finish(self) -> None:
        """End the process; its last messages can still be read."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        self.finish()
        os.close(self._from_sender)
        os.waitpid(self._pid, 0)


def _send_and_exit(pinger: Pinger, schedule: Schedule, out_fd: int, control_fd: int) -> None:
    status = 0
    try:
        # Both signals reach the whole process group; this process ends when its control pipe is closed.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        Sender(pinger, schedule, out_fd, control_fd).run()
    except BrokenPipeError:
        status = 1
    except Exception as error:
        print(f"vftrace: the sending process failed: {error}", file=sys.stderr, flush=True)
        status = 1
    finally:
        os._exit(status)


def schedule_from_now(interval_ns: int, duration_ns: int | None) -> Schedule:
    """Return a schedule that begins in a moment, when the sending process runs."""
    slots = None if duration_ns is None else max(duration_ns // interval_ns, 1)
    return Schedule(time.monotonic_ns() + _START_AFTER_NS, interval_ns, slots)


class Session:
    """Feeds the ledger with the sender's records, after converting their times to CLOCK_BOOTTIME."""

    def __init__(
        self, target: Target, protocol: str, port: int, schedule: Schedule, timeout_ns: int
    ) -> None:
        self.target = target
        self.protocol = protocol
        self.port = port
        self.schedule = schedule
        self.ledger = Ledger(schedule.interval_ns, timeout_ns)
        self.fifo: bool | None = None
        self.stopped = False
        self.now_ns = 0
        self.errors: Counter[int] = Counter()

    def feed(self, records: list[tuple[int, int, int, int, int]], to_boottime_ns: int) -> list[Gap]:
        """Take records in order; `to_boottime_ns` is CLOCK_BOOTTIME - CLOCK_MONOTONIC now.

        Returns the settled gaps. Raises VftraceError if no reply can ever arrive.
        """
        gaps: list[Gap] = []
        for kind, failed, slot, a_ns, b_ns in records:
            if kind == sender.SENT:
                late_ns = a_ns - self.schedule.due_ns(slot)
                self.ledger.sent(slot, late_ns, a_ns + to_boottime_ns, b_ns + to_boottime_ns)
                if failed:
                    self._on_error(failed)
            elif kind == sender.REPLY:
                self.ledger.replied(slot, a_ns + to_boottime_ns)
            elif kind == sender.CLOCK:
                self.now_ns = a_ns + to_boottime_ns
                gaps += self.ledger.advance(self.now_ns)
            elif kind == sender.REFUSED:
                self._on_error(failed)
            elif kind == sender.STOPPED:
                self.ledger.stopped(slot)
                self.stopped = True
            elif kind == sender.POLICY:
                self.fifo = bool(slot)
        return gaps

    def close(self) -> list[Gap]:
        """End the input; returns the last gaps. Raises VftraceError if the sender ended by itself."""
        if not self.stopped:
            raise VftraceError("the sending process ended early, there is no result")
        return self.ledger.close()

    def _on_error(self, failed: int) -> None:
        self.errors[failed] += 1
        if self.ledger.received:
            return
        address, port = self.target.address, self.port
        if failed in (errno.EPERM, errno.EACCES):
            raise VftraceError(f"this machine's own firewall lets nothing out to {address}")
        if failed == errno.ECONNREFUSED and self.protocol == UDP:
            raise VftraceError(
                f"nothing listens on UDP port {port} of {address}: start an echo service there "
                f"(socat UDP-LISTEN:{port},fork PIPE), or use --protocol icmp or {TCP}"
            )
