# SPDX-License-Identifier: MIT
"""Draws the list: running migrations, ended migrations and VMs, one line each."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace
from rich.cells import set_cell_size
from rich.console import RenderableType
from rich.text import Text

from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.migration import Kind, Migration, Outcome, Role, Snapshot, Vm
from vftrace.model.vf import VfHistory
from vftrace.outputs.text.clock import clock_time
from vftrace.outputs.text.glyphs import Glyphs, clean, shorten, shorten_middle, sparkline
from vftrace.outputs.text.tables import OUTCOME_STYLES, UNKNOWN, WIDE, compact, count
from vftrace.outputs.text.vfs import last_message, name_of, state_of
from vftrace.outputs.text.words import label
from vftrace.outputs.top import state as view_state
from vftrace.outputs.top.state import ViewState, newest, row_of
from vftrace.units import format_ns

LEAST_NAME = 8
"""The least width of the column of names."""

TITLE = "bold"
WARNING = "bold yellow"


class Column(msgspec.Struct, frozen=True):
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
    Column("the longest of the others", 46, right=False, from_width=140),
)
VMS = (
    Column("VM", 0, right=False),
    Column("uuid", 8, right=False),
    Column("pid", 8),
    Column("vCPUs", 7, right=False),
    Column("up", 7),
    Column("VMM", 20, right=False),
    Column("last migration", 46, right=False, from_width=140),
)
VFS = (
    Column("card, function", 0, right=False),
    Column("state", 11, right=False),
    Column("for", 7),
    Column("MAC", 17, right=False),
    Column("resets", 6),
    Column("last message", 42, right=False, from_width=110),
)
ROLE_WORDS = {Role.SOURCE: "source", Role.DESTINATION: "dest.", Role.STITCHED: "both"}


def list_page(
    snapshot: Snapshot, now_ns: int, state: ViewState, width: int, g: Glyphs, *, cursor: bool = True
) -> tuple[list[RenderableType], int]:
    """Return the lines of the list, and the index of the cursor's line (0 without a cursor)."""
    rows = view_state.all_rows(snapshot, state)
    if not rows:
        return _nothing(snapshot, state, g), 0
    chosen = view_state.cursor(state, rows) if cursor else None
    stopped = {
        row_of(m) for m in snapshot.migrations if figures.blackout(m, snapshot.at_ns) is not None
    }
    active = [
        (row_of(m), _cells(partial(_active_cells, m, snapshot, g), label(m, g), ACTIVE))
        for m in view_state.active(snapshot, state)
    ]
    finished = [
        (row_of(m), _cells(partial(_finished_cells, m, snapshot, g), label(m, g), FINISHED))
        for m in view_state.finished(snapshot, state)
    ]
    vms = [
        (row_of(vm), _cells(partial(_vm_cells, vm, snapshot, now_ns, g), label(vm, g), VMS))
        for vm in view_state.vms(snapshot, state)
    ]
    vfs = [
        (row_of(vf), _cells(partial(_vf_cells, vf, snapshot, g), clean(name_of(vf), g), VFS))
        for vf in view_state.vfs(snapshot, state)
    ]
    troubled = {row_of(vf) for vf in snapshot.vfs if state_of(vf) != vf.state}
    page: list[RenderableType] = []
    focus = 0
    for name, columns, section in (
        ("Migrating", ACTIVE, active),
        ("Finished", FINISHED, finished),
        ("VMs", VMS, vms),
        ("Virtual functions", VFS, vfs),
    ):
        if name in ("Finished", "Virtual functions") and not section:
            continue
        if page:
            page.append(Text())
        page.append(Text(f"{name}: {len(section)}" + _why_none(name, section), TITLE))
        if not section:
            continue
        page.append(_row(columns, [c.heading for c in columns], width, g, " ", "dim"))
        for row, cells in section:
            mark, style = (g.cursor, "bold") if row == chosen else (" ", "")
            if row in stopped or row in troubled:
                style += " red"
            if row == chosen:
                focus = len(page)
            page.append(_row(columns, cells, width, g, mark, style))
    return page, focus


def _why_none(name: str, section: Sequence[object]) -> str:
    if section or name != "Migrating":
        return ""
    return " (waiting for a VMM to switch on dirty logging and send)"


def _nothing(snapshot: Snapshot, state: ViewState, g: Glyphs) -> list[RenderableType]:
    """Return a text for an empty list."""
    if state.filter and (snapshot.vms or snapshot.migrations):
        return [
            Text(),
            Text(f"  Nothing matches {clean(state.filter, g)!r} in name, UUID or pid.", TITLE),
            Text("  Esc shows all again."),
        ]
    if state.wanted:
        words = " or ".join(repr(clean(word, g)) for word in state.wanted)
        return [
            Text(),
            Text(f"  No VM matches --vm {words} so far.", TITLE),
            Text("  It is shown as soon as it runs on this host."),
        ]
    emulated = []
    if n := state.without_kvm:
        processes = "1 QEMU process runs" if n == 1 else f"{n} QEMU processes run"
        emulated = [Text(f"  {processes} without KVM (TCG): vftrace does not see these.", WARNING)]
    what = "KVM VM" if state.without_kvm else "VM"
    return [
        Text(),
        Text(f"  No {what} runs on this host, and none has migrated since vftrace started.", TITLE),
        *emulated,
        Text(),
        Text("  Waiting for a process that creates a KVM VM (KVM_CREATE_VM), such as QEMU."),
        Text("  A migration shows as soon as it switches on dirty logging for the VM's memory."),
        Text("  In another terminal, `vftrace demo` migrates a small VM on this machine."),
    ]


def _cells(make: Callable[[], list[str]], name: str, columns: Sequence[Column]) -> list[str]:
    """Return the cells of a line, or an error in their place: the other lines are still drawn."""
    try:
        return make()
    except Exception as error:
        FAULTS.contained(Where.TOP, error, f"the line of {name} is not drawn")
        return [name, *[type(error).__name__] * (len(columns) - 1)]


def _fixed(shown: Sequence[tuple[Column, str]]) -> int:
    """Return the width of a line without its name."""
    return sum(c.width for c, _ in shown) + len(shown) + 1


def _row(
    columns: Sequence[Column], cells: Sequence[str], width: int, g: Glyphs, mark: str, style: str
) -> Text:
    """Return one line of a section."""
    shown = [(c, cell) for c, cell in zip(columns, cells, strict=True) if width >= c.from_width]
    # Half of a number would be another number: a column of figures is whole or left out. A text at the end
    # is shortened.
    while (excess := _fixed(shown) + LEAST_NAME - width) > 0 and len(shown) > 1:
        last, cell = shown.pop()
        if not last.right and excess <= last.width - LEAST_NAME:
            shown.append((replace(last, width=last.width - excess), cell))
    fixed = _fixed(shown)
    flexible = min(40, max(LEAST_NAME, width - fixed))
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


def _active_cells(m: Migration, snapshot: Snapshot, g: Glyphs) -> list[str]:
    phase = figures.current_phase(m)
    last = m.rounds[-1] if m.rounds else None
    stop = figures.blackout(m, snapshot.at_ns)
    lasting = UNKNOWN
    if stop is not None:
        lasting = (">=" if stop.at_least else "") + format_ns(stop.ns)
    return [
        _name(m, g),
        ROLE_WORDS[m.role],
        phase.name if phase else UNKNOWN,
        format_ns(figures.elapsed_ns(m, snapshot.at_ns)),
        str(len(m.rounds)),
        count(last.new_pages if last else None),
        count(last.redirtied_pages if last else None),
        count(last.logged_pages if last else None),
        compact(figures.dirty_rate(m)),
        compact(m.channel.bytes),
        compact(figures.bandwidth_now(m, snapshot.at_ns)),
        lasting,
        " " + sparkline([r.new_pages for r in m.rounds], 29, g),
    ]


def _finished_cells(m: Migration, snapshot: Snapshot, g: Glyphs) -> list[str]:
    largest = figures.largest_step(m.downtime)
    total = figures.total_ns(m)
    why = f"{largest.name} {format_ns(largest.ns)}" if largest and largest.ns is not None else ""
    if m.outcome != Outcome.COMPLETED:
        why = m.cause or ""
    elif m.kind != Kind.MOVE:
        why = f"a {m.kind}, not a move"
    elif m.was_paused:
        why = "was paused before"
    others = figures.other_steps(m.downtime)
    ended = m.ended_at_ns
    return [
        _name(m, g),
        ROLE_WORDS[m.role],
        m.outcome or UNKNOWN,
        UNKNOWN if ended is None else clock_time(snapshot, ended),
        UNKNOWN if total is None else format_ns(total),
        str(len(m.rounds)),
        compact(m.channel.bytes),
        UNKNOWN if m.downtime.vcpu_ns is None else format_ns(m.downtime.vcpu_ns),
        why or UNKNOWN,
        ", ".join(f"{c.name} {format_ns(c.ns or 0)}" for c in others[:2]) or UNKNOWN,
    ]


def _vm_cells(vm: Vm, snapshot: Snapshot, now_ns: int, g: Glyphs) -> list[str]:
    running = {True: "run", False: "stopped", None: UNKNOWN}[vm.running]
    started = vm.started_at_ns
    own = [m for m in snapshot.migrations if vm.pid in (m.pid, m.peer_pid)]
    last = newest(own)
    return [
        label(vm, g),
        clean(figures.uuid_short(vm.uuid) or UNKNOWN, g),
        str(vm.pid),
        running,
        UNKNOWN if started is None else format_ns(max(0, now_ns - started)),
        clean(vm.vmm or UNKNOWN, g),
        UNKNOWN if last is None else _in_short(last, vm.pid, now_ns),
    ]


def _vf_cells(vf: VfHistory, snapshot: Snapshot, g: Glyphs) -> list[str]:
    lasts = UNKNOWN if vf.since_ns is None else format_ns(max(0, snapshot.at_ns - vf.since_ns))
    return [
        clean(name_of(vf), g),
        state_of(vf),
        lasts,
        clean(dict(vf.settings).get("mac", UNKNOWN), g),
        str(vf.message_resets + vf.function_resets),
        last_message(vf, g),
    ]


def _in_short(m: Migration, pid: int, now_ns: int) -> str:
    if m.outcome is None:
        role = Role.DESTINATION if m.role == Role.DESTINATION or pid == m.peer_pid else Role.SOURCE
        return f"running, as {role}"
    downtime = UNKNOWN if m.downtime.vcpu_ns is None else format_ns(m.downtime.vcpu_ns)
    ago = "" if m.ended_at_ns is None else f", {format_ns(max(0, now_ns - m.ended_at_ns))} ago"
    return f"{m.outcome}, downtime {downtime}{ago}"


def _name(m: Migration, g: Glyphs) -> str:
    doubt = "!" if m.incomplete or m.missed_beginning else ""
    return doubt + label(m, g)
