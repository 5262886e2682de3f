# SPDX-License-Identifier: MIT
"""`vftrace list`: prints the migrations of recordings, one line each."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from vftrace.commands.common import add_utc_argument, say
from vftrace.commands.select import add_select_arguments, selectors_of

HELP = "list the migrations in recordings, one line each"
EXAMPLES = (
    ("vftrace list", "list all migrations of this host's flight recorder"),
    ("vftrace list --since yesterday --failed", "list migrations that failed since yesterday"),
    (
        "vftrace list --vm web-1 --longer-than 500ms",
        "list one VM's migrations with a long downtime",
    ),
    ("vftrace list --json --last 10", "print JSON, one document per line"),
    ("vftrace list source.vft destination.vft", "list the migrations of both hosts, joined"),
)

_MAX_NOTES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DIR or FILE..., the selection of migrations, and the format."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="*",
        metavar="DIR|FILE",
        help="a directory of recordings, or recordings (default: $STATE_DIRECTORY, else /var/lib/vftrace)",
    )
    add_select_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, one document per line")
    add_utc_argument(parser)
    parser.add_argument("--ascii", action="store_true", help="print ASCII characters only")


def run(args: argparse.Namespace) -> int:
    """Print the list; returns 1 if a named recording cannot be read."""
    from vftrace.archive.listing import document, lines
    from vftrace.archive.past import default_directory, gather, select
    from vftrace.commands import pager
    from vftrace.outputs.text.glyphs import glyphs

    selectors = selectors_of(args)
    paths = args.paths or [default_directory()]
    listed = gather(paths)
    found = select(listed, selectors)
    for note in listed.notes[:_MAX_NOTES]:
        say(note)
    if len(listed.notes) > _MAX_NOTES:
        say(f"and {len(listed.notes) - _MAX_NOTES} more incomplete or unreadable files")
    unicode = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    if args.json:
        for each in found:
            print(document(each))
    elif found:
        terminal = sys.stdout.isatty()
        drawn = lines(
            found,
            glyphs(ascii=args.ascii or not unicode),
            utc=args.utc,
            width=shutil.get_terminal_size().columns if terminal else None,
            color=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        )
        text = "\n".join(drawn) + "\n"
        if pager.is_wanted(no_pager=args.no_pager):
            pager.page(text)
        else:
            sys.stdout.write(text)
    elif listed.unreadable < len(paths):
        where = ", ".join(map(str, paths))
        say(
            f"none of {len(listed.found)} migrations in {where} matches"
            if listed.found
            else f"no migration in {where}"
        )
    return 1 if listed.unreadable else 0
