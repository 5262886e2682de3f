# SPDX-License-Identifier: MIT
"""Makes every output of one recording in this process, and finds errors, hidden errors, and JSON outside the schema."""

import json
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn
from unittest import mock

import jsonschema
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, RenderableType

from vftrace.analysis.forecast.replay import Recorded, of_replay
from vftrace.analysis.hosts.join import join_hosts
from vftrace.archive import dump, listing
from vftrace.archive.anonymize import anonymize
from vftrace.archive.past import gather
from vftrace.collect.merge import load
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording
from vftrace.collect.replay import ReplaySource, events_of
from vftrace.errors import VftraceError
from vftrace.faults import FAULTS, Faults
from vftrace.mailbox.profile import drivers_of
from vftrace.model.report import Report
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.metrics import Exporter
from vftrace.outputs.report.compare import compare, compare_json, pairs_of, render_comparisons
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.json import report_json, state_json
from vftrace.outputs.report.perfetto import perfetto_trace
from vftrace.outputs.report.text import render_report
from vftrace.outputs.report.what_if import parse_what_if, render_forecasts
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.text.heatmap import heatmap_png, render_heatmap
from vftrace.outputs.text.mailbox_log import Dump
from vftrace.outputs.top import state as view_state
from vftrace.outputs.top.lines import changes
from vftrace.outputs.top.state import ViewState
from vftrace.outputs.top.view import Frame, Once
from vftrace.outputs.traces.otlp import traces_of

SECONDS = 10
"""The longest time of one output of one recording."""

HIDDEN = "error in vftrace"
"""Words of an output that leaves a part out instead of ending."""

_SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "vftrace" / "report.schema.json").read_text())
)
_BIGGEST_CHECKED = 1_000_000
"""Bytes of JSON: jsonschema is slow."""


@dataclass(frozen=True)
class Fault:
    """A fault of one output. `place` is the same for faults with the same cause."""

    output: str
    place: str
    what: str


class TooLongError(BaseException):
    """Not an Exception, which the outputs would catch."""


class _FoundError(Exception):
    pass


def faults_of(path: Path, *others: Path) -> list[Fault]:
    """Run every output, and reports with the other recordings too; a refusal in one line is not a fault."""
    found: list[Fault] = []
    reports: list[Report] = []
    with redirect_stderr(StringIO()):
        _attempt(found, "load", lambda: reports.append(join_hosts(load([path, *others]))))
        for report in reports:
            for name, output in _OF_REPORT.items():
                _attempt(found, name, partial(output, report))
        _attempt(found, "pump", lambda: _pumped(path))
        _attempt(found, "mailbox", lambda: _mailbox(path))
        _attempt(found, "dump", lambda: _dumped(path))
        _attempt(found, "list", lambda: _listed(path))
        _attempt(found, "anonymize", lambda: _anonymized(path))
    return found


def _attempt(found: list[Fault], name: str, run: Callable[[], None]) -> None:
    contained: list[str] = []
    try:
        with limited(SECONDS), mock.patch.dict(vars(FAULTS), vars(Faults(contained.append))):
            run()
    except VftraceError:
        pass
    except _FoundError as error:
        found.append(Fault(name, re.sub(r"[\d'\"]+", "", str(error))[:120], str(error)))
    except (Exception, TooLongError) as error:
        found.append(fault_of(name, error))
    for text in contained:
        place = re.search(r"\w+ at \S+:\d+", text)
        found.append(Fault(name, f"contained: {place[0] if place else text[:80]}", text))


def fault_of(name: str, error: BaseException) -> Fault:
    """Return the error and its place; `name` is the output's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/vftrace/" in f.filename] or list(frames)
    place = f"{type(error).__name__} {Path(own[-1].filename).name}:{own[-1].name}"
    return Fault(name, place, "".join(traceback.format_exception(error)))


@contextmanager
def limited(seconds: float, *, waiting: bool = False) -> Iterator[None]:
    """Raise TooLongError in what takes more CPU, or if `waiting` counts as well, more time."""
    timer, number = (
        (signal.ITIMER_REAL, signal.SIGALRM) if waiting else (signal.ITIMER_PROF, signal.SIGPROF)
    )

    def too_long(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TooLongError(f"more than {seconds} s{'' if waiting else ' of CPU'}")

    before = signal.signal(number, too_long)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)


def _drawn(what: RenderableType, width: int = 100) -> None:
    file = StringIO()
    Console(file=file, highlight=False, width=width, color_system=None).print(what)
    _whole(file.getvalue())


def _whole(text: str) -> None:
    text.encode()
    if HIDDEN in text:
        at = text.index(HIDDEN)
        raise _FoundError("hidden: " + text[at : at + 160])
    if "\x1b" in text:
        raise _FoundError("an escape sequence of the recording reaches the terminal")


def _json(report: Report) -> None:
    text = json.dumps(report_json(report), allow_nan=False)
    if len(text) > _BIGGEST_CHECKED:
        return
    for error in _SCHEMA.iter_errors(json.loads(text)):
        where = "/".join(map(str, error.absolute_path))
        raise _FoundError(f"schema: {where}: {error.message[:200]}")


def _compared(report: Report) -> None:
    pairs = pairs_of(report.migrations, report.migrations)
    found = [compare(first, second) for first, second in pairs]
    json.dumps(compare_json(found), allow_nan=False)
    _drawn(render_comparisons(found, glyphs(ascii=False)))


def _what_if(report: Report) -> None:
    recorded = [m for host in report.hosts for m in host.snapshot.migrations]
    for words in ("bandwidth=1Gbit,downtime-limit=300ms", "link=1Mbit"):
        assumed = parse_what_if(words)
        found = [replace(m, forecast=of_replay(Recorded.of(m), assumed)) for m in recorded]
        _drawn(render_forecasts(found, ascii=False))


def _heatmap(report: Report) -> None:
    migrations = [m for host in report.hosts for m in host.snapshot.migrations]
    _drawn(render_heatmap(migrations, ascii=False))
    if migrations:
        heatmap_png(migrations)


def _perfetto(report: Report) -> None:
    # For a time that no packet can hold, as of a clock before 1970, the part is left out and reported.
    left_out = [line for line in perfetto_trace(report).left_out if "out of range" not in line]
    if left_out:
        raise _FoundError(f"hidden: {left_out[0]}")


def _traces(report: Report) -> None:
    _, failed = traces_of(report.migrations)
    if failed:
        raise _FoundError(f"hidden: {failed[0]}")


_OF_REPORT: dict[str, Callable[[Report], None]] = {
    "text": lambda report: _drawn(render_report(report, ascii=False)),
    "ascii": lambda report: _drawn(render_report(report, ascii=True), 60),
    "json": _json,
    "html": lambda report: _whole(render_html(report)),
    "perfetto": _perfetto,
    "otlp": _traces,
    "compare": _compared,
    "what-if": _what_if,
    "heatmap": _heatmap,
}


def _pumped(path: Path) -> None:
    """What follows a host: top's pages, its lines, its JSON, and a scrape; in the middle and at the end."""
    pump = Pump(ReplaySource(path, speed=0))
    warned: list[str] = []
    exporter = Exporter(keep_ns=300 * 10**9, warn=warned.append)
    registry = CollectorRegistry()
    exporter.read = lambda: Reading(
        pump.snapshot(), pump.now_ns(), pump.host, pump.host.probes, pump.event_counts(), pump.ended
    )
    registry.register(exporter)
    before = None
    while True:
        snapshot = pump.snapshot()
        _whole("\n".join(changes(before, snapshot, glyphs(ascii=False))))
        json.dumps(state_json(pump.host, snapshot), allow_nan=False)
        exporter.update()
        before = snapshot
        if pump.ended:
            break
        pump.step()
    shown = [view_state.row_of(m) for m in snapshot.migrations[:4]]
    shown += [view_state.row_of(vf) for vf in snapshot.vfs[:2]]
    for opened in (None, *shown):
        state = ViewState(opened=opened)
        _drawn(Once(Frame(pump.host, snapshot, pump.now_ns(), state, "", False)))
    text = generate_latest(registry).decode()
    list(text_string_to_metric_families(text))
    warned = [line for line in warned if HIDDEN in line]
    if warned:
        raise _FoundError(f"hidden: {warned[0]}")


def _mailbox(path: Path) -> None:
    for as_json in (False, True):
        recording = Recording(path)
        drivers = drivers_of(recording.host.profiles, ())
        said = Dump(pfs=(), vfs=(), as_json=as_json, drivers=drivers)
        for event in events_of(recording):
            for line in said.feed(event):
                _whole(line)
        for line in said.summary():
            _whole(line)


def _dumped(path: Path) -> None:
    for line in dump.lines(Recording(path), clock="utc"):
        _whole(line)
        if not line.isprintable():
            raise _FoundError("a line of dump steers the terminal")
    for line in dump.lines(Recording(path), as_json=True):
        json.loads(line)


def _listed(path: Path) -> None:
    found = gather([path]).found
    for line in listing.lines(found, glyphs(ascii=False), utc=False, width=100):
        _whole(line)
    for each in found:
        json.loads(listing.document(each))


def _anonymized(path: Path) -> None:
    with TemporaryDirectory() as directory:
        made = Path(directory) / "anonymous.vft"
        anonymize(path, made)
        for _ in events_of(Recording(made)):
            pass


def timed(*paths: Path) -> tuple[list[Fault], float]:
    """The faults, and how many seconds of CPU they took to find."""
    begun = time.process_time()
    found = faults_of(*paths)
    return found, time.process_time() - begun
