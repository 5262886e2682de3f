# SPDX-License-Identifier: MIT
"""Draws one frame of the live view from a snapshot, the time, and the state of the view."""

from functools import partial

import msgspec
from msgspec.structs import replace
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vftrace.faults import Where
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration, Snapshot
from vftrace.outputs.text.clock import clock_time
from vftrace.outputs.text.glyphs import (
    Glyphs,
    clean,
    glyphs,
    shorten,
)
from vftrace.outputs.text.guard import guarded
from vftrace.outputs.text.vfs import name_of, vf_lines
from vftrace.outputs.text.words import (
    headline,
    label,
    losses,
)
from vftrace.outputs.top import state as view_state
from vftrace.outputs.top.listing import list_page
from vftrace.outputs.top.state import BINDINGS, ViewState
from vftrace.outputs.top.timeline import TITLE, WARNING, one_line, timeline

TALL = 40
"""From this many lines on, the migration under the cursor is shown in full below the list."""

BAR = "reverse"


class Frame(msgspec.Struct, frozen=True):
    """The data of one picture. `note`: another activity, such as a replay or a recording.

    `now_ns` is for the clock and for ages. Running times count up to the snapshot, which is slightly older:
    counted up to now, a blackout that has just ended would be too long.
    """

    host: HostInfo
    snapshot: Snapshot
    now_ns: int
    state: ViewState
    note: str = ""
    ascii: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        head = _header(self, width, glyphs(ascii=self.ascii or options.ascii_only))
        foot = _footer(self.state, width)
        inner = options.update(width=width, height=None, highlight=False)
        lines, focus, room = self._lines(console, options, len(head))
        top = _top(self.state, len(lines), room, focus)
        shown = lines[top : top + room]
        blank = [Segment(" " * width)]
        bar = console.get_style(BAR)
        foot = _place(foot, top, len(lines), room, width)
        screen = [
            *console.render_lines(head[0], inner, style=bar)[:1],
            *(console.render_lines(line, inner)[0] for line in head[1:]),
            *shown,
            *([blank] * (room - len(shown))),
            *console.render_lines(foot, inner, style=bar)[:1],
        ]
        for index, line in enumerate(screen[:height]):
            yield from line
            if index < min(height, len(screen)) - 1:
                yield Segment.line()

    def _lines(
        self, console: Console, options: ConsoleOptions, head: int
    ) -> tuple[list[list[Segment]], int | None, int]:
        """Return all lines of the page, the one that must be visible, and the number of lines that fit."""
        width, height = options.max_width, options.height or console.height
        room = max(0, height - head - 1)
        body, focus = _body(self, width, room, glyphs(ascii=self.ascii or options.ascii_only))
        inner = options.update(width=width, height=None, highlight=False)
        return console.render_lines(Group(*body), inner, pad=True), focus, room

    def settled(self, console: Console) -> ViewState:
        """Return the state, scrolled no further than the end of this page."""
        options = console.options
        g = glyphs(ascii=self.ascii or options.ascii_only)
        head = len(_header(self, options.max_width, g))
        lines, _, room = self._lines(console, options, head)
        furthest = max(0, len(lines) - room)
        return replace(self.state, scroll=min(self.state.scroll, furthest))


class Once(msgspec.Struct, frozen=True):
    """The whole list as lines, without a cursor, for a pipe or for `--once`."""

    frame: Frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame, width = self.frame, options.max_width
        g = glyphs(ascii=frame.ascii or options.ascii_only)
        for line in _header(frame, width, g):
            line.style = ""
            line.spans.clear()
            yield line
        page, _ = list_page(frame.snapshot, frame.now_ns, frame.state, width, g, cursor=False)
        yield from page


def _top(state: ViewState, length: int, room: int, focus: int | None) -> int:
    """Return the first visible line: so that the cursor is visible, or as far as the user scrolled."""
    furthest = max(0, length - room)
    if focus is None:
        return min(state.scroll, furthest)
    return min(furthest, max(0, focus - room + 2))


def _place(foot: Text, top: int, length: int, room: int, width: int) -> Text:
    """Return the bottom line, with the position on the right if not all is visible."""
    if length <= room:
        return foot
    where = f" {top + 1}-{min(length, top + room)}/{length} "
    foot.truncate(max(0, width - len(where)), pad=True)
    foot.append(where)
    return foot


# -- first and last lines -----------------------------------------------------------------------


def _header(frame: Frame, width: int, g: Glyphs) -> list[Text]:
    """Return the header: host, time, attached probes, losses, and the cause of the last downtime."""
    host, snapshot = frame.host, frame.snapshot
    right = clock_time(snapshot, frame.now_ns)
    if frame.state.paused:
        right = f"** PAUSED ** {right}"
    left = f"vftrace top  {clean(host.name, g)}  kernel {clean(host.kernel, g)}"
    if frame.state.said:
        left = f"vftrace top  {clean(frame.state.said, g)}"
    elif frame.note:
        left += f"  {clean(frame.note, g)}"
    lines = [_ends(left, right, width, g), _probes_line(host, snapshot, width, g)]
    lines += [one_line(f"! {warning}", width, g, WARNING) for warning in losses(snapshot)]
    if frame.state.screen == "list":
        lines += [*_last_word(frame, width, g), Text()]
    return lines


def _last_word(frame: Frame, width: int, g: Glyphs) -> list[Text]:
    """Return the cause of the newest migration's downtime, in one line, or two if needed."""
    newest = view_state.newest(frame.snapshot.migrations)
    if newest is None:
        return []
    name = label(newest, g)
    said = guarded(
        name,
        lambda: [Text(f"{name}: {headline(newest, frame.snapshot.at_ns)}", TITLE)],
        Where.TOP,
    )
    console = Console(width=width)
    return [line for text in said if isinstance(text, Text) for line in text.wrap(console, width)][
        :2
    ]


def _probes_line(host: HostInfo, snapshot: Snapshot, width: int, g: Glyphs) -> Text:
    methods: dict[str, list[str]] = {}
    missing = []
    for probe in host.probes:
        if probe.method is None:
            missing.append(probe.name)
        else:
            methods.setdefault(probe.method, []).append(probe.name)
    attached = "; ".join(f"{method}: {', '.join(names)}" for method, names in methods.items())
    lost = f"{snapshot.events} events, {snapshot.lost} lost"
    if missing:
        attached = f"{attached or 'none'}; not attached: {', '.join(missing)}"
    return _ends(clean(f"probes {attached}", g), lost, width, g, "dim")


def _footer(state: ViewState, width: int) -> Text:
    if state.typing:
        text = f" filter: {state.filter}_   Enter keeps it, Esc drops it"
        return Text(text[:width], no_wrap=True)
    text = ""
    for binding in BINDINGS:
        what = {"sort": f"sort: {state.sort}", "pause": "go on" if state.paused else "pause"}.get(
            binding.action, binding.footer
        )
        if what is None:
            continue
        if binding.action in ("open", "filter", "sort") and state.screen != "list":
            continue
        if binding.action == "save" and state.screen not in ("list", "timeline"):
            continue
        if binding.action == "back" and state.screen == "list" and not state.filter:
            continue
        if binding.action == "filter" and state.filter:
            what = f"filter: {state.filter}"
        text += f" {binding.keys[0]} {what} "
    return Text(text[:width], no_wrap=True)


# -- pages --------------------------------------------------------------------------------------


def _body(
    frame: Frame, width: int, room: int, g: Glyphs
) -> tuple[list[RenderableType], int | None]:
    """Return the page, and the line that must be visible (None: as scrolled)."""
    match frame.state.screen:
        case "help":
            return _help(), None
        case "timeline":
            return _timeline_page(frame, width, g), None
        case "vf":
            return _vf_page(frame, width, g), None
        case "list":
            return _list_page(frame, width, room, g)


def _help() -> list[RenderableType]:
    table = Table.grid(padding=(0, 3, 0, 0))
    for binding in BINDINGS:
        table.add_row(Text(" " + ", ".join(binding.keys), TITLE), Text(binding.what))
    notes = (
        "new       pages dirtied since they were last cleared, each once a round",
        "dirty/s   new pages of the last round per time since the sweep before",
        "sent/s    bytes that left the process on the migration channel, this round",
        "blackout  since the last vCPU left the guest; >=: the rest is not seen here",
        "-         not known.  Sizes are binary: 3.92M is 3.92 MiB",
    )
    return [
        table,
        Text(),
        Text(" Words", TITLE),
        *(Text(f" {n}") for n in notes),
    ]


def _timeline_page(frame: Frame, width: int, g: Glyphs) -> list[RenderableType]:
    migration = view_state.find(frame.snapshot, frame.state.opened)
    if migration is None:
        return [Text("This migration is no longer known (Esc goes back).")]
    return _guarded_timeline(migration, frame, width, g)


def _guarded_timeline(m: Migration, frame: Frame, width: int, g: Glyphs) -> list[RenderableType]:
    """Return a migration in full; if it cannot be drawn, tracing, recording and serving continue."""
    draw = partial(timeline, m, frame.snapshot.at_ns, width, g)
    return list(guarded(label(m, g), draw, Where.TOP))


def _vf_page(frame: Frame, width: int, g: Glyphs) -> list[RenderableType]:
    life = view_state.find_vf(frame.snapshot, frame.state.opened)
    if life is None:
        return [Text("This virtual function is no longer known (Esc goes back).")]
    draw = partial(vf_lines, life, frame.snapshot, width, g, len(life.recent))
    return list(guarded(clean(name_of(life), g), draw, Where.TOP))


def _list_page(
    frame: Frame, width: int, room: int, g: Glyphs
) -> tuple[list[RenderableType], int | None]:
    """Return the list, and if there is room, the migration under the cursor below it."""
    snapshot, state = frame.snapshot, frame.state
    page, focus = list_page(snapshot, frame.now_ns, state, width, g)
    rows = view_state.all_rows(snapshot, state)
    chosen = view_state.migration_of(view_state.cursor(state, rows), snapshot) if rows else None
    if room >= TALL and chosen is not None:
        rule = Text(g.rule * width, "dim")
        page = [*page, Text(), rule, *_guarded_timeline(chosen, frame, width, g)]
    return page, focus


def _ends(left: str, right: str, width: int, g: Glyphs, style: str = "") -> Text:
    """Return one line with texts at both ends; the right one is never cut."""
    right = right[:width]
    left = shorten(left, max(0, width - len(right) - 1), g)
    gap = " " * max(0, width - len(left) - len(right))
    return Text(left + gap + right, style, no_wrap=True)
