# SPDX-License-Identifier: MIT
"""Selects VMs by `--vm`: by UUID, its first eight digits, name or pid."""

from collections.abc import Collection, Iterable
from typing import Protocol

from msgspec.structs import replace

from vftrace.model import figures
from vftrace.model.migration import Migration, Snapshot, Vm
from vftrace.model.report import Report

MAX_NAMED = 5
"""The most VMs that a message names."""


def select(snapshot: Snapshot, wanted: Collection[str]) -> Snapshot:
    """Return only the wanted VMs and their migrations; all if `wanted` is empty."""
    if not wanted:
        return snapshot
    return replace(
        snapshot,
        vms=tuple(vm for vm in snapshot.vms if _matches(vm, wanted)),
        migrations=tuple(m for m in snapshot.migrations if _matches(m, wanted)),
    )


def select_report(report: Report, wanted: Collection[str]) -> Report:
    """Return only the wanted VMs and their migrations, on every host; all if `wanted` is empty."""
    if not wanted:
        return report
    return replace(
        report,
        hosts=tuple(replace(h, snapshot=select(h.snapshot, wanted)) for h in report.hosts),
        migrations=tuple(f for f in report.migrations if _matches(f.migration, wanted)),
    )


def unmatched(snapshot: Snapshot, wanted: Collection[str]) -> tuple[str, ...]:
    """Return the words of `wanted` that match no VM and no migration."""
    things = _things(snapshot)
    return tuple(word for word in wanted if not any(_matches(each, (word,)) for each in things))


class Named(Protocol):
    """An object with a VM's name: a VM, a migration, a row of a list. It may have a `peer_pid`."""

    @property
    def name(self) -> str | None:
        """The VM's name."""

    @property
    def uuid(self) -> str | None:
        """The VM's UUID."""

    @property
    def pid(self) -> int:
        """The pid of its process."""


def near(snapshot: Snapshot, word: str) -> tuple[str, ...]:
    """Return the titles of VMs whose name, UUID or pid resembles a word that matches no VM."""
    return _near(_things(snapshot), word)


def _near(things: Iterable[Named], word: str) -> tuple[str, ...]:
    titles: dict[str, str] = {}
    for each in things:
        title = figures.title(each.name, each.uuid, each.pid)
        titles |= {name.casefold(): title for name in _names(each)}
    text = word.casefold()
    # Imported only for the message about a mistake: a service does not need it.
    from difflib import get_close_matches

    close = get_close_matches(text, titles, n=MAX_NAMED, cutoff=0.7)
    # The word is a part of the name, or contains the name.
    close += [name for name in titles if len(text) > 2 and (text in name or name in text)]
    return tuple(dict.fromkeys(titles[name] for name in close))[:MAX_NAMED]


def no_match(snapshot: Snapshot, word: str) -> str:
    """Return the message that a word matches no VM, with similar VMs."""
    return no_match_among(_things(snapshot), word)


def no_match_among(things: Collection[Named], word: str) -> str:
    """Return the same message for VMs that are not in a snapshot."""
    said = f"no VM matches {word!r}"
    found = _near(things, word)
    if found:
        return f"{said}; did you mean {' or '.join(found)}?"
    every = list(dict.fromkeys(figures.title(t.name, t.uuid, t.pid) for t in things))
    if not every:
        return f"{said}: no VM is seen"
    more = f" and {len(every) - MAX_NAMED} more" if len(every) > MAX_NAMED else ""
    return f"{said}; VMs seen: {', '.join(every[:MAX_NAMED])}{more}"


def _things(snapshot: Snapshot) -> list[Vm | Migration]:
    return [*snapshot.vms, *snapshot.migrations]


def _matches(thing: Vm | Migration, wanted: Iterable[str]) -> bool:
    return names_vm(wanted, thing.name, thing.uuid, _pids(thing))


def names_vm(
    wanted: Iterable[str], name: str | None, uuid: str | None, pids: Iterable[str]
) -> bool:
    """Whether one of `wanted` is this VM's name, UUID (or its first eight digits) or one of its pids."""
    exact = {name, *pids}
    lowered = (uuid or "").lower()
    return any(
        word in exact or (lowered and word.lower() in (lowered, figures.uuid_short(lowered)))
        for word in wanted
    )


def _pids(thing: Named) -> list[str]:
    peer: int | None = getattr(thing, "peer_pid", None)
    return [str(pid) for pid in (thing.pid, peer) if pid is not None]


def _names(thing: Named) -> list[str]:
    known = (thing.name, thing.uuid, figures.uuid_short(thing.uuid), *_pids(thing))
    return [name for name in known if name]
