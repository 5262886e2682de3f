"""`vftrace record`: write what the kernel side sees to a file, for `vftrace report`."""

import argparse
import sys
from pathlib import Path

from vftrace.commands.common import (
    Deadline,
    Interrupt,
    add_live_arguments,
    add_profile_argument,
    profile_texts,
    say_ready,
)

HELP = "record migrations on this host to a file"
EXAMPLES = (
    ("vftrace record -o migration.vft", "until Ctrl-C"),
    ("vftrace record -o migration.vft --duration 10m", "ends by itself"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`-o FILE`, `--profile`, `--duration`, `--way`."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="recording to write, for `vftrace report`",
    )
    add_profile_argument(parser)
    add_live_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Record until Ctrl-C, SIGTERM or the duration's end."""
    from vftrace.collect.session import open_live

    profiles = profile_texts(args)
    with Interrupt() as interrupt, open_live(args.way, profiles, args.output) as session:
        deadline = Deadline(args.duration)
        say_ready()
        while not interrupt.set and not deadline.passed():
            session.read()
    size = args.output.stat().st_size
    print(f"vftrace: wrote {args.output} ({size} bytes)", file=sys.stderr)
    return 0
