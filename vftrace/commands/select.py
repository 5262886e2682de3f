# SPDX-License-Identifier: MIT
"""The options that select migrations of the past, the same for `list` and `report`."""

import argparse
from datetime import datetime
from typing import TYPE_CHECKING

from vftrace.errors import UsageError
from vftrace.units import parse_duration

if TYPE_CHECKING:
    from vftrace.archive.past import Selectors


def add_select_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--vm`, `--since`, `--until`, `--failed`, `--longer-than`, `--number`, `--last`."""
    group = parser.add_argument_group("which migrations")
    group.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="UUID|NAME|PID",
        help="only migrations of this VM (repeatable; the first 8 digits of a UUID are enough)",
    )
    group.add_argument(
        "--since",
        metavar="TIME",
        help="only migrations that began after this time: 2h (ago), 1h30m, 7d, yesterday, 02:10, '2026-11-29 02:10'",
    )
    group.add_argument(
        "--until", metavar="TIME", help="only migrations that began before this time"
    )
    group.add_argument("--failed", action="store_true", help="only failed migrations")
    group.add_argument(
        "--longer-than",
        type=parse_duration,
        metavar="TIME",
        help="only migrations with a longer downtime, for example 500ms",
    )
    group.add_argument(
        "--number",
        type=_count,
        metavar="N",
        help="only the migration with this number in `vftrace list` of the same directory or recordings",
    )
    group.add_argument(
        "--last", type=_count, metavar="N", help="only the last N of the selected migrations"
    )
    parser.add_argument(
        "--no-pager", action="store_true", help="do not use a pager on a terminal (less, $PAGER)"
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError(f"not a number from 1 on: {text!r}")
    return int(text)


def selectors_of(args: argparse.Namespace) -> "Selectors":
    """Return the selection that the options make; times are local. Raises UsageError for an invalid time."""
    from vftrace.archive.past import Selectors
    from vftrace.archive.when import parse_when

    now = datetime.now().astimezone()
    since_ns = None if args.since is None else parse_when(args.since, now)
    until_ns = None if args.until is None else parse_when(args.until, now)
    if since_ns is not None and until_ns is not None and since_ns > until_ns:
        raise UsageError(f"--since {args.since} is later than --until {args.until}")
    return Selectors(
        vms=tuple(args.vm),
        since_ns=since_ns,
        until_ns=until_ns,
        failed=args.failed,
        longer_ns=args.longer_than,
        number=args.number,
        last=args.last,
    )
