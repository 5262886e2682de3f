# SPDX-License-Identifier: MIT
"""`vftrace record`: writes the records of the kernel side to a file, for `vftrace report`."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vftrace.commands.common import (
    Deadline,
    Interrupt,
    LogLines,
    add_force_argument,
    add_live_arguments,
    add_log_arguments,
    add_profile_argument,
    add_recorder_arguments,
    file_of,
    inform,
    make_record_dir,
    open_recorder,
    profile_texts,
    say_ready,
)
from vftrace.errors import UsageError

HELP = "record migrations on this host to a file"
EXAMPLES = (
    ("vftrace record -o migration.vft", "record until Ctrl-C"),
    ("vftrace record -o migration.vft --duration 10m", "record for ten minutes"),
    ("vftrace record --record-dir DIR", "keep a recording of each migration"),
    ("vftrace record --vm web-1 -o web-1.vft", "record one VM, also if it starts later"),
    ("vftrace record -o - --duration 60s", "write to standard output, for example into ssh"),
)

_PATIENCE_NS = 2_000_000_000
"""After this time a line names the VMs of `--vm` that do not run yet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `-o FILE`, `--record-dir`, `--vm`, `--profile`, `--duration`, `--way`."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="recording to write, for `vftrace report` (`-`: to standard output, a file or a pipe)",
    )
    add_force_argument(parser)
    add_recorder_arguments(parser)
    parser.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="UUID|NAME|PID",
        help="record only this VM, now or when it starts (repeatable; the first 8 digits of a UUID are enough)",
    )
    add_profile_argument(parser)
    add_log_arguments(parser, default=None)
    add_live_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Record until Ctrl-C, SIGTERM, SIGHUP or the duration's end."""
    from vftrace.collect.recording import STANDARD
    from vftrace.collect.session import Opening
    from vftrace.outputs.log.handler import configure

    configure(args.log_format, args.log_level or "info")
    if args.output is None and args.record_dir is None:
        raise UsageError("name a file with -o FILE, or a directory with --record-dir DIR")
    only = None
    if args.vm and args.output is not None:
        from vftrace.collect.only import OnlyVms

        only = OnlyVms(args.vm)
    profiles = profile_texts(args)
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        make_record_dir(args)
        session = Opening(
            args.way, profiles, args.output, force=args.force, only=only, user=args.user
        ).finish()
        stack.enter_context(session)
        read: Callable[[], object] = session.read
        recorder = open_recorder(args, args.vm, inform)
        tick: Callable[[], None] = lambda: None  # noqa: E731
        if recorder is not None or args.log_level is not None:
            # Without a recorder nothing is decoded, which saves a third of the time.
            from vftrace.collect.pump import Pump

            pump = Pump(session, recorder=recorder)
            log = LogLines(args, pump, args.vm, file_of(recorder))
            stack.callback(log.close)
            stack.callback(pump.close)
            read, tick = pump.step, log.tick
        deadline = Deadline(args.duration)
        say_ready(json=args.log_format == "json")
        patience = Deadline(_PATIENCE_NS if only is not None else None)
        while not interrupt.set and not deadline.passed():
            read()
            tick()
            if only is not None and patience.passed():
                patience = Deadline(None)
                for word in only.missing:
                    inform(f"no VM matches {word!r} yet; it is recorded when it starts")
    for word in () if only is None else only.missing:
        inform(f"no VM matched {word!r}")
    if args.output is not None and args.output != STANDARD:
        inform(f"wrote {args.output} ({args.output.stat().st_size} bytes)")
    return 0
