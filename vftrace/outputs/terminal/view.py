"""The live view: one frame, drawn from a snapshot, the time, and the state of the view."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vftrace.migration.model import Migration, Snapshot, Vm
from vftrace.outputs.terminal import state as view_state
from vftrace.outputs.terminal.clock import clock_time
from vftrace.outputs.terminal.figures import (
    bandwidth_now,
    blackout,
    compact,
    current_phase,
    dirty_rate,
)
from vftrace.outputs.terminal.glyphs import (
    Glyphs,
    clean,
    glyphs,
    shorten,
    shorten_middle,
    sparkline,
)
from vftrace.outputs.terminal.state import BINDINGS, ViewState, row_of
from vftrace.outputs.terminal.tables import (
    UNKNOWN,
    WIDE,
    blackout_table,
    count,
    phases_table,
    rounds_table,
    size,
)
from vftrace.outputs.terminal.words import (
    headline,
    label,
    losses,
    roles,
    set_by,
    title,
    uuid_short,
    verdict,
    warnings,
)
from vftrace.sources.recording import HostInfo
from vftrace.units import format_ns

TALL = 40
"""From this many lines on, the migration under the cursor is shown in full below the list."""

SIDE_BY_SIDE = 150
"""From this many columns on, the blackout and the phases stand beside each other."""

NOT_ATTACHED = "not attached"
TITLE = "bold"
BAR = "reverse"
WARNING = "bold yellow"
OUTCOME_STYLES = {"completed": "green", "failed": "bold red", "cancelled": "yellow"}


@dataclass(frozen=True)
class Frame:
    """What one picture is made of. `note`: what else goes on, such as a replay or a recording."""

    host: HostInfo
    snapshot: Snapshot
    now_ns: int
    state: ViewState
    note: str = ""
    ascii: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        g = glyphs(ascii=self.ascii or options.ascii_only)
        head = _header(self, width, g)
        foot = _footer(self.state, width)
        body, focus = _body(self, width, height - len(head) - 1, g)
        room = max(0, height - len(head) - 1)
        inner = options.update(width=width, height=None, highlight=False)
        lines = console.render_lines(Group(*body), inner, pad=True)
        top = _top(self.state, len(lines), room, focus)
        shown = lines[top : top + room]
        blank = [Segment(" " * width)]
        screen = [
            *(console.render_lines(line, inner, pad=True)[0] for line in head),
            *shown,
            *([blank] * (room - len(shown))),
            *console.render_lines(_place(foot, top, len(lines), room, width), inner, pad=True)[:1],
        ]
        for index, line in enumerate(screen[:height]):
            yield from line
            if index < min(height, len(screen)) - 1:
                yield Segment.line()


def _top(state: ViewState, length: int, room: int, focus: int | None) -> int:
    """The first line shown: so that the cursor is in sight, or as far as was scrolled."""
    furthest = max(0, length - room)
    if focus is None:
        return min(state.scroll, furthest)
    return min(furthest, max(0, focus - room + 2))


def _place(foot: Text, top: int, length: int, room: int, width: int) -> Text:
    """The bottom line, with where we are on the right if not all is shown."""
    if length <= room:
        return foot
    where = f" {top + 1}-{min(length, top + room)}/{length} "
    foot.truncate(max(0, width - len(where)), pad=True)
    foot.append(where, BAR)
    return foot


# -- first and last lines -----------------------------------------------------------------------


def _header(frame: Frame, width: int, g: Glyphs) -> list[Text]:
    """Where, when, what is attached, what is lost; then what set the last downtime."""
    host, snapshot = frame.host, frame.snapshot
    right = clock_time(snapshot, frame.now_ns)
    if frame.state.paused:
        right = f"** PAUSED ** {right}"
    left = f"vftrace top  {clean(host.name, g)}  kernel {clean(host.kernel, g)}"
    if frame.note:
        left += f"  {clean(frame.note, g)}"
    first = _ends(left, right, width, g)
    first.stylize(BAR)
    lines = [first, _probes_line(host, snapshot, width, g)]
    lines += [_one_line(f"! {warning}", width, g, WARNING) for warning in losses(snapshot)]
    if frame.state.screen == "list":
        lines += _last_word(frame, width, g)
    return lines


def _last_word(frame: Frame, width: int, g: Glyphs) -> list[Text]:
    """What set the downtime of the newest migration, in one line, two where it needs them."""
    newest = _newest(list(frame.snapshot.migrations))
    if newest is None:
        return []
    name = label(newest.name, newest.uuid, newest.pid, g)
    text = Text(f"{name}: {headline(newest, frame.now_ns)}", TITLE)
    lines = list(text.wrap(Console(width=width), width))
    return lines[:2]


def _probes_line(host: HostInfo, snapshot: Snapshot, width: int, g: Glyphs) -> Text:
    ways: dict[str, list[str]] = {}
    missing = []
    for name, way in host.probes.items():
        if way.startswith(NOT_ATTACHED):
            missing.append(name)
        else:
            ways.setdefault(way, []).append(name)
    attached = "; ".join(f"{way}: {', '.join(names)}" for way, names in ways.items())
    lost = f"{snapshot.events} events, {snapshot.lost} lost"
    if missing:
        text = f"probes {attached or 'none'}; ! NOT ATTACHED: {', '.join(missing)}"
        return _ends(clean(text, g), lost, width, g, WARNING)
    return _ends(clean(f"probes {attached}", g), lost, width, g, "dim")


def _footer(state: ViewState, width: int) -> Text:
    if state.typing:
        text = f" filter: {state.filter}_   Enter keeps it, Esc drops it"
        return Text(text[:width].ljust(width), BAR, no_wrap=True)
    text = ""
    for binding in BINDINGS:
        what = {"sort": f"sort: {state.sort}", "pause": "go on" if state.paused else "pause"}.get(
            binding.action, binding.footer
        )
        if what is None:
            continue
        if binding.action in ("open", "filter", "sort") and state.screen != "list":
            continue
        if binding.action == "back" and state.screen == "list" and not state.filter:
            continue
        if binding.action == "filter" and state.filter:
            what = f"filter: {state.filter}"
        text += f" {binding.keys[0]} {what} "
    return Text(text[:width].ljust(width), BAR, no_wrap=True)


# -- pages --------------------------------------------------------------------------------------


def _body(
    frame: Frame, width: int, room: int, g: Glyphs
) -> tuple[list[RenderableType], int | None]:
    """The page, and the line that must be seen (None: as scrolled)."""
    match frame.state.screen:
        case "help":
            return _help(), None
        case "timeline":
            return _timeline_page(frame, width, g), None
        case "list":
            return _list(frame, width, room, g)


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
    return timeline(migration, frame.now_ns, width, g)


def timeline(migration: Migration, now_ns: int, width: int, g: Glyphs) -> list[RenderableType]:
    """One migration in full: verdict, blackout, phases, rounds."""
    m = migration
    lasts = (m.ended_at_ns or now_ns) - m.started_at_ns
    page: list[RenderableType] = [
        _one_line(
            f"{title(m.name, m.uuid, m.pid, g)}  {verdict(m)}, {format_ns(max(0, lasts))}",
            width,
            g,
            TITLE,
        ),
        Text(headline(m, now_ns), OUTCOME_STYLES.get(m.outcome or "", "")),
        *(Text(f"! {warning}", WARNING) for warning in warnings(m)),
        _one_line(
            f"{roles(m, g)}; {m.channel.kind} channel, sent {size(m.channel.bytes)}"
            + (f", ERROR {m.channel.error}" if m.channel.error else ""),
            width,
            g,
        ),
    ]
    if m.stopped_at_ns is None:
        page += [Text(), phases_table(m, now_ns, width, g)]
    elif width >= SIDE_BY_SIDE:
        both = Table.grid(padding=(0, 4, 0, 0))
        left = width // 2
        both.add_row(
            blackout_table(m, now_ns, left, g), phases_table(m, now_ns, width - left - 6, g)
        )
        page += [Text(), both]
    else:
        page += [Text(), blackout_table(m, now_ns, width, g)]
        page += [Text(), phases_table(m, now_ns, width, g)]
    if m.rounds:
        page += [Text(), *_sparklines(m, width, g), rounds_table(m, width)]
    return page


def _sparklines(m: Migration, width: int, g: Glyphs) -> list[RenderableType]:
    """New pages and dirty rate of each round, newest on the right."""
    pages = [r.new_pages for r in m.rounds]
    rates = [None] + [
        dirty_rate(before, r, m.dirty.page_size)
        for before, r in zip(m.rounds, m.rounds[1:], strict=False)
    ]
    room = max(1, min(60, width - 44))
    known_pages = [p for p in pages if p is not None]
    known_rates = [r for r in rates if r is not None]
    return [
        Text(
            f"new pages  {sparkline(pages, room, g)}  at most "
            f"{count(max(known_pages, default=None))} a round, ? not known"
        ),
        Text(
            f"dirty rate {sparkline(rates, room, g)}  at most "
            f"{compact(max(known_rates, default=None))} a second"
        ),
    ]


# -- the list -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list: `width` 0 takes what is left. Shown from `from_width` columns on."""

    heading: str
    width: int
    right: bool = True
    from_width: int = 0


ACTIVE = (
    Column("VM", 0, right=False),
    Column("role", 6, right=False, from_width=WIDE),
    Column("phase", 11, right=False),
    Column("for", 7),
    Column("round", 5),
    Column("new", 6),
    Column("re-dirt", 7, from_width=WIDE),
    Column("logged", 7, from_width=WIDE),
    Column("dirty/s", 7),
    Column("sent", 5),
    Column("sent/s", 6),
    Column("blackout", 9),
    Column(" new pages by round", 30, right=False, from_width=140),
)
FINISHED = (
    Column("VM", 0, right=False),
    Column("role", 6, right=False, from_width=WIDE),
    Column("outcome", 9, right=False),
    Column("ended", 9, from_width=WIDE),
    Column("total", 7),
    Column("rounds", 6, from_width=WIDE),
    Column("sent", 5),
    Column("downtime", 8),
    Column("set by, or cause", 22, right=False),
    Column("the longest of the others", 42, right=False, from_width=140),
)
VMS = (
    Column("VM", 0, right=False),
    Column("uuid", 8, right=False),
    Column("pid", 8),
    Column("vCPUs", 7, right=False),
    Column("up", 7),
    Column("VMM", 20, right=False),
    Column("last migration", 40, right=False, from_width=140),
)
ROLE_WORDS = {"source": "source", "destination": "dest.", "stitched": "both"}


def _list(
    frame: Frame, width: int, room: int, g: Glyphs
) -> tuple[list[RenderableType], int | None]:
    snapshot, state = frame.snapshot, frame.state
    active = view_state.active(snapshot, state)
    finished = view_state.finished(snapshot, state)
    vms = view_state.vms(snapshot, state)
    rows = view_state.all_rows(snapshot, state)
    if not rows:
        return _nothing(frame, g), None
    chosen = view_state.cursor(state, rows)
    page: list[RenderableType] = []
    focus = 0
    sections = (
        ("Migrating", ACTIVE, [(row_of(m), _active_cells(m, frame, g)) for m in active]),
        ("Finished", FINISHED, [(row_of(m), _finished_cells(m, frame, g)) for m in finished]),
        ("VMs", VMS, [(row_of(vm), _vm_cells(vm, frame, g)) for vm in vms]),
    )
    for name, columns, section in sections:
        if name == "Finished" and not section:
            continue
        if page:
            page.append(Text())
        page.append(Text(f"{name}: {len(section)}" + _why_none(name, section), TITLE))
        if not section:
            continue
        page.append(_row(columns, [c.heading for c in columns], width, g, " ", "dim"))
        for row, cells in section:
            here = row == chosen
            if here:
                focus = len(page)
            page.append(
                _row(columns, cells, width, g, g.cursor if here else " ", "bold" if here else "")
            )
    shown = view_state.find(snapshot, chosen) or _newest(active, finished)
    if room >= TALL - 3 and shown is not None:
        # There is room for both: the list above, what is under the cursor below.
        rest = [
            Text(g.rule * width, "dim"),
            *timeline(shown, frame.now_ns, width, g),
        ]
        page += [Text(), *rest]
    return page, focus


def _why_none(name: str, section: Sequence[object]) -> str:
    if section or name != "Migrating":
        return ""
    return " (waiting for a VMM to switch on dirty logging and send)"


def _newest(*groups: list[Migration]) -> Migration | None:
    found = [m for group in groups for m in group]
    return max(found, key=lambda m: m.started_at_ns, default=None)


def _nothing(frame: Frame, g: Glyphs) -> list[RenderableType]:
    """What is waited for when there is nothing to show."""
    snapshot, state = frame.snapshot, frame.state
    if state.filter and (snapshot.vms or snapshot.migrations):
        return [
            Text(),
            Text(f"  Nothing matches {clean(state.filter, g)!r} in name, UUID or pid.", TITLE),
            Text("  Esc shows all again."),
        ]
    return [
        Text(),
        Text("  No VM runs on this host, and none has migrated since vftrace started.", TITLE),
        Text(),
        Text("  Waiting for a process that creates a KVM VM (KVM_CREATE_VM), such as QEMU."),
        Text("  A migration shows as soon as it switches on dirty logging for the VM's memory."),
        Text("  In another terminal, `vftrace demo` migrates a small VM on this machine."),
    ]


def _row(
    columns: Sequence[Column], cells: Sequence[str], width: int, g: Glyphs, mark: str, style: str
) -> Text:
    """One line of a section."""
    shown = [(c, cell) for c, cell in zip(columns, cells, strict=True) if width >= c.from_width]
    fixed = sum(c.width for c, _ in shown) + len(shown) + 1
    flexible = min(40, max(8, width - fixed))
    text = f"{mark} "
    for index, (column, cell) in enumerate(shown):
        room = column.width or flexible
        cell = shorten(cell, room, g) if index else shorten_middle(cell, room, g)
        if column.right:
            cell = cell.rjust(room)
        text += (" " if index else "") + set_cell_size(cell, room)
    line = Text(set_cell_size(text, width), style, no_wrap=True)
    for outcome, colour in OUTCOME_STYLES.items():
        line.highlight_words([f" {outcome} "], colour)
    return line


def _active_cells(m: Migration, frame: Frame, g: Glyphs) -> list[str]:
    phase = current_phase(m)
    last = m.rounds[-1] if m.rounds else None
    before = m.rounds[-2] if len(m.rounds) > 1 else None
    rate = dirty_rate(before, last, m.dirty.page_size) if last else None
    stop = blackout(m, frame.now_ns)
    lasting = UNKNOWN
    if stop is not None:
        lasting = (">=" if stop.at_least else "") + format_ns(stop.ns)
    return [
        _name(m, g),
        ROLE_WORDS[m.role],
        phase.name if phase else UNKNOWN,
        format_ns(max(0, frame.now_ns - m.started_at_ns)),
        str(len(m.rounds)),
        count(last.new_pages if last else None),
        count(last.redirtied_pages if last else None),
        count(last.logged_pages if last else None),
        compact(rate),
        compact(m.channel.bytes),
        compact(bandwidth_now(m, frame.snapshot.at_ns)),
        lasting,
        " " + sparkline([r.new_pages for r in m.rounds], 29, g),
    ]


def _finished_cells(m: Migration, frame: Frame, g: Glyphs) -> list[str]:
    largest = set_by(m)
    why = f"{largest.name} {format_ns(largest.ns)}" if largest and largest.ns is not None else ""
    if m.outcome != "completed":
        why = m.cause or ""
    elif m.channel.kind == "file":
        why = "to a file, not a move"
    elif m.was_paused:
        why = "was paused before"
    others = sorted(
        (c for c in m.downtime.checkpoints if c.ns and c is not largest), key=lambda c: -(c.ns or 0)
    )
    ended = m.ended_at_ns
    return [
        _name(m, g),
        ROLE_WORDS[m.role],
        m.outcome or UNKNOWN,
        UNKNOWN if ended is None else clock_time(frame.snapshot, ended),
        UNKNOWN if ended is None else format_ns(ended - m.started_at_ns),
        str(len(m.rounds)),
        compact(m.channel.bytes),
        UNKNOWN if m.downtime.vcpu_ns is None else format_ns(m.downtime.vcpu_ns),
        why or UNKNOWN,
        ", ".join(f"{c.name} {format_ns(c.ns or 0)}" for c in others[:2]) or UNKNOWN,
    ]


def _vm_cells(vm: Vm, frame: Frame, g: Glyphs) -> list[str]:
    running = {True: "run", False: "stopped", None: UNKNOWN}[vm.running]
    started = vm.started_at_ns
    own = [m for m in frame.snapshot.migrations if vm.pid in (m.pid, m.peer_pid)]
    last = _newest(own)
    return [
        label(vm.name, vm.uuid, vm.pid, g),
        clean(uuid_short(vm.uuid) or UNKNOWN, g),
        str(vm.pid),
        running,
        UNKNOWN if started is None else format_ns(max(0, frame.now_ns - started)),
        clean(vm.vmm or UNKNOWN, g),
        UNKNOWN if last is None else headline(last, frame.now_ns),
    ]


def _name(m: Migration, g: Glyphs) -> str:
    doubt = "!" if m.incomplete or m.missed_beginning else ""
    return doubt + label(m.name, m.uuid, m.pid, g)


def _one_line(text: str, width: int, g: Glyphs, style: str = "") -> Text:
    return Text(shorten(text, width, g), style, no_wrap=True)


def _ends(left: str, right: str, width: int, g: Glyphs, style: str = "") -> Text:
    """One line with something at both ends; the right end is kept whole."""
    right = right[:width]
    left = shorten(left, max(0, width - len(right) - 1), g)
    gap = " " * max(0, width - len(left) - len(right))
    return Text(left + gap + right, style, no_wrap=True)
