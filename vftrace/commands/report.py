"""`vftrace report`: what recordings tell about each migration in them."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

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
    parser.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="also send each migration as a trace to this OTLP/HTTP collector"
        " (`env`: that of OTEL_EXPORTER_OTLP_ENDPOINT)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report. A recording that ends early is reported up to there, with a warning."""
    from vftrace.migration.stitch import stitch
    from vftrace.outputs.joined_json import joined_json, placed_migrations
    from vftrace.sources.merge import load

    loaded = load(args.files)
    for damage in loaded.damage:
        print(f"vftrace: {damage}; what comes before it is reported", file=sys.stderr)
    joined = stitch(loaded.boots, loaded.pings)
    if args.otlp_endpoint is not None:
        _send(args.otlp_endpoint, placed_migrations(loaded, joined))
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


def _send(endpoint: str, placed: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Send the traces, and say how many went where."""
    from vftrace.outputs.otlp import send, trace_of

    traces = [trace for host, migration in placed if (trace := trace_of(host, migration))]
    count = send(endpoint, traces)
    for trace in traces:
        print(f"vftrace: trace {trace.id}", file=sys.stderr)
    print(f"vftrace: sent {len(traces)} traces, {count} spans", file=sys.stderr)
