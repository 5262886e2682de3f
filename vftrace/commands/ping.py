# SPDX-License-Identifier: MIT
"""`vftrace ping`: measures from a client's side how long a guest does not answer."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vftrace import __version__
from vftrace.commands.common import Interrupt, add_force_argument, add_utc_argument, say_ready
from vftrace.errors import UsageError
from vftrace.units import format_ns, parse_duration

if TYPE_CHECKING:
    from vftrace.events import Event
    from vftrace.ping.gaps import Gap
    from vftrace.ping.intervals import Interval
    from vftrace.ping.session import SenderProcess, Session

HELP = "measure the longest time without replies from a guest"
EXAMPLES = (
    ("vftrace ping 192.0.2.7", "probe a guest while it migrates"),
    ("vftrace ping 192.0.2.7 --record ping.vft", "also write a recording for `vftrace report`"),
)

DEFAULT_INTERVAL_NS = 1_000_000
DEFAULT_TIMEOUT_NS = 1_000_000_000
LEAST_INTERVAL_NS = 100_000
"""Below this the pinger itself, a Python process, cannot keep up."""

LARGEST_PORT = 65_535
_WAIT_MS = 50
_SUSPEND_NS = 50_000_000
_TICK_NS = 100_000_000
_SECOND_NS = 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ADDRESS, the options of the probes, and what to print and record."""
    parser.add_argument("address", metavar="ADDRESS", help="a guest's address or host name")
    parser.add_argument(
        "--interval", type=parse_duration, default=DEFAULT_INTERVAL_NS, metavar="TIME",
        help="time between two probes (default: 1ms)",
    )  # fmt: skip
    parser.add_argument(
        "--duration", type=parse_duration, metavar="TIME", help="end after this time, e.g. 30s"
    )
    parser.add_argument(
        "--timeout", type=parse_duration, default=DEFAULT_TIMEOUT_NS, metavar="TIME",
        help="count later replies as lost (default: 1s)",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", choices=("icmp", "udp", "tcp"), default="icmp",
        help="ICMP echo, a UDP echo service, or TCP connection attempts (default: icmp)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int, metavar="N", help="port for udp and tcp (default: 7, echo)"
    )
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", dest="version", action="store_const", const=4, help="use IPv4 only")
    family.add_argument("-6", dest="version", action="store_const", const=6, help="use IPv6 only")
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="form of the result (default: text)",
    )
    add_utc_argument(parser)
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="also write a recording for `vftrace report`"
    )
    add_force_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Ping until Ctrl-C, SIGTERM or the duration's end; returns 1 if no probe was answered."""
    from vftrace.ping.probes import ECHO_PORT, ICMP, open_pinger, resolve
    from vftrace.ping.session import SenderProcess, Session, schedule_from_now

    _check(args)
    port = 0 if args.protocol == ICMP else args.port or ECHO_PORT
    target = resolve(args.address, args.protocol, port, args.version)
    pinger = open_pinger(target, args.protocol, args.interval, args.timeout)
    with Interrupt() as interrupt, _recorder(args.record, force=args.force) as recorder:
        schedule = schedule_from_now(args.interval, args.duration)
        session = Session(target, args.protocol, port, schedule, args.timeout)
        with SenderProcess(pinger, schedule) as process:
            say_ready()
            gaps = _ping(session, process, interrupt, recorder, live=args.format == "text")
    if args.format == "json":
        from vftrace.ping.text import ping_json

        print(json.dumps(ping_json(session, gaps)))
    else:
        from vftrace.ping.text import summary

        print("\n".join(summary(session, _realtime_offset_ns())))
    if not session.ledger.received:
        print(f"vftrace: no reply from {target.address}", file=sys.stderr)
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.interval < LEAST_INTERVAL_NS:
        raise UsageError(f"--interval must be at least {format_ns(LEAST_INTERVAL_NS)}")
    if not args.timeout or args.duration == 0:
        raise UsageError("--timeout and --duration must be more than zero")
    if args.port is not None and not 0 < args.port <= LARGEST_PORT:
        raise UsageError(f"--port must be 1 to {LARGEST_PORT}")
    if args.port is not None and args.protocol == "icmp":
        raise UsageError("--port goes with --protocol udp or tcp: ICMP has no ports")


def _ping(
    session: "Session",
    process: "SenderProcess",
    interrupt: Interrupt,
    recorder: "_Recorder | None",
    live: bool,
) -> "list[Gap]":
    """Ping until the end; returns the gaps longer than three intervals, in order."""
    from vftrace.ping.text import gap_line, live_line

    line = _LiveLine(live and sys.stderr.isatty())
    long_gaps: list[Gap] = []

    def take(gaps: "list[Gap]") -> None:
        for gap in gaps:
            if recorder is not None:
                recorder.gap(gap)
            if session.ledger.is_long(gap):
                long_gaps.append(gap)
                if live:
                    line.clear()
                    print(gap_line(gap, _realtime_offset_ns()), flush=True)
        for interval in session.ledger.take_intervals():
            if recorder is not None:
                recorder.round_trips(interval)

    interrupts = 0
    to_boottime_ns = _to_boottime_ns(0)
    while (records := process.read(_WAIT_MS)) is not None:
        to_boottime_ns = _to_boottime_ns(to_boottime_ns)
        take(session.feed(records, to_boottime_ns))
        if recorder is not None:
            recorder.keep_time(session)
        line.show(lambda: live_line(session, session.now_ns))
        if interrupt.set:
            interrupt.set = False
            interrupts += 1
            # At the first signal wait for outstanding replies, at the second do not.
            process.stop() if interrupts == 1 else process.finish()
        if session.stopped and not session.ledger.waiting:
            process.finish()
    take(session.close())
    line.clear()
    if recorder is not None:
        recorder.finish(session)
    return long_gaps


class _LiveLine:
    """A line on the terminal that is redrawn ten times a second; without a terminal nothing is drawn."""

    def __init__(self, on: bool) -> None:
        self._on = on
        self._next_ns = 0

    def show(self, text: Callable[[], str]) -> None:
        if self._on and time.monotonic_ns() >= self._next_ns:
            self._next_ns = time.monotonic_ns() + _TICK_NS
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + text()[:width])
            sys.stderr.flush()

    def clear(self) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class _Recorder:
    """Writes the recording: gaps and round trips as they are settled, ticks, clocks and totals as time passes."""

    def __init__(self, path: Path, *, force: bool) -> None:
        from vftrace.collect.recording import RecordingWriter
        from vftrace.model.host import HostInfo
        from vftrace.ping.journal import Journal

        self._journal = Journal(os.getpid())
        self._next_tick_ns = self._next_second_ns = 0
        self._settings_written = False
        self._writer = RecordingWriter(
            path,
            HostInfo(
                name=socket.gethostname(),
                boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                kernel=platform.release(),
                vftrace=__version__,
                started_at_ns=_boottime_ns(),
                probes=(),
            ),
            force=force,
        )

    def gap(self, gap: "Gap") -> None:
        self._write(self._journal.gap(_boottime_ns(), gap))

    def round_trips(self, interval: "Interval") -> None:
        self._write(self._journal.round_trips(_boottime_ns(), interval))

    def keep_time(self, session: "Session") -> None:
        now_ns = _boottime_ns()
        if not self._settings_written and session.fifo is not None:
            self._settings_written = True
            self._write(self._journal.settings(_boottime_ns(), session))
        if now_ns >= self._next_second_ns:
            self._next_second_ns = now_ns + _SECOND_NS
            self._clock_and_summary(session)
        if now_ns >= self._next_tick_ns:
            self._next_tick_ns = now_ns + _TICK_NS
            self._write(self._journal.tick(_boottime_ns()))

    def finish(self, session: "Session") -> None:
        self._clock_and_summary(session)
        self._write(self._journal.end(_boottime_ns()))

    def close(self) -> None:
        self._writer.close()

    def _clock_and_summary(self, session: "Session") -> None:
        from vftrace.collect.clock import clock_sample

        self._write(self._journal.clock(_boottime_ns(), *clock_sample()))
        if session.ledger.since_ns is not None:
            self._write(self._journal.summary(_boottime_ns(), session.ledger))

    def _write(self, event: "Event") -> None:
        from vftrace.events import wire

        self._writer.write([wire.encode(event)])


@contextlib.contextmanager
def _recorder(path: Path | None, *, force: bool) -> Iterator[_Recorder | None]:
    if path is None:
        yield None
        return
    recorder = _Recorder(path, force=force)
    try:
        yield recorder
    finally:
        recorder.close()


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _to_boottime_ns(before_ns: int) -> int:
    """CLOCK_BOOTTIME - CLOCK_MONOTONIC: only a suspend changes it, readings differ by what ran between."""
    now_ns = _boottime_ns() - time.monotonic_ns()
    return now_ns if abs(now_ns - before_ns) > _SUSPEND_NS else before_ns


def _realtime_offset_ns() -> int:
    return time.time_ns() - _boottime_ns()
