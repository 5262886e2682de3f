# SPDX-License-Identifier: MIT
"""The parts that live subcommands share: a clean end, durations, the ready line, log lines."""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from vftrace import events
from vftrace.errors import UsageError, printable
from vftrace.units import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vftrace.archive.flight import FlightRecorder
    from vftrace.collect.pump import Pump
    from vftrace.model.migration import Snapshot
    from vftrace.outputs.log.entries import FileOf
    from vftrace.outputs.log.migrations import MigrationLog

_LOG_SECONDS = 1.0
_LOG_SHARE = 0.02
"""The share of the time that looking through migrations may take: hundreds of them are looked through more rarely."""


def add_live_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every subcommand that traces this host."""
    parser.add_argument(
        "--duration", type=parse_duration, metavar="TIME", help="end after this time, e.g. 30s"
    )
    parser.add_argument(
        "--way",
        choices=("fentry", "kprobe", "tracepoint"),
        help="attach with this method only (default: the cheapest that this kernel accepts)",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="when started as root, change to this user after the probes are attached and the files are open",
    )


def add_utc_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--utc`, for commands that print times of day; they then run in `local_time_is_utc`."""
    parser.add_argument(
        "--utc", action="store_true", help="print times of day in UTC instead of local time"
    )


@contextlib.contextmanager
def local_time_is_utc() -> "Iterator[None]":
    """Make local time UTC in this context, for the whole process (tzset(3))."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def add_force_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--force`, for commands that write a recording."""
    parser.add_argument(
        "--force", action="store_true", help="overwrite the recording FILE if it exists"
    )


def add_profile_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--profile`, for commands that decode or record mailboxes."""
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="TOML file that describes the mailbox messages of a vendor's driver"
        " (repeatable; see docs/how-to/vendor-profile.md)",
    )


def add_log_arguments(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Add `--log.format` and `--log.level`, exporter-toolkit's names; without a level migrations are not logged."""
    group = parser.add_argument_group("log")
    group.add_argument(
        "--log.format",
        dest="log_format",
        choices=("text", "json"),
        default="text",
        help="format of the lines on standard error (default %(default)s)",
    )
    group.add_argument(
        "--log.level",
        dest="log_level",
        choices=("debug", "info", "warning", "error"),
        default=default,
        help="also log a line for each migration that began or ended; `warning` logs failed ones only"
        f" (default {default or 'none'})",
    )


def add_recorder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--record-dir`, `--retain` and `--max-size`."""
    group = parser.add_argument_group("flight recorder")
    group.add_argument(
        "--record-dir",
        type=Path,
        metavar="DIR",
        help="keep a recording of each migration, with the seconds before and after it, in this directory",
    )
    group.add_argument(
        "--retain",
        type=parse_duration,
        default="7d",
        metavar="TIME",
        help="delete recordings older than this (default %(default)s)",
    )
    group.add_argument(
        "--max-size",
        type=parse_size,
        default="1G",
        metavar="SIZE",
        help="delete the oldest recordings beyond this total size (default %(default)s)",
    )


def make_record_dir(args: argparse.Namespace) -> None:
    """Make the directory of `--record-dir` before privileges are dropped; the recorder reports errors."""
    from vftrace.host import privileges

    if args.record_dir is not None and not args.record_dir.exists():
        with contextlib.suppress(OSError):
            args.record_dir.mkdir(mode=0o700, parents=True)
            privileges.give(args.record_dir, args.user)


def open_recorder(
    args: argparse.Namespace, wanted: "Sequence[str]", say: "Callable[[str], None]"
) -> "FlightRecorder | None":
    """Return the flight recorder for the options of `add_recorder_arguments`; the pump closes it.

    Its thread has the present privileges of this thread.
    """
    if args.record_dir is None:
        return None
    from vftrace.archive.flight import FlightRecorder
    from vftrace.archive.retention import Limits

    return FlightRecorder(args.record_dir, Limits(args.retain, args.max_size), say, wanted)


def file_of(recorder: "FlightRecorder | None") -> "FileOf":
    """Return the function that finds the recording of a migration, if there is a flight recorder."""
    return (lambda _: None) if recorder is None else recorder.file_of


class LogLines:
    """The log of a subcommand: lines on standard error, one for each migration that began and each that ended.

    Call `tick` in the loop that steps the pump. `close` logs the migrations that ended since.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        pump: "Pump",
        wanted: "Sequence[str]" = (),
        file_of: "FileOf" = lambda _: None,
    ) -> None:
        """`args` as `add_log_arguments` made them; without a level nothing is logged."""
        from vftrace.outputs.log.migrations import MigrationLog

        self._log = None if args.log_level is None else MigrationLog(file_of)
        self._pump = pump
        self._wanted = tuple(wanted)
        self._next = 0.0

    def tick(self) -> None:
        """Log new beginnings and ends, at most once a second."""
        begun = time.monotonic()
        if self._log is not None and begun >= self._next:
            self._update(self._log)
            ended = time.monotonic()
            self._next = ended + max(_LOG_SECONDS, (ended - begun) / _LOG_SHARE)

    def close(self) -> None:
        """Log the last beginnings and ends after the pump has closed."""
        if self._log is not None:
            self._update(self._log)

    def _update(self, log: "MigrationLog") -> None:
        from vftrace.model.select import select
        from vftrace.outputs.log.handler import log as write

        # Read `ended` first: a migration that settles at the end must be in the snapshot.
        trace_ended = self._pump.ended
        snapshot = select(self._pump.snapshot(brief=True), self._wanted)
        for entry in log.update(snapshot, self._pump.now_ns(), trace_ended=trace_ended):
            write(entry)


def say(line: str) -> None:
    """Print a line on standard error, for a command without a log."""
    print(f"vftrace: {printable(line)}", file=sys.stderr)


def inform(line: str) -> None:
    """Log a line."""
    logging.getLogger("vftrace").info("%s", line)


def warn(line: str) -> None:
    """Log a warning."""
    logging.getLogger("vftrace").warning("%s", line)


def profile_texts(args: argparse.Namespace) -> list[str]:
    """Return the texts of the files of `--profile`. Raises UsageError for an invalid profile."""
    from vftrace.mailbox.profile import ProfileError, drivers_of

    texts: list[str] = []
    for path in args.profile:
        try:
            texts.append(path.read_text(encoding="utf-8"))
            drivers_of((), texts)
        except OSError as error:
            raise UsageError(f"cannot read profile {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"profile {path}: not a text file") from error
        except ProfileError as error:
            raise UsageError(f"profile {path}: {error}") from error
    return texts


def keep_evidence(pump: "Pump") -> None:
    """Keep the records that reproduce an internal error, if systemd provides a directory (systemd.exec(5))."""
    from vftrace.host import systemd

    directory = systemd.directory("STATE_DIRECTORY")
    if directory is not None:
        pump.keep_evidence(directory)


class Deadline:
    """A deadline after a duration in ns from now; None: never."""

    def __init__(self, duration_ns: int | None) -> None:
        self._end = None if duration_ns is None else time.monotonic_ns() + duration_ns

    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return self._end is not None and time.monotonic_ns() >= self._end


class Interrupt:
    """Makes SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process at once."""

    def __init__(self, replay: Path | None = None) -> None:
        """A `replay` from a pipe may block for ever, so the signals then end the process at once."""
        self.set = False
        self._at_once = replay is not None and not replay.is_file()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup(1): a hangup does not end it
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.set = True
        if self._at_once:
            raise KeyboardInterrupt


class Selection:
    """The VMs that `--vm` selects. `check` reports once, after vftrace has looked at the host, a word that matches no
    VM.

    A word that resembles a VM's name is a typing error and ends the command; otherwise the VM may still start. In a
    replay (`live` False) a VM may start until the end, so the check is made at the end.
    """

    def __init__(self, wanted: "Sequence[str]" = (), *, live: bool = True) -> None:
        self.wanted = tuple(wanted)
        self._live = live
        self._checked = not self.wanted

    def check(self, pump: "Pump") -> None:
        """Check the words once vftrace has looked at the host. Raises UsageError for a typing error."""
        if not self._checked and (pump.ended or (self._live and has_looked(pump))):
            self._checked = True
            self._complain(pump.snapshot(), ended=pump.ended)

    def require(self, snapshot: "Snapshot") -> None:
        """Check the words at the end: raises UsageError if no VM was selected."""
        self._checked = True
        self._complain(snapshot, ended=True)

    def _complain(self, snapshot: "Snapshot", *, ended: bool) -> None:
        from vftrace.model.select import near, no_match, unmatched

        missing = unmatched(snapshot, self.wanted)
        for word in missing:
            said = no_match(snapshot, word)
            if len(missing) == len(self.wanted) and (ended or near(snapshot, word)):
                raise UsageError(said)
            print(f"vftrace: {said}", file=sys.stderr, flush=True)


def has_looked(pump: "Pump") -> bool:
    """Whether a tick, and with it all earlier events, has passed the order window into the snapshot."""
    return pump.event_counts().get(events.Tick, 0) > 1


def say_ready(*, json: bool = False) -> None:
    """Print `ready` on a line of its own on standard error, and notify systemd if it waits for that (sd_notify(3))."""
    if json:
        logging.getLogger("vftrace").info("ready")
    else:
        print("ready", file=sys.stderr, flush=True)
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        path = "\0" + address[1:] if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            try:
                notify.sendto(b"READY=1", path)
            except OSError as error:
                print(f"vftrace: cannot notify systemd: {error.strerror}", file=sys.stderr)
