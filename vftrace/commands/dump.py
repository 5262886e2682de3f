# SPDX-License-Identifier: MIT
"""`vftrace dump`: prints every event of a recording, one line each."""

import argparse
import sys
from pathlib import Path

HELP = "print every event of a recording, one line each"
EXAMPLES = (
    ("vftrace dump migration.vft", "print time (CLOCK_BOOTTIME), process/thread, event and fields"),
    ("vftrace dump --json migration.vft", "print JSON, one document per line"),
    ("vftrace dump --clock utc migration.vft", "print times of day"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE and the options of the format."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording (`-`: standard input)")
    parser.add_argument("--json", action="store_true", help="print JSON, one document per line")
    parser.add_argument(
        "--clock",
        choices=("boot", "local", "utc"),
        default="boot",
        help="clock of the times in text: since boot, or the time of day (default: boot, as in JSON)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the events, and at the end why the recording is incomplete, if it is."""
    from vftrace.archive.dump import lines
    from vftrace.collect.recording import Recording
    from vftrace.commands.common import say

    recording = Recording(args.file)
    for line in lines(recording, as_json=args.json, clock=args.clock):
        print(line)
    if recording.not_whole is not None:
        sys.stdout.flush()
        say(f"{args.file}: {recording.not_whole}")
    return 0
