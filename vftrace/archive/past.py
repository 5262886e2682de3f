# SPDX-License-Identifier: MIT
"""Collects the migrations of recordings and directories, and selects some of them."""

import contextlib
import filecmp
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from vftrace.analysis.devices.vf_history import MAX_RECENT
from vftrace.analysis.hosts.join import join_hosts
from vftrace.archive import index
from vftrace.archive.index import Entry, Row
from vftrace.collect.merge import load
from vftrace.collect.recording import BEING_WRITTEN
from vftrace.errors import UsageError, VftraceError
from vftrace.host import systemd
from vftrace.model.migration import Migration, Outcome, Role, Snapshot
from vftrace.model.report import HostReport, MigrationReport, PingRecording, Report
from vftrace.model.select import names_vm, no_match_among

DEFAULT = Path("/var/lib/vftrace")
_APART_NS = 600 * 10**9
"""The most by which the beginnings of two halves of a migration differ, by their hosts' clocks."""


def default_directory() -> Path:
    """Return where a flight recorder keeps its files by default: systemd's StateDirectory.

    Raises VftraceError if the directory does not exist.
    """
    directory = systemd.directory("STATE_DIRECTORY") or DEFAULT
    if not directory.is_dir():
        raise VftraceError(
            f"{directory} does not exist: no flight recorder has kept recordings on this host;"
            " name a directory or a recording"
        )
    return directory


class Selectors(msgspec.Struct, frozen=True):
    """The selection of migrations: those that every given selector takes; `last`: only the latest of them.

    `number` is that of a list, which `select` knows. `since_ns` and `until_ns` bound when they began (Unix time);
    `longer_ns` is exceeded by the vCPUs' downtime.
    """

    vms: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    failed: bool = False
    longer_ns: int | None = None
    number: int | None = None
    last: int | None = None

    @property
    def some(self) -> bool:
        """Whether a selector is given."""
        return self != Selectors()

    def take(self, row: Row) -> bool:
        """Whether a migration is selected, without `number` and `last`."""
        if self.vms and not names_vm(self.vms, row.name, row.uuid, _pids(row)):
            return False
        if self.failed and row.outcome != Outcome.FAILED:
            return False
        if self.longer_ns is not None and (row.downtime_ns or 0) <= self.longer_ns:
            return False
        began = row.started_ns
        if self.since_ns is not None and (began is None or began < self.since_ns):
            return False
        return self.until_ns is None or (began is not None and began <= self.until_ns)


def _pids(row: Row) -> list[str]:
    return [str(pid) for pid in (row.pid, row.peer_pid) if pid is not None]


class Found(msgspec.Struct, frozen=True):
    """A migration in a list: its number among all, and its recording."""

    number: int
    path: Path
    row: Row


class Listed(msgspec.Struct, frozen=True):
    """The collected migrations; `notes` has a line for each file with a fault, `unreadable` counts the named files that
    could not be read."""

    found: tuple[Found, ...]
    notes: tuple[str, ...] = ()
    unreadable: int = 0


def gather(paths: Iterable[Path]) -> Listed:
    """Return all migrations of directories and recordings, oldest first and numbered from 1.

    Named recordings of several hosts are joined, as in a report. Raises VftraceError if a directory cannot be read.
    """
    rows: list[tuple[Path, Row]] = []
    notes: list[str] = []
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            contents = index.read(path)
            rows += [(path / row.file, row) for row in index.rows(contents)]
            notes += contents.notes
            # A growing recording needs no note here: its outcome is `running`.
            notes += [_note(path, e) for e in contents.entries if e.damage != BEING_WRITTEN]
        else:
            files.append(path)
    entries = index.entries(files)
    notes += [f"{path}: {entry.error}" for path, entry in entries.items() if entry.error]
    notes += [_note(path.parent, entry) for path, entry in entries.items()]
    rows += _rows(entries)
    found = tuple(
        Found(n, *row)
        for n, row in enumerate(sorted(rows, key=lambda item: index.time_of(item[1])), 1)
    )
    unreadable = sum(entry.error is not None for entry in entries.values())
    return Listed(found, tuple(note for note in notes if note), unreadable)


def _note(directory: Path, entry: Entry) -> str:
    return f"{directory / entry.file}: {entry.damage}" if entry.damage else ""


def _rows(entries: Mapping[Path, Entry]) -> list[tuple[Path, Row]]:
    """Return the migrations of recordings; the halves of two hosts are joined."""
    boots = {row.boot_id for entry in entries.values() for row in entry.rows}
    if len(boots) < 2 or not all(path.is_file() for path in entries):
        contents = index.Contents(tuple(entries.values()))
        by_name = {entry.file: path for path, entry in entries.items()}
        if len(by_name) == len(entries):
            return [(by_name[row.file], row) for row in index.rows(contents)]
        return [(path, row) for path, entry in entries.items() for row in entry.rows]
    readable = [path for path, entry in entries.items() if entry.error is None]
    report = join_hosts(load(readable))
    where = {
        (row.boot_id, row.pid, row.started_at_ns): path
        for path, entry in entries.items()
        for row in entry.rows
    }
    joined = []
    for number, found in enumerate(report.migrations, 1):
        m = found.migration
        path = where.get((found.host.boot_id, m.pid, m.started_at_ns), readable[0])
        joined.append((path, index.row_of(found, path.name, number)))
    return joined


def select(listed: Listed, selectors: Selectors) -> tuple[Found, ...]:
    """Return the selected migrations, oldest first.

    Raises UsageError for a word of `--vm` that matches no VM, and for a number that is not in the list.
    """
    for word in selectors.vms:
        if not any(names_vm([word], f.row.name, f.row.uuid, _pids(f.row)) for f in listed.found):
            raise UsageError(no_match_among([f.row for f in listed.found], word))
    number = selectors.number
    if number is not None and number > len(listed.found):
        raise UsageError(f"no migration has number {number}: the list has {len(listed.found)}")
    taken = [
        found
        for found in listed.found
        if selectors.take(found.row) and number in (None, found.number)
    ]
    return tuple(taken if selectors.last is None else taken[len(taken) - selectors.last :])


def files_of(wanted: Iterable[Found], listed: Listed) -> tuple[Path, ...]:
    """Return the recordings of migrations, and those that may hold another host's half of one.

    Such a half has the same UUID and the other role; wall clocks of hosts are seldom minutes apart.
    """
    halves: dict[str | None, list[Found]] = {}
    for each in listed.found:
        if each.row.uuid is not None and each.row.role != Role.STITCHED:
            halves.setdefault(each.row.uuid, []).append(each)
    paths: list[Path] = []
    for each in wanted:
        paths.append(each.path)
        if each.row.role != Role.STITCHED:
            paths += [h.path for h in halves.get(each.row.uuid, ()) if _may_be_one(each.row, h.row)]
    return tuple(dict.fromkeys(paths))


def _may_be_one(row: Row, other: Row) -> bool:
    apart = abs((row.started_ns or 0) - (other.started_ns or 0))
    return row.boot_id != other.boot_id and row.role != other.role and apart <= _APART_NS


def distinct(
    paths: Iterable[Path], known: Iterable[Path] = ()
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return named files without those that are the same as, or a copy of, one before, and a line for each left out.

    `known`: files that are read too. Only regular files are compared: a pipe can be read only once.
    """
    kept: list[Path] = []
    notes: list[str] = []
    by_size: dict[int, list[Path]] = {}
    for path in known:
        with contextlib.suppress(OSError):
            by_size.setdefault(path.stat().st_size, []).append(path)
    for path in paths:
        if path.is_file():
            alike = by_size.setdefault(path.stat().st_size, [])
            same = next((other for other in alike if _same(path, other)), None)
            if same is not None:
                also = "given twice" if same == path else f"the same recording as {same}"
                notes.append(f"{path} is {also}: it is read once")
                continue
            alike.append(path)
        kept.append(path)
    return tuple(kept), tuple(notes)


def _same(path: Path, other: Path) -> bool:
    return path.samefile(other) or filecmp.cmp(path, other, shallow=False)


# -- reports ------------------------------------------------------------------------------------


class _Host(msgspec.Struct):
    """The contents of the files of one boot; each migration once, by its pid and its beginning."""

    parts: list[HostReport] = msgspec.field(default_factory=list)
    migrations: dict[tuple[int, int], Migration] = msgspec.field(default_factory=dict)


def load_files(
    paths: Iterable[Path], profiles: Sequence[str] = (), recent: int = MAX_RECENT
) -> Report:
    """Load recordings of a directory as `collect.merge.load` does, without joining them.

    Each file is read by itself, as for the index, so that the figures are those of the list; the files of one boot
    become one host. `damage` also has a line for each file that does not exist or cannot be read.
    """
    hosts: dict[str, _Host] = {}
    pings: list[PingRecording] = []
    damage: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            report = load([path], profiles, recent)
        except VftraceError as error:
            # The recorder may have removed the file since it was listed.
            damage.append(str(error))
            continue
        pings += report.pings
        damage += report.damage
        for part in report.hosts:
            host = hosts.setdefault(part.boot_id, _Host())
            host.parts.append(part)
            host.migrations |= {(m.pid, m.started_at_ns): m for m in part.snapshot.migrations}
    return Report.of_hosts([_one(host) for host in hosts.values()], pings, damage)


def keep(report: Report, wanted: Iterable[Found]) -> Report:
    """Select the found migrations from a joined report; one half is enough."""
    keys = {(f.row.boot_id, f.row.pid, f.row.started_at_ns) for f in wanted}
    # A process that was a destination may be a source later: only its arrival is wanted then.
    arrived = {(f.row.boot_id, f.row.pid) for f in wanted if f.row.role == Role.DESTINATION}
    return only(
        report,
        [
            found
            for found in report.migrations
            if (found.host.boot_id, found.migration.pid, found.migration.started_at_ns) in keys
            or (
                found.peer is not None
                and found.peer is not found.host
                and (found.peer.boot_id, found.migration.peer_pid) in arrived
            )
        ],
    )


def _one(host: _Host) -> HostReport:
    parts = host.parts
    if len(parts) == 1:
        return parts[0]
    shots = [part.snapshot for part in parts]
    latest = max(shots, key=lambda shot: shot.at_ns)
    whole = Snapshot(
        at_ns=latest.at_ns,
        vms=latest.vms,
        migrations=tuple(sorted(host.migrations.values(), key=lambda m: (m.started_at_ns, m.pid))),
        events=sum(shot.events for shot in shots),
        # Each counter counts from the recorder's start.
        lost=max(shot.lost for shot in shots),
        unknown_records=sum(shot.unknown_records for shot in shots),
        clock=tuple(sorted({sample for shot in shots for sample in shot.clock})),
        vfs=tuple({(vf.pf, vf.vf): vf for shot in shots for vf in shot.vfs}.values()),
        transitions=latest.transitions,
        vfs_incomplete=any(shot.vfs_incomplete for shot in shots),
        network=tuple(change for shot in shots for change in shot.network),
        network_missed=max(shot.network_missed for shot in shots),
        stalls=tuple(sorted({stall for shot in shots for stall in shot.stalls})),
        tables_full=latest.tables_full,
        untraced=latest.untraced,
        missed_runs=latest.missed_runs,
    )
    return HostReport(
        max((part.info for part in parts), key=lambda info: len(info.probes)),
        whole,
        {pid: at for part in parts for pid, at in part.ready_at_ns.items()},
        tuple(waiting for part in parts for waiting in part.waiting),
    )


def narrow(report: Report, selectors: Selectors) -> Report:
    """Return only the selected migrations of a report, whose migrations have no numbers."""
    rows = [(found, index.row_of(found, "", 0)) for found in report.migrations]
    taken = sorted(
        ((found, row) for found, row in rows if selectors.take(row)),
        key=lambda item: index.time_of(item[1]),
    )
    if selectors.last is not None:
        taken = taken[len(taken) - selectors.last :]
    kept = {id(found) for found, _ in taken}
    return only(report, [found for found in report.migrations if id(found) in kept])


def only(report: Report, wanted: Sequence[MigrationReport]) -> Report:
    """Return a report with these migrations, and for each host only their halves."""
    starts = {(f.host.boot_id, f.migration.pid, f.migration.started_at_ns) for f in wanted}
    others = {(f.peer.boot_id, f.migration.peer_pid) for f in wanted if f.peer is not None}
    hosts = []
    for host in report.hosts:
        migrations = tuple(
            m
            for m in host.snapshot.migrations
            if (host.boot_id, m.pid, m.started_at_ns) in starts or (host.boot_id, m.pid) in others
        )
        hosts.append(replace(host, snapshot=replace(host.snapshot, migrations=migrations)))
    return replace(report, hosts=tuple(hosts), migrations=tuple(wanted))
