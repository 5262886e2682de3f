"""`vftrace report`: what a recording tells about each migration in it."""

import argparse
import json
import sys
from pathlib import Path

HELP = "say where the time of recorded migrations went"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, `--format`, `--ascii`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording of `vftrace record`")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")


def run(args: argparse.Namespace) -> int:
    """Print the report. A recording that ends early is reported up to there, with a warning."""
    from vftrace.outputs.report_json import report_json
    from vftrace.sources.recording import Recording
    from vftrace.sources.replay import track

    recording = Recording(args.file)
    snapshot = track(recording).snapshot()
    if recording.damage is not None:
        print(
            f"vftrace: {args.file}: {recording.damage}; what comes before it is reported",
            file=sys.stderr,
        )
    if args.format == "json":
        print(json.dumps(report_json(recording.host, snapshot), indent=2))
        return 0
    from rich.console import Console

    from vftrace.outputs.report_text import render_report

    Console(highlight=False).print(
        render_report(recording.host, snapshot, recording.damage, ascii=args.ascii)
    )
    return 0
