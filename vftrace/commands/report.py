# SPDX-License-Identifier: MIT
"""`vftrace report`: shows each migration in recordings."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vftrace.analysis.devices.vf_history import MAX_RECENT
from vftrace.commands import pager
from vftrace.commands.common import add_profile_argument, add_utc_argument, profile_texts, say
from vftrace.commands.select import add_select_arguments, selectors_of
from vftrace.errors import UsageError, VftraceError
from vftrace.faults import FAULTS, Where
from vftrace.units import parse_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vftrace.analysis.forecast.answer import Assumptions
    from vftrace.model.migration import Migration
    from vftrace.model.report import Report

HELP = "report where the time of recorded migrations went"
EXAMPLES = (
    ("vftrace report migration.vft", "report where the time went, as text"),
    ("vftrace report source.vft destination.vft", "join the recordings of both hosts"),
    ("vftrace report --last 1", "report the latest migration of the flight recorder"),
    (
        "vftrace report /var/lib/vftrace --vm web-1 --since 2h",
        "report one VM's migrations of the last two hours",
    ),
    (
        "vftrace report migration.vft -o report.html",
        "write a page for a browser; .json and .perfetto-trace work too",
    ),
)

_FILE_WIDTH = 100

_FORMAT_OF_SUFFIX = {".html": "html", ".json": "json", ".perfetto-trace": "perfetto"}
_TEXT_SUFFIXES = frozenset({"", ".txt", ".text", ".log", ".md"})

_DRAWN_MESSAGES = 10_000
"""How many of the latest messages of each virtual function a Perfetto trace has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE..., the format, the output, and what to compare with."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE|DIR",
        help="a recording of `vftrace record` or `vftrace ping` (`-`: standard input), or a directory of recordings;"
        " those of several hosts are joined (default: $STATE_DIRECTORY, else /var/lib/vftrace)",
    )
    add_select_arguments(parser)
    parser.add_argument(
        "--format",
        choices=("text", "json", "html", "perfetto"),
        help="form of the report (default: what the name after -o ends with: .html, .json or .perfetto-trace;"
        " else text)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write to this file instead of standard output",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        action="append",
        metavar="FILE",
        help="compare with the migrations in this recording (repeatable: one for each host)",
    )
    add_utc_argument(parser)
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument(
        "--what-if",
        metavar="NAME=VALUE,...",
        help="forecast the same guests under other settings, for example"
        " bandwidth=25Gbit,link=40Gbit,downtime-limit=300ms; settings that you leave out are taken from the recording",
    )
    add_profile_argument(parser)
    parser.add_argument(
        "--clock-error",
        type=parse_duration,
        metavar="TIME",
        help="assumed wall-clock error for hosts whose kernel reports none (no NTP)",
    )
    parser.add_argument(
        "--heatmap",
        action="store_true",
        help="draw the parts of memory that became dirty (as an image with -o FILE.png)",
    )
    parser.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="also send each migration as a trace to this OTLP/HTTP collector"
        " (`env`: the address in OTEL_EXPORTER_OTLP_ENDPOINT)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report. A recording that ends early is reported up to its end, with a warning."""
    _check_name(args)
    if args.format is None:
        args.format = _format_of(args.output)
    if args.compare and args.format not in ("text", "json"):
        raise UsageError(
            f"--compare prints text or json, not {args.format}: give --format text or --format json"
        )
    if args.format == "perfetto" and args.output is None and sys.stdout.isatty():
        raise UsageError("a Perfetto trace is binary: give -o FILE, or send it to a file")
    if args.heatmap and (args.compare or args.format != "text"):
        raise UsageError("--heatmap draws text, or an image with -o FILE.png")
    profiles = profile_texts(args)
    recent = _DRAWN_MESSAGES if args.format == "perfetto" else MAX_RECENT
    report = _requested(args, profiles, recent)
    if args.compare:
        _compare(args, report)
    elif args.heatmap and args.output is not None and args.output.suffix == ".png":
        _write(args.output, _heatmap_png(report))
    elif args.format == "text":
        _print_text(args, _text(args, report))
    else:
        _write(args.output, _FORMATS[args.format](report))
    # Send traces last, so that a collector that does not answer does not delay the report.
    if args.otlp_endpoint is not None:
        _send(args.otlp_endpoint, report)
    return 0


def _check_name(args: argparse.Namespace) -> None:
    """Print a note if the output's name names no format. Raises UsageError for the name of a recording."""
    from vftrace.archive.index import is_recording_name

    if args.output is None:
        return
    if is_recording_name(args.output.name):
        raise UsageError(f"{args.output} is the name of a recording: -o names the report to write")
    suffix = args.output.suffix.lower()
    drawn = args.heatmap and suffix == ".png"
    if args.format is None and not drawn and suffix not in {*_FORMAT_OF_SUFFIX, *_TEXT_SUFFIXES}:
        say(
            f"{args.output} is written as text: {suffix} is none of {', '.join(_FORMAT_OF_SUFFIX)}"
            " (--format chooses another format)"
        )


def _format_of(output: Path | None) -> str:
    """Return the format that the end of the output's name stands for; text for every other name."""
    return "text" if output is None else _FORMAT_OF_SUFFIX.get(output.suffix.lower(), "text")


def _requested(args: argparse.Namespace, profiles: Sequence[str], recent: int) -> "Report":
    """Return the migrations that the arguments name. Raises VftraceError if a directory has none of them."""
    from vftrace.archive.past import (
        default_directory,
        files_of,
        gather,
        keep,
        load_files,
        narrow,
        select,
    )
    from vftrace.collect.merge import load

    selectors = selectors_of(args)
    paths = args.files or [default_directory()]
    directories = [path for path in paths if path.is_dir()]
    if not directories:
        report = _join(load(_distinct(paths), profiles, recent), args.what_if, args.clock_error)
        report = _selected(report, args.vm)
        if not selectors.some:
            return report
        if selectors.number is None:
            narrowed = narrow(report, selectors)
        elif all(path.is_file() for path in paths):
            narrowed = keep(report, select(gather(paths), selectors))
        else:
            raise UsageError("--number needs recordings that can be read twice: not a pipe")
        if report.migrations and not narrowed.migrations:
            raise VftraceError(f"no migration that matches in {', '.join(map(str, paths))}")
        return narrowed
    if selectors.number is not None and len(directories) < len(paths):
        raise UsageError("--number counts in directories or in recordings: give only one of them")
    listed = gather(directories)
    wanted = select(listed, selectors)
    found = files_of(wanted, listed)
    report = load_files(found, profiles, recent)
    files = _distinct([path for path in paths if path not in directories], found)
    if files:
        report = report.with_hosts_of(load(files, profiles, recent))
    report = _join(report, args.what_if, args.clock_error)
    report = narrow(report, selectors) if files else keep(report, wanted)
    if not report.migrations:
        matching = " that matches" if selectors.some else ""
        raise VftraceError(f"no migration{matching} in {', '.join(map(str, paths))}")
    return report


def _distinct(paths: Sequence[Path], known: Sequence[Path] = ()) -> Sequence[Path]:
    """Return each named recording once: a shell's pattern and a name may be the same file."""
    from vftrace.archive.past import distinct

    files, notes = distinct(paths, known)
    for note in notes:
        say(note)
    return files


def _join(report: "Report", what_if: str | None, clock_error_ns: int | None) -> "Report":
    from vftrace.analysis.hosts.join import join_hosts
    from vftrace.collect.recording import BEING_WRITTEN

    if what_if is not None:
        report = _replay(report, _assumptions(what_if))
    for damage in report.damage:
        growing = damage.endswith(BEING_WRITTEN)
        say(f"{damage}; what {'it has so far' if growing else 'comes before it'} is reported")
    try:
        return join_hosts(report, clock_error_ns)
    except VftraceError:
        raise
    except Exception as error:
        FAULTS.contained(Where.JOIN, error, "the halves of migrations between hosts are not joined")
        return report


def _selected(report: "Report", wanted: Sequence[str]) -> "Report":
    """Return only the VMs that `--vm` names. Raises UsageError for a word that matches no VM on any host."""
    from vftrace.model.select import no_match, select_report, unmatched

    snapshots = [host.snapshot for host in report.hosts]
    for word in wanted:
        if all(unmatched(snapshot, [word]) for snapshot in snapshots):
            seen = replace(
                snapshots[0],
                vms=tuple(vm for snapshot in snapshots for vm in snapshot.vms),
                migrations=tuple(m for snapshot in snapshots for m in snapshot.migrations),
            )
            raise UsageError(no_match(seen, word))
    return select_report(report, wanted)


def _assumptions(text: str) -> "Assumptions":
    from vftrace.outputs.report.what_if import parse_what_if

    return parse_what_if(text)


def _replay(report: "Report", assumed: "Assumptions") -> "Report":
    """Return the report with every migration's forecast replayed from its beginning under other assumptions."""
    from vftrace.analysis.forecast.replay import Recorded, of_replay
    from vftrace.model.report import Report

    hosts = []
    for host in report.hosts:
        migrations = tuple(
            replace(m, forecast=of_replay(Recorded.of(m), assumed))
            for m in host.snapshot.migrations
        )
        hosts.append(replace(host, snapshot=replace(host.snapshot, migrations=migrations)))
    return Report.of_hosts(hosts, report.pings, report.damage)


def _migrations(report: "Report") -> "list[Migration]":
    return [migration for host in report.hosts for migration in host.snapshot.migrations]


def _heatmap_png(report: "Report") -> bytes:
    from vftrace.outputs.text.heatmap import heatmap_png

    return heatmap_png(_migrations(report))


def _text(args: argparse.Namespace, report: "Report") -> "RenderableType":
    """Return the report, or the comparison, heat map or forecast that the options select instead."""
    from rich.console import Group

    from vftrace.outputs.report.text import render_report
    from vftrace.outputs.report.what_if import render_forecasts
    from vftrace.outputs.text.heatmap import render_heatmap

    parts = []
    if args.what_if is not None:
        parts.append(render_forecasts(_migrations(report), ascii=args.ascii))
    if args.heatmap:
        parts.append(render_heatmap(_migrations(report), ascii=args.ascii))
    return Group(*parts) if parts else render_report(report, ascii=args.ascii)


def _json(report: "Report") -> bytes:
    from vftrace.outputs.report.json import report_json

    return json.dumps(report_json(report), indent=2).encode() + b"\n"


def _perfetto(report: "Report") -> bytes:
    from vftrace.outputs.report.perfetto import perfetto_trace

    trace = perfetto_trace(report)
    for line in trace.left_out:
        say(f"not in the trace: {line}")
    return trace.data


def _html(report: "Report") -> bytes:
    from vftrace.outputs.report.html import render_html

    return render_html(report).encode()


_FORMATS = {"json": _json, "html": _html, "perfetto": _perfetto}


def _compare(args: argparse.Namespace, report: "Report") -> None:
    from vftrace.collect.merge import load
    from vftrace.outputs.report.compare import compare, compare_json, pairs_of, render_comparisons
    from vftrace.outputs.text.glyphs import glyphs

    other = _join(load(_distinct(args.compare), profile_texts(args)), None, args.clock_error)
    a, b = report.migrations, other.migrations
    if not a or not b:
        empty = args.files if not a else args.compare
        raise VftraceError(f"no migration in {', '.join(map(str, empty))}: nothing to compare")
    found = [compare(first, second) for first, second in pairs_of(a, b)]
    if len(a) != len(b):
        say(f"{len(a)} migrations and {len(b)}: {len(found)} are compared")
    if args.format == "json":
        _write(args.output, json.dumps(compare_json(found), indent=2).encode() + b"\n")
    else:
        _print_text(args, render_comparisons(found, glyphs(ascii=args.ascii)))


def _print_text(args: argparse.Namespace, what: "RenderableType") -> None:
    from rich.console import Console

    from vftrace.outputs.text.printing import as_text, show

    if args.output is None and pager.is_wanted(no_pager=args.no_pager):
        console = Console(highlight=False)
        with console.capture() as captured:
            console.print(what)
        pager.page(captured.get())
        return
    if args.output is None:
        show(what)
    else:
        _write(args.output, as_text(what, _FILE_WIDTH).encode())


def _write(path: Path | None, content: bytes) -> None:
    if path is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise VftraceError(f"cannot write {path}: {error.strerror}") from error


def _send(endpoint: str, report: "Report") -> None:
    """Send the traces, and print how many were sent and where."""
    from vftrace.outputs.traces.otlp import send, traces_of

    traces, failed = traces_of(report.migrations)
    for line in failed:
        say(line)
    count = send(endpoint, traces)
    for trace in traces:
        say(f"trace {trace.id}")
    say(f"sent {len(traces)} traces, {count} spans")
