# SPDX-License-Identifier: MIT
"""`vftrace mailbox`: prints the messages between network cards and their virtual functions, one line each."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vftrace.commands.common import (
    Deadline,
    Interrupt,
    add_live_arguments,
    add_profile_argument,
    add_utc_argument,
    profile_texts,
    say_ready,
)
from vftrace.errors import MachineError, UsageError

if TYPE_CHECKING:
    from vftrace.outputs.text.mailbox_log import Dump

HELP = "print the messages between network cards and their virtual functions"
EXAMPLES = (
    ("vftrace mailbox", "print the messages between PF and VF drivers live"),
    ("vftrace mailbox migration.vft", "print the messages in a recording"),
)

_PCI_ADDRESS = re.compile(
    r"([0-9a-f]{4,}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII | re.IGNORECASE
)
"""A card, with or without its domain, which has more than four digits behind some bridges."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`FILE`, `--pf`, `--vf`, `--json`, `--profile`, `--duration`, `--way`."""
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="a recording (default: this host, live)"
    )
    parser.add_argument(
        "--pf",
        action="append",
        type=_address,
        metavar="ADDRESS",
        help="only this card, e.g. 0000:01:00.0",
    )
    parser.add_argument(
        "--vf", action="append", type=_number, metavar="N", help="only virtual functions N"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line")
    add_utc_argument(parser)
    add_profile_argument(parser)
    add_live_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print until the recording ends, or live until Ctrl-C, SIGTERM or the duration's end."""
    if args.file is not None and (args.duration is not None or args.way is not None):
        raise UsageError("--duration and --way are for live tracing, not for a recording")
    profiles = profile_texts(args)
    if args.file is not None:
        _replay(args, profiles)
    else:
        _live(args, profiles)
    return 0


def _dump(args: argparse.Namespace, recorded: Sequence[str], profiles: Sequence[str]) -> "Dump":
    from vftrace.mailbox.profile import drivers_of
    from vftrace.outputs.text.mailbox_log import Dump

    drivers = drivers_of(recorded, profiles)
    return Dump(pfs=args.pf or (), vfs=args.vf or (), as_json=args.json, drivers=drivers)


def _replay(args: argparse.Namespace, profiles: Sequence[str]) -> None:
    from vftrace.collect.recording import Recording
    from vftrace.collect.replay import events_of

    recording = Recording(args.file)
    dump = _dump(args, recording.host.profiles, profiles)
    for event in events_of(recording):
        _print(dump.feed(event))
    _print(dump.summary())
    if recording.not_whole is not None:
        print(f"vftrace: {args.file}: {recording.not_whole}", file=sys.stderr)
    elif not dump.heard:
        print(f"vftrace: {args.file} has no mailbox messages", file=sys.stderr)


def _live(args: argparse.Namespace, profiles: Sequence[str]) -> None:
    from vftrace.collect.pump import batches_of, steps
    from vftrace.collect.session import Opening
    from vftrace.probes.registry import MAILBOX

    dump = _dump(args, (), profiles)
    with Interrupt() as interrupt, Opening(args.way, profiles, user=args.user).finish() as session:
        status = next(probe for probe in session.host.probes if probe.name == MAILBOX.name)
        refused = session.source.mailbox_refused
        if status.method is None and refused:
            raise MachineError(f"mailboxes cannot be traced here: {refused}")
        if status.reason is not None:
            # The driver's module may be loaded later; then vftrace attaches to it.
            print(f"vftrace: mailbox: {status.reason}", file=sys.stderr)
        deadline = Deadline(args.duration)
        say_ready()
        for step in steps(batches_of(session, lambda: interrupt.set or deadline.passed())):
            for event in step.due:
                _print(dump.feed(event))
        _print(dump.summary())


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _address(text: str) -> str:
    if _PCI_ADDRESS.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"not a PCI address: {text!r} (such as 0000:01:00.0)")
    return text


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"not a number of a virtual function: {text!r}")
    return int(text)
