# SPDX-License-Identifier: MIT
"""Keeps the state of the live view, and changes it for each key."""

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec.structs import replace

from vftrace.model import figures
from vftrace.model.migration import Migration, Snapshot, Vm
from vftrace.model.vf import VfHistory

Screen = Literal["list", "timeline", "vf", "help"]
Sort = Literal["newest", "name", "dirty rate", "downtime"]
SORTS: tuple[Sort, ...] = ("newest", "name", "dirty rate", "downtime")

Row = tuple[str, int | str, int]
"""The row under the cursor: `migration` or `vm`, its pid, and when it started (0 for a VM); or `vf`, its
card's address and its number."""

Action = Literal[
    "quit",
    "help",
    "open",
    "back",
    "up",
    "down",
    "page-up",
    "page-down",
    "home",
    "end",
    "save",
    "sort",
    "filter",
    "pause",
]


class Binding(msgspec.Struct, frozen=True):
    """Keys with the same effect. `footer` is the text in the bottom line, None: not shown there."""

    action: Action
    keys: tuple[str, ...]
    what: str
    footer: str | None = None


BINDINGS = (
    Binding("quit", ("q",), "end", "quit"),
    Binding("help", ("?", "h"), "this list", "help"),
    Binding(
        "open",
        ("Enter",),
        "show the migration or virtual function under the cursor in full",
        "open",
    ),
    Binding("back", ("Esc",), "back; in the list: drop the filter", "back"),
    Binding("filter", ("/",), "show only VMs whose name, UUID or pid contains some text", "filter"),
    Binding(
        "save", ("s",), "save the report of the migration under the cursor here, as HTML", "save"
    ),
    Binding("sort", ("o",), "sort by the next of: " + ", ".join(SORTS), "sort"),
    Binding(
        "pause",
        ("p", "Space"),
        "freeze the picture (tracing continues), or let it run again",
        "pause",
    ),
    Binding("up", ("Up", "k"), "one line up"),
    Binding("down", ("Down", "j"), "one line down"),
    Binding("page-up", ("PageUp",), "ten lines up"),
    Binding("page-down", ("PageDown",), "ten lines down"),
    Binding("home", ("Home", "g"), "to the first line"),
    Binding("end", ("End", "G"), "to the last line"),
)
"""The one table of keys: it decides what a key does, and makes the help and the bottom line."""

ACTION_OF: dict[str, Action] = {key: b.action for b in BINDINGS for key in b.keys}

PAGE = 10
MAX_FILTER = 40
_FAR = 1 << 30


class ViewState(msgspec.Struct, frozen=True):
    """The state of the view, without the data."""

    screen: Screen = "list"
    selected: Row | None = None
    opened: Row | None = None
    """The migration or virtual function that is shown in full."""
    scroll: int = 0
    """Scroll position of the timeline and the help, in lines."""
    sort: Sort = "newest"
    filter: str = ""
    typing: bool = False
    """Whether keys are added to the filter."""
    paused: bool = False
    saving: Row | None = None
    """The migration to save as a report, or the VM whose newest migration is saved."""
    said: str = ""
    """The result of the last key, shown until the next one."""
    quit: bool = False
    wanted: tuple[str, ...] = ()
    """The words of `--vm`, printed if no VM matches."""
    without_kvm: int = 0
    """The number of QEMU processes without KVM, printed if there is no VM to show."""


def press(state: ViewState, key: str, snapshot: Snapshot) -> ViewState:
    """Return the state after a key; an unknown key changes nothing."""
    state = replace(state, said="")
    if state.typing:
        return _type(state, key)
    action = ACTION_OF.get(key)
    if action is None:
        return state
    if state.screen == "list":
        return _in_list(state, action, snapshot)
    return _in_page(state, action)


def _type(state: ViewState, key: str) -> ViewState:
    if key == "Enter":
        return replace(state, typing=False)
    if key == "Esc":
        return replace(state, typing=False, filter="")
    if key == "Backspace":
        return replace(state, filter=state.filter[:-1])
    text = " " if key == "Space" else key
    if len(text) == 1 and len(state.filter) < MAX_FILTER:
        return replace(state, filter=state.filter + text)
    return state


def _in_list(state: ViewState, action: Action, snapshot: Snapshot) -> ViewState:
    match action:
        case "open":
            row = _opens(state, snapshot)
            if row is None:
                return state
            screen: Screen = "vf" if row[0] == "vf" else "timeline"
            return replace(state, screen=screen, opened=row, scroll=0)
        case "save":
            return _save(state, _opens(state, snapshot))
        case "back":
            return replace(state, filter="")
        case "filter":
            return replace(state, typing=True)
        case "sort":
            return replace(state, sort=SORTS[(SORTS.index(state.sort) + 1) % len(SORTS)])
        case "up" | "down" | "page-up" | "page-down" | "home" | "end":
            return _move(state, _step(action), snapshot)
        case _:
            return _anywhere(state, action)


def _in_page(state: ViewState, action: Action) -> ViewState:
    match action:
        case "back" | "open":
            return replace(state, screen="list", opened=None, scroll=0)
        case "save":
            return _save(state, state.opened)
        case "up" | "down" | "page-up" | "page-down" | "home" | "end":
            return replace(state, scroll=min(_FAR, max(0, state.scroll + _step(action))))
        case _:
            return _anywhere(state, action)


def _save(state: ViewState, row: Row | None) -> ViewState:
    if row is None or row[0] == "vf":
        return replace(state, said="no migration to save here")
    return replace(state, saving=row)


def _anywhere(state: ViewState, action: Action) -> ViewState:
    match action:
        case "quit":
            return replace(state, quit=True)
        case "help":
            return replace(state, screen="help", opened=None, scroll=0)
        case "pause":
            return replace(state, paused=not state.paused)
        case _:
            return state


def _step(action: Action) -> int:
    steps = {"up": -1, "down": 1, "page-up": -PAGE, "page-down": PAGE, "home": -_FAR, "end": _FAR}
    return steps[action]


def _move(state: ViewState, step: int, snapshot: Snapshot) -> ViewState:
    rows = all_rows(snapshot, state)
    if not rows:
        return replace(state, selected=None)
    at = rows.index(cursor(state, rows))
    return replace(state, selected=rows[min(len(rows) - 1, max(0, at + step))])


def cursor(state: ViewState, rows: list[Row]) -> Row:
    """Return the row under the cursor: the selected row if it still exists, else the first."""
    return state.selected if state.selected in rows else rows[0]


def _opens(state: ViewState, snapshot: Snapshot) -> Row | None:
    """Return the row that opens under the cursor: a virtual function or a migration, for a VM its newest."""
    rows = all_rows(snapshot, state)
    under = cursor(state, rows) if rows else None
    if under is None or under[0] == "vf":
        return under
    found = migration_of(under, snapshot)
    return None if found is None else row_of(found)


# -- which rows there are -----------------------------------------------------------------------


def row_of(thing: Migration | Vm | VfHistory) -> Row:
    """Return the key by which the cursor remembers an object."""
    if isinstance(thing, VfHistory):
        return "vf", thing.pf, thing.vf
    if isinstance(thing, Migration):
        return "migration", thing.pid, thing.started_at_ns
    return "vm", thing.pid, 0


def all_rows(snapshot: Snapshot, state: ViewState) -> list[Row]:
    """Return the rows in the order in which they are drawn."""
    migrations = (*active(snapshot, state), *finished(snapshot, state))
    return [
        *map(row_of, migrations),
        *map(row_of, vms(snapshot, state)),
        *map(row_of, vfs(snapshot, state)),
    ]


def active(snapshot: Snapshot, state: ViewState) -> list[Migration]:
    """Migrations that run, filtered and sorted."""
    return _sorted([m for m in snapshot.migrations if m.outcome is None], state)


def finished(snapshot: Snapshot, state: ViewState) -> list[Migration]:
    """Migrations with an outcome, filtered and sorted."""
    return _sorted([m for m in snapshot.migrations if m.outcome is not None], state)


def vms(snapshot: Snapshot, state: ViewState) -> list[Vm]:
    """The VMs, filtered; by start, else by name."""
    found = [vm for vm in snapshot.vms if matches(vm, state.filter)]
    if state.sort == "newest":
        return sorted(found, key=lambda vm: (-(vm.started_at_ns or 0), vm.pid))
    return sorted(found, key=lambda vm: (vm.name or vm.key, vm.pid))


def vfs(snapshot: Snapshot, state: ViewState) -> list[VfHistory]:
    """The virtual functions that have a state or messages, filtered; by card and number."""
    text = state.filter.casefold()
    return [
        life
        for life in snapshot.vfs
        if (life.states or life.recent or life.not_recorded)
        and any(text in word for word in (life.pf, life.address or "", f"vf {life.vf}"))
    ]


def find_vf(snapshot: Snapshot, row: Row | None) -> VfHistory | None:
    """The virtual function of a row, if it is still known."""
    return next((life for life in snapshot.vfs if row_of(life) == row), None)


def find(snapshot: Snapshot, row: Row | None) -> Migration | None:
    """The migration of a row, if it is still known."""
    return next((m for m in snapshot.migrations if row_of(m) == row), None)


def migration_of(row: Row, snapshot: Snapshot) -> Migration | None:
    """Return the migration of a row, or the newest migration of a VM's row."""
    if row[0] != "vm":
        return find(snapshot, row)
    return newest([m for m in snapshot.migrations if row[1] in (m.pid, m.peer_pid)])


def newest(found: Iterable[Migration]) -> Migration | None:
    """Return the migration that began last."""
    return max(found, key=lambda m: m.started_at_ns, default=None)


def matches(thing: Migration | Vm, text: str) -> bool:
    """Whether a name, UUID or pid contains the text, in any case."""
    pids = [str(thing.pid)]
    if isinstance(thing, Migration) and thing.peer_pid is not None:
        pids.append(str(thing.peer_pid))
    words = (thing.name or "", thing.uuid or "", *pids)
    return any(text.casefold() in word.casefold() for word in words)


def _sorted(found: list[Migration], state: ViewState) -> list[Migration]:
    shown = [m for m in found if matches(m, state.filter)]
    newest = sorted(shown, key=lambda m: (-m.started_at_ns, m.pid))
    match state.sort:
        case "newest":
            return newest
        case "name":
            return sorted(newest, key=lambda m: m.name or m.key)
        case "dirty rate":
            return sorted(newest, key=lambda m: -(figures.dirty_rate(m) or 0))
        case "downtime":
            return sorted(newest, key=lambda m: -(m.downtime.vcpu_ns or 0))
