# SPDX-License-Identifier: MIT
"""`vftrace top`: shows VMs and their migrations live; prints lines or JSON without a terminal."""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from msgspec.structs import replace

from vftrace.commands.common import (
    Deadline,
    Interrupt,
    LogLines,
    Selection,
    add_force_argument,
    add_live_arguments,
    add_log_arguments,
    add_profile_argument,
    add_recorder_arguments,
    add_utc_argument,
    file_of,
    has_looked,
    make_record_dir,
    open_recorder,
    profile_texts,
    say_ready,
    warn,
)
from vftrace.errors import UsageError
from vftrace.host import processes

if TYPE_CHECKING:
    from rich.console import Console

    from vftrace.archive.flight import FlightRecorder
    from vftrace.collect.pump import Pump
    from vftrace.commands.serve import Service
    from vftrace.model.host import HostInfo
    from vftrace.model.migration import Snapshot
    from vftrace.outputs.top.keys import KeyReader
    from vftrace.outputs.top.state import Row, ViewState
    from vftrace.outputs.top.view import Frame

HELP = "watch VMs and their migrations live"
EXAMPLES = (
    ("vftrace top", "show all VMs of this host"),
    ("vftrace top --vm web1", "show one VM, by name, UUID or process id"),
    ("vftrace top --replay FILE --speed 4", "watch a recording, four times as fast"),
)

REDRAW_SECONDS = 0.2
DRAWING_SHARE = 0.1
"""Largest share of the time spent drawing: a list of a thousand VMs is drawn less often."""
IDLE_SECONDS = 0.05
ONCE_NS = 1_000_000_000
ONCE_PATIENCE_NS = 30_000_000_000
"""How much longer `--once` waits on a host so busy that vftrace got no CPU time to look."""
MAX_SAVED = 100
"""The most reports of one migration that the key `s` writes."""
NO_KVM_SECONDS = 5.0
"""The greatest age of the count of QEMU processes without KVM."""

Until = Callable[[], bool]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the view, of recording and of serving."""
    from vftrace.commands.serve import add_web_arguments

    parser.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="UUID|NAME|PID",
        help="show only this VM (repeatable; the first 8 digits of a UUID are enough)",
    )
    parser.add_argument("--once", action="store_true", help="print one state after 1 s and end")
    parser.add_argument("--json", action="store_true", help="print JSON, one document per line")
    add_utc_argument(parser)
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play a recording instead")
    parser.add_argument(
        "--speed",
        metavar="N",
        help="playback speed: 1 is real time (default), 0 is as fast as possible",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="also write a recording to this file"
    )
    add_force_argument(parser)
    add_recorder_arguments(parser)
    parser.add_argument("--serve", action="store_true", help="also serve metrics")
    add_profile_argument(parser)
    add_live_arguments(parser)
    add_log_arguments(parser, default=None)
    add_web_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show VMs and migrations until q, Ctrl-C, SIGTERM or the duration's end."""
    from vftrace.outputs.log.handler import configure

    _check(args)
    configure(args.log_format, args.log_level or "info")
    with Interrupt(args.replay) as interrupt, ExitStack() as stack:
        service = _serve(args, stack)
        # Log the last migrations after the pump has closed, because closing takes the last records.
        logs = ExitStack()
        stack.enter_context(logs)
        pump, recorder = _open(args, stack)
        log = LogLines(args, pump, args.vm, file_of(recorder))
        logs.callback(log.close)
        if service is not None:
            service.attach(pump, args.vm, recorder)
        if args.duration is None and args.once:
            args.duration = ONCE_NS
        deadline = Deadline(args.duration)

        def until() -> bool:
            # The loops below call this in every turn, so it also counts ended migrations.
            if service is not None:
                service.tick()
            log.tick()
            return interrupt.set or deadline.passed()

        if args.once:
            _once(pump, args, until, lambda: interrupt.set)
        elif args.json or not _can_draw():
            _lines(pump, args, until)
        else:
            watch(
                pump,
                until=until,
                selection=Selection(args.vm, live=args.replay is None),
                note=_note(args),
                ascii=args.ascii,
                no_kvm=_NoKvm(args, pump).count,
            )
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.speed is not None and args.replay is None:
        raise UsageError("--speed is for --replay")
    if args.replay is not None and args.record is not None:
        raise UsageError("--record of a --replay would be the same recording again")
    if args.replay is not None and args.record_dir is not None:
        raise UsageError("--record-dir is for tracing this host, not for --replay")
    if args.replay is not None and args.way is not None:
        raise UsageError("--way is for tracing this host, not for --replay")


def _open(args: argparse.Namespace, stack: ExitStack) -> "tuple[Pump, FlightRecorder | None]":
    """Return the pump, which `stack` closes in order, and the flight recorder, if there is one."""
    from vftrace.collect.pump import Pump
    from vftrace.collect.replay import ReplaySource, parse_speed
    from vftrace.collect.session import Opening

    profiles = profile_texts(args)
    if args.replay is not None:
        return Pump(ReplaySource(args.replay, parse_speed(args.speed or "1")), profiles), None
    make_record_dir(args)
    session = Opening(
        args.way, profiles, args.record, force=args.force, lose=warn, user=args.user
    ).finish()
    stack.enter_context(session)
    recorder = open_recorder(args, args.vm, warn)
    pump = Pump(session, recorder=recorder)
    stack.callback(pump.close)
    return pump, recorder


def _serve(args: argparse.Namespace, stack: ExitStack) -> "Service | None":
    """Return the service, which listens before probes are attached; None without --serve."""
    if not args.serve:
        if args.web_addresses or args.web_config is not None:
            raise UsageError("--web.* options need --serve")
        return None
    from vftrace.commands.serve import Service

    service = Service(args)
    stack.callback(service.close)
    if args.json or args.once or not _can_draw():
        for url in service.urls:
            logging.getLogger("vftrace").info("serving %s", url)
    return service


def _note(args: argparse.Namespace) -> str:
    said = []
    if args.replay is not None:
        said.append(f"replay {args.replay.name} x{args.speed or 1}")
    if args.record is not None:
        said.append(f"recording to {args.record.name}")
    if args.record_dir is not None:
        said.append(f"recording into {args.record_dir.name}")
    if args.serve:
        said.append("serving metrics")
    return ", ".join(said)


def _can_draw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _step(pump: "Pump") -> None:
    """Read once; at the end of a replay wait only for keys."""
    if pump.ended:
        time.sleep(IDLE_SECONDS)
    else:
        pump.step()


class _NoKvm:
    """Counts QEMU processes without KVM on this host, for an empty list."""

    def __init__(self, args: argparse.Namespace, pump: "Pump") -> None:
        self._live = args.replay is None
        self._pump = pump
        self._count = 0
        self._counted_at = -math.inf

    def count(self, snapshot: "Snapshot") -> int:
        """Return their number; 0 if VMs are shown, and in a replay."""
        if not self._live or snapshot.vms or snapshot.migrations or not has_looked(self._pump):
            return 0
        if time.monotonic() - self._counted_at > NO_KVM_SECONDS:
            # All VMs, whatever is selected: this process may not read the open files of others.
            known = {vm.pid for vm in self._pump.snapshot().vms}
            self._count = sum(pid not in known for pid in processes.qemu_pids())
            self._counted_at = time.monotonic()
        return self._count


def _once(
    pump: "Pump", args: argparse.Namespace, until: Until, interrupted: Callable[[], bool]
) -> None:
    from vftrace.model.select import select
    from vftrace.outputs.report.json import state_json
    from vftrace.outputs.text.printing import show
    from vftrace.outputs.top.view import Frame, Once

    while not until() and not pump.ended:
        pump.step()
    patience = Deadline(ONCE_PATIENCE_NS)
    while not (pump.ended or has_looked(pump) or patience.passed() or interrupted()):
        pump.step()
    if not (pump.ended or has_looked(pump)):
        print(
            "vftrace: vftrace got no CPU time to look at this host: VMs may be missing below",
            file=sys.stderr,
        )
    Selection(args.vm).require(pump.snapshot())
    snapshot = select(pump.snapshot(), args.vm)
    if args.json:
        print(json.dumps(state_json(pump.host, snapshot)), flush=True)
        return
    frame = Frame(
        pump.host, snapshot, pump.now_ns(), _state(args, pump, snapshot), _note(args), args.ascii
    )
    show(Once(frame))


def _state(args: argparse.Namespace, pump: "Pump", snapshot: "Snapshot") -> "ViewState":
    from vftrace.outputs.top.state import ViewState

    return ViewState(wanted=tuple(args.vm), without_kvm=_NoKvm(args, pump).count(snapshot))


def _lines(pump: "Pump", args: argparse.Namespace, until: Until) -> None:
    """Print a line, or with `--json` a document, for each change."""
    from vftrace.model.select import select
    from vftrace.outputs.report.json import state_json
    from vftrace.outputs.text.glyphs import glyphs
    from vftrace.outputs.top.lines import changes

    if args.replay is None:
        # Not before these imports, which may take half a second on a busy host: nothing is recorded meanwhile.
        say_ready(json=args.log_format == "json")
    unicode = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    g = glyphs(ascii=args.ascii or not unicode)
    before: Snapshot | None = None
    selection = Selection(args.vm, live=args.replay is None)
    last = False
    while not last:
        last = until() or pump.ended
        if last:
            # held-back events belong to the last line too
            pump.close()
        else:
            pump.step()
        selection.check(pump)
        snapshot = select(pump.snapshot(), args.vm)
        if before is not None and _same(before, snapshot):
            continue
        if args.json:
            print(json.dumps(state_json(pump.host, snapshot)), flush=True)
        else:
            for line in changes(before, snapshot, g):
                print(line, flush=True)
        before = snapshot


def _same(before: "Snapshot", after: "Snapshot") -> bool:
    """Whether nothing but the time has changed."""
    return (before.vms, before.migrations, before.vfs, before.lost) == (
        after.vms,
        after.migrations,
        after.vfs,
        after.lost,
    )


def watch(
    pump: "Pump",
    *,
    until: Until = lambda: False,
    selection: Selection | None = None,
    note: str = "",
    ascii: bool = False,  # noqa: A002
    no_kvm: "Callable[[Snapshot], int]" = lambda _: 0,
    choose: "Callable[[Snapshot], Snapshot]" = lambda snapshot: snapshot,
) -> None:
    """Draw the live view on the alternate screen until q is pressed or `until` returns true.

    Steps the pump meanwhile. The terminal is left as it was, whatever happens. `selection` has
    the VMs to show; `note` is shown in the first line; `no_kvm` counts QEMU processes without
    KVM if a snapshot has no VM; `choose` removes from a snapshot what is not shown.
    """
    from rich.console import Console

    from vftrace.model.select import select
    from vftrace.outputs.top.state import ViewState, press
    from vftrace.outputs.top.view import Frame

    console = Console(highlight=False)
    selection = selection or Selection()
    state = ViewState(wanted=selection.wanted)
    frozen: Frame | None = None
    with _keyboard() as keys, _alternate_screen(console):
        # The first picture is due at once, also right after boot (CLOCK_MONOTONIC starts at 0).
        drawn_at, drawn_size, cost = -math.inf, console.size, 0.0
        while not state.quit and not until():
            _step(pump)
            selection.check(pump)
            snapshot = choose(select(pump.snapshot(), selection.wanted))
            if frozen is not None:
                snapshot = frozen.snapshot
            pressed = keys.read() if keys is not None else []
            for key in pressed:
                state = press(state, key, snapshot)
                if state.saving is not None:
                    said = _save(pump.host, snapshot, state.saving)
                    state = replace(state, saving=None, said=said)
            pause = max(REDRAW_SECONDS, cost / DRAWING_SHARE)
            due = time.monotonic() - drawn_at >= pause
            size = console.size
            if not (due or pressed or size != drawn_size):
                continue
            now_ns = frozen.now_ns if frozen is not None else pump.now_ns()
            ended = f"{note}, at its end" if pump.ended and note else note
            state = replace(state, without_kvm=no_kvm(snapshot))
            frame = Frame(pump.host, snapshot, now_ns, state, ended, ascii)
            state = frame.settled(console) if pressed else state
            frozen = frame if state.paused else None
            began = time.monotonic()
            _draw(console, frame)
            # Keep the size before drawing: a window that is resized meanwhile is drawn again at once.
            drawn_at, drawn_size = time.monotonic(), size
            cost = drawn_at - began


def _save(host: "HostInfo", snapshot: "Snapshot", row: "Row") -> str:
    """Write the report of a migration into the working directory; returns the file's name, or why it was not
    written."""
    from vftrace.archive.names import safe_vm
    from vftrace.faults import FAULTS, Where
    from vftrace.model import figures
    from vftrace.model.report import live_report
    from vftrace.outputs.report.html import render_html
    from vftrace.outputs.top.state import migration_of

    m = migration_of(row, snapshot)
    if m is None:
        return "no migration to save here"
    began = figures.wall_time(snapshot.clock, m.started_at_ns)
    at = f"{began:%Y%m%dT%H%M%SZ}" if began is not None else f"{m.started_at_ns}"
    stem = f"vftrace-{safe_vm(m.name, m.uuid, m.pid)}-{at}"
    try:
        page = render_html(live_report(host, replace(snapshot, migrations=(m,))))
        # A running migration may be saved several times; existing files are not changed.
        for number in range(1, MAX_SAVED):
            path = Path(f"{stem}.html" if number == 1 else f"{stem}-{number}.html")
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(page)
                return f"saved {path}"
    except OSError as error:
        return f"cannot save {stem}.html: {error.strerror}"
    except Exception as error:
        return f"not saved: {FAULTS.contained(Where.TOP, error, 'the report is not saved')}"
    return f"not saved: there are {MAX_SAVED} reports {stem}"


def _draw(console: "Console", frame: "Frame") -> None:
    """Draw a picture; if vftrace fails on it, a line reports that, and the next picture is tried."""
    from rich.text import Text

    from vftrace.faults import FAULTS, Where

    try:
        console.update_screen(frame)
    except Exception as error:
        place = FAULTS.contained(Where.TOP, error, "the picture is not drawn")
        console.update_screen(Text(f"not drawn, because of an error in vftrace: {place}"))


@contextlib.contextmanager
def _alternate_screen(console: "Console") -> Iterator[None]:
    """Use the alternate screen, and hold back lines on standard error, which would spoil the picture."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            console.set_alt_screen(True)
            console.show_cursor(False)
            yield
    finally:
        console.show_cursor(True)
        console.set_alt_screen(False)
        print(said.getvalue(), end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _keyboard() -> Iterator["KeyReader | None"]:
    """Read keys from standard input, else from the controlling terminal, else none."""
    from vftrace.outputs.top.keys import KeyReader

    with ExitStack() as stack:
        terminal = _terminal(stack)
        yield None if terminal is None else stack.enter_context(KeyReader(terminal.fileno()))


def _terminal(stack: ExitStack) -> TextIO | None:
    if sys.stdin is not None and sys.stdin.isatty():
        return sys.stdin
    try:
        return stack.enter_context(Path("/dev/tty").open())
    except OSError:
        return None
