# SPDX-License-Identifier: MIT
"""Prints a list of migrations: one line each as text, or one JSON document each."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.cells import cell_len, set_cell_size

from vftrace.archive.index import Row
from vftrace.archive.past import Found
from vftrace.model import figures
from vftrace.model.migration import Kind, Outcome
from vftrace.outputs.text.glyphs import Glyphs, clean, shorten, shorten_middle
from vftrace.units import format_ns

UNKNOWN = "-"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEADINGS = ("#", "start", "VM", "from", "to", "strategy", "outcome", "total", "downtime", "set by")
_RIGHT = frozenset({"#", "total", "downtime"})
_GAP = "  "
_NAMES = {"VM": 12, "from": 8, "to": 8}
"""The columns that are shortened first on a narrow terminal, with their least widths."""
_LEFT_OUT = ("strategy", "from", "to", "total")
"""The columns that are left out next, in this order."""
_TEXTS = {"outcome": 9, "VM": 6}
"""The columns that are shortened last."""
_FAILED = "\x1b[1;31m"
_DIM = "\x1b[2m"
_PLAIN = "\x1b[0m"


def lines(
    found: Sequence[Found],
    g: Glyphs,
    *,
    utc: bool,
    width: int | None = None,
    color: bool = False,
) -> list[str]:
    """A heading and a line for each migration, without blanks at the ends of lines.

    If a line would be wider than a terminal of `width`, names are shortened and columns are left out; with None all
    are whole.
    """
    rows = [_cells(each, g, utc=utc) for each in found]
    table = [dict(zip(_HEADINGS, cells, strict=True)) for cells in [list(_HEADINGS), *rows]]
    widths = {h: max(cell_len(row[h]) for row in table) for h in _HEADINGS}
    if width is not None:
        _fit(widths, width)
    drawn = []
    for number, row in enumerate(table):
        cells = [_cell(row[h], width_of, h, g) for h, width_of in widths.items()]
        line = _GAP.join(cells).rstrip()
        if color and number == 0:
            line = f"{_DIM}{line}{_PLAIN}"
        elif color and found[number - 1].row.outcome == Outcome.FAILED:
            line = f"{_FAILED}{line}{_PLAIN}"
        drawn.append(line)
    return drawn


def _fit(widths: dict[str, int], width: int) -> None:
    """Shorten names, then leave out columns, then shorten more, until lines fit the terminal."""
    _shorten(widths, _NAMES, width)
    for heading in _LEFT_OUT:
        if _excess(widths, width) > 0:
            del widths[heading]
    _shorten(widths, _TEXTS, width)


def _excess(widths: dict[str, int], width: int) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1) - width


def _shorten(widths: dict[str, int], least: dict[str, int], width: int) -> None:
    """Shorten the widest column, one cell at a time."""
    for _ in range(_excess(widths, width)):
        spare = {h: widths[h] - n for h, n in least.items() if widths.get(h, 0) > n}
        if not spare:
            return
        widths[max(spare, key=lambda heading: spare[heading])] -= 1


def _cell(text: str, width: int, heading: str, g: Glyphs) -> str:
    if cell_len(text) > width:
        text = shorten_middle(text, width, g) if heading == "VM" else shorten(text, width, g)
        text = set_cell_size(text, width)
    pad = " " * (width - cell_len(text))
    return pad + text if heading in _RIGHT else text + pad


def _cells(each: Found, g: Glyphs, *, utc: bool) -> list[str]:
    row = each.row
    # An index may come from an unknown origin, as recordings may.
    return [
        clean(cell, g)
        for cell in (
            str(each.number),
            _start(row, utc=utc),
            figures.label(row.name, row.uuid, row.pid),
            row.source or UNKNOWN,
            row.destination or UNKNOWN,
            row.strategy,
            _outcome(row),
            UNKNOWN if row.total_ns is None else format_ns(row.total_ns),
            UNKNOWN if row.downtime_ns is None else format_ns(row.downtime_ns),
            row.set_by or UNKNOWN,
        )
    ]


def _outcome(row: Row) -> str:
    """Return how it ended and why; a save or a load that completed is `saved` or `loaded`."""
    if row.outcome is None:
        return "running"
    said = row.outcome
    if row.kind != Kind.MOVE and row.outcome == Outcome.COMPLETED:
        said = {Kind.SAVE.value: "saved", Kind.LOAD.value: "loaded"}.get(row.kind, said)
    if row.cause is not None and row.cause != row.outcome:
        said += f": {row.cause}"
    return said + (" (incomplete)" if row.incomplete else "")


def _start(row: Row, *, utc: bool) -> str:
    moment = _moment(row)
    if moment is None:
        return UNKNOWN
    return f"{moment:%Y-%m-%d %H:%M:%SZ}" if utc else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _moment(row: Row) -> datetime | None:
    """Return when it began, in UTC; None also if a damaged time is not a date."""
    if row.started_ns is None:
        return None
    try:
        moment = _EPOCH + timedelta(microseconds=row.started_ns // 1000)
        moment.astimezone()
    except (OverflowError, ValueError, OSError):
        return None
    return moment


def document(each: Found) -> str:
    """Return one migration as a line of JSON. Durations are nanoseconds, null is not known
    (docs/reference/recordings.md)."""
    row, moment = each.row, _moment(each.row)
    said: dict[str, Any] = {
        "number": each.number,
        "file": str(each.path),
        "number_in_file": row.number,
        "started_at": None if moment is None else moment.isoformat().replace("+00:00", "Z"),
        "vm": {"uuid": row.uuid, "name": row.name, "pid": row.pid},
        "peer_pid": row.peer_pid,
        "kind": row.kind,
        "role": row.role,
        "from": row.source,
        "to": row.destination,
        "strategy": row.strategy,
        "outcome": row.outcome,
        "cause": row.cause,
        "incomplete": row.incomplete,
        "total_ns": row.total_ns,
        "downtime_ns": row.downtime_ns,
        "set_by": row.set_by,
    }
    return json.dumps(said)
