# SPDX-License-Identifier: MIT
"""`vftrace anonymize`: writes a recording without names and addresses, to attach to a bug report."""

import argparse
from pathlib import Path

from vftrace.commands.common import add_force_argument, say

HELP = "write a copy of a recording without names and addresses"
EXAMPLES = (
    ("vftrace anonymize migration.vft -o report-42.vft.gz", "make a recording for a bug report"),
    (
        "vftrace anonymize source.vft -o s.vft --key K",
        "use one key for both hosts' recordings, so that they still join",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE, `-o OUT`, `--key`, `--force`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="where to write it (compressed if it ends with .gz)",
    )
    parser.add_argument(
        "--key",
        metavar="TEXT",
        help="derive the new names from this text, so that several files get the same names (default: random)."
        " Anybody who knows the key can test whether a name was in the recording",
    )
    add_force_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write the anonymized recording, and print what it still reveals."""
    from vftrace.archive.anonymize import anonymize
    from vftrace.collect.recording import Recording, check_output

    check_output(args.output, force=args.force)
    not_whole = anonymize(args.file, args.output, args.key, force=args.force)
    if not_whole is not None:
        say(f"{args.file}: {not_whole}; what comes before it is in {args.output}")
    if Recording(args.output).host.profiles:
        say("the mailbox profiles it was recorded with are still in it")
    say(
        f"wrote {args.output}: times, sizes, PCI addresses and the kernel's release are unchanged"
        " (docs/reference/recordings.md)"
    )
    return 0
