"""`vftrace report`: what recordings tell about each migration in them."""

import argparse
import json
import sys
from pathlib import Path

HELP = "say where the time of recorded migrations went"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE..., `--format`, `--ascii`."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="a recording of `vftrace record` or `vftrace ping`; of several hosts: stitched",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")


def run(args: argparse.Namespace) -> int:
    """Print the report. A recording that ends early is reported up to there, with a warning."""
    from vftrace.migration.stitch import stitch
    from vftrace.outputs.joined_json import joined_json
    from vftrace.sources.merge import load

    loaded = load(args.files)
    for damage in loaded.damage:
        print(f"vftrace: {damage}; what comes before it is reported", file=sys.stderr)
    joined = stitch(loaded.boots, loaded.pings)
    if args.format == "json":
        print(json.dumps(joined_json(loaded, joined), indent=2))
        return 0
    from rich.console import Console

    from vftrace.outputs.report_joined import render_joined
    from vftrace.outputs.report_text import render_report

    single = len(args.files) == 1 and len(loaded.boots) == 1
    said = loaded.damage[0].removeprefix(f"{args.files[0]}: ") if loaded.damage else None
    Console(highlight=False).print(
        render_report(loaded.hosts[0], loaded.boots[0].snapshot, said, ascii=args.ascii)
        if single
        else render_joined(loaded, joined, ascii=args.ascii)
    )
    return 0
