# SPDX-License-Identifier: MIT
"""The index of a directory of recordings: what each file holds, so that a list does not read the files again.

The index is a file beside the recordings: a line that names the version, then one line of JSON for each recording.
A recorder appends the line of a file that it has closed; where two lines are about one file, the last one counts.
Nothing depends on the index: a line that is missing, damaged, of another version or about a file that has changed
since is made again from the recording.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from vftrace import __version__
from vftrace.archive.names import FileName
from vftrace.archive.regular import NotRegularError, open_regular
from vftrace.errors import VftraceError
from vftrace.model import figures
from vftrace.model.migration import Cause, Kind, Migration, Role
from vftrace.model.report import MigrationReport, Report

NAME = ".vftrace-index"
_HEAD = f'{{"vftrace_index":1,"by":"{__version__}"}}\n'.encode()
"""Another version of vftrace may find other figures in the same file."""
_MAX_BYTES = 256 << 20
"""A larger index is not one of ours: some 400 bytes for each migration."""
_SLACK = 64 << 10
_LOOKS = 3
"""How often a directory is read again if its files are renamed meanwhile."""
_LINE = 2048
"""A recorder rewrites an index that has more than this number of bytes for each file."""


class Row(msgspec.Struct, frozen=True):
    """One migration of a recording. Durations are nanoseconds; None is not known.

    `number` counts the migrations of the file from 1. `started_ns` is nanoseconds since the Unix epoch, and
    `started_at_ns` the same moment on the clock of the boot `boot_id`. `source` and `destination` are host names,
    of a host that did not record the address that the channel was connected to; of a save or load the file's path.
    `outcome` is None while the migration runs.
    """

    file: str
    number: int
    boot_id: str
    started_at_ns: int
    started_ns: int | None
    uuid: str | None
    name: str | None
    pid: int
    peer_pid: int | None
    kind: str
    role: str
    source: str | None
    destination: str | None
    strategy: str
    outcome: str | None
    cause: str | None
    total_ns: int | None
    downtime_ns: int | None
    set_by: str | None
    incomplete: bool


class Entry(msgspec.Struct, frozen=True):
    """What is known of a file of this size and modification time.

    `damage` says where the recording ends early; `error` why it could not be read at all.
    """

    file: str
    size: int
    mtime_ns: int
    rows: tuple[Row, ...] = ()
    damage: str | None = None
    error: str | None = None


class Contents(msgspec.Struct, frozen=True):
    """The recordings of a directory by name; `notes` has one line for each thing that went wrong."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def row_of(found: MigrationReport, file: str, number: int, *, lasting: bool = False) -> Row:
    """Return the row of a migration. `lasting`: its recording is still being written, so it may still run."""
    m = found.migration
    source, destination = _ends(found)
    running = m.outcome is None or (lasting and m.cause == Cause.TRACE_ENDED)
    return Row(
        file=file,
        number=number,
        boot_id=found.host.boot_id,
        started_at_ns=m.started_at_ns,
        started_ns=figures.realtime_ns(found.host.snapshot.clock, m.started_at_ns),
        uuid=m.uuid,
        name=m.name,
        pid=m.pid,
        peer_pid=m.peer_pid,
        kind=m.kind,
        role=m.role,
        source=source,
        destination=destination,
        strategy=m.strategy,
        outcome=None if running else m.outcome,
        cause=None if running else m.cause,
        total_ns=figures.total_ns(m),
        downtime_ns=m.downtime.vcpu_ns,
        set_by=m.downtime.set_by,
        incomplete=m.incomplete or m.missed_beginning or m.contested,
    )


def rows_of(report: Report, file: str, *, lasting: bool = False) -> tuple[Row, ...]:
    """Return the rows of all migrations of a report in order of time; `lasting` as for `row_of`."""
    found = sorted(report.migrations, key=lambda f: f.migration.started_at_ns)
    return tuple(row_of(each, file, n, lasting=lasting) for n, each in enumerate(found, 1))


def _ends(found: MigrationReport) -> tuple[str | None, str | None]:
    """Return the source and the destination of the VM."""
    m, here = found.migration, found.host.name
    if m.kind != Kind.MOVE:
        path = None if m.save is None else m.save.path or m.save.program
        return (here, path) if m.kind == Kind.SAVE else (path, here)
    if m.role == Role.DESTINATION:
        return (found.peer.name if found.peer else None), here
    if found.peer is not None:
        return here, found.peer.name
    return here, _channel_host(m)


def _channel_host(m: Migration) -> str | None:
    """Return the address of the channel's other end, without the port."""
    if m.channel.peer is None:
        return None
    return m.channel.peer.rpartition(":")[0].strip("[]") or m.channel.peer


# -- reading ------------------------------------------------------------------------------------


def read(directory: Path) -> Contents:
    """Return the contents of the recordings of a directory; files that are not in the index are read now.

    Raises VftraceError if the directory cannot be read.
    """
    known, clean = _read_index(directory / NAME)
    files, entries, growing = _entries(directory, known)
    learned = any(
        known.get(e.file) is not e and e.file not in growing and _line_of(e) for e in entries
    )
    notes: list[str] = []
    if learned or not clean or set(known) - set(files):
        # The entry of a growing file would be wrong at once.
        kept = [e for e in entries if e.file not in growing]
        problem = _write_index(directory / NAME, kept)
        notes += [] if problem is None else [problem]
    notes += [f"{directory / e.file}: {e.error}" for e in entries if e.error is not None]
    return Contents(tuple(entries), tuple(notes))


def _entries(
    directory: Path, known: Mapping[str, Entry]
) -> tuple[Iterable[str], list[Entry], set[str]]:
    """Return the names of the recordings, an entry for each, and which of them are still being written.

    A recorder renames a file when its migration ends, and removes old ones: then the directory is read again.
    """
    looked: dict[str, tuple[Entry, bool]] = {}
    for _ in range(_LOOKS):
        files = _files(directory)
        for name, status in files.items():
            entry = known.get(name)
            if entry is not None and _fits(entry, status):
                looked[name] = entry, False
            elif name not in looked:
                looked[name] = _look(directory / name, status)
        if all((directory / name).exists() for name in files if looked[name][0].error):
            break
    gone = {n for n in files if looked[n][0].error and not (directory / n).exists()}
    names = [name for name in files if name not in gone]
    return names, [looked[n][0] for n in names], {n for n in names if looked[n][1]}


def entries(paths: Iterable[Path]) -> dict[Path, Entry]:
    """Return the contents of named recordings, by path; recordings in an index beside them are not read again."""
    indexes: dict[Path, dict[str, Entry]] = {}
    found: dict[Path, Entry] = {}
    for path in paths:
        try:
            # `-` and pipes have no index, and can be read only once.
            status = path.stat() if path.is_file() else os.stat_result((0,) * 10)
        except OSError as error:
            found[path] = Entry(path.name, 0, 0, error=error.strerror)
            continue
        if path.parent not in indexes:
            indexes[path.parent] = _read_index(path.parent / NAME)[0]
        known = indexes[path.parent].get(path.name) if path.is_file() else None
        fits = known is not None and _fits(known, status)
        found[path] = known if known is not None and fits else _look(path, status)[0]
    return found


def known(directory: Path) -> Contents:
    """Return the entries of the index for existing recordings; no recording is read.

    Raises VftraceError if the directory cannot be read.
    """
    files = _files(directory)
    found, _ = _read_index(directory / NAME)
    return Contents(
        tuple(e for name, e in found.items() if name in files and _fits(e, files[name]))
    )


def add(path: Path, row: Row | None = None) -> str | None:
    """Add a closed recording; returns one line if the index cannot be written, which does no harm.

    `row` is the row of its one migration, if that is known; else the file is read.
    """
    index = path.parent / NAME
    try:
        status = path.lstat()
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"cannot read {path}: not a regular file"
    if row is None:
        entry, _ = _look(path, status)
    else:
        entry = _entry(path.name, status, rows=(row,))
    try:
        with open_regular(index, os.O_WRONLY | os.O_APPEND) as file:
            file.write(_line_of(entry))
            size = file.tell()
    except (FileNotFoundError, PermissionError, NotRegularError):
        # A file of another user in our directory can be replaced.
        return _write_index(index, [entry])
    except OSError as error:
        return f"cannot write {index}: {error.strerror}"
    return _clean(path.parent, size)


def _clean(directory: Path, size: int) -> str | None:
    """Write the index again if most of its lines are about files that no longer exist."""
    if size <= _SLACK:
        return None
    try:
        files = _files(directory)
    except VftraceError as error:
        return str(error)
    if size <= _SLACK + _LINE * len(files):
        return None
    known, _ = _read_index(directory / NAME)
    kept = [e for name, e in known.items() if name in files and _fits(e, files[name])]
    return _write_index(directory / NAME, kept)


def _files(directory: Path) -> dict[str, os.stat_result]:
    """Return the regular files of a directory with names of recordings, by name. Symbolic links are not followed."""
    found: dict[str, os.stat_result] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if is_recording_name(entry.name) and entry.is_file(follow_symlinks=False):
                    # The file may have been removed or renamed meanwhile.
                    with contextlib.suppress(OSError):
                        found[entry.name] = entry.stat(follow_symlinks=False)
    except OSError as error:
        raise VftraceError(f"cannot read {directory}: {error.strerror}") from error
    return dict(sorted(found.items()))


def is_recording_name(name: str) -> bool:
    """Whether a file has the name of a recording: `*.vft`, also compressed, and not hidden."""
    return not name.startswith(".") and name.removesuffix(".gz").endswith(".vft")


def _fits(entry: Entry, status: os.stat_result) -> bool:
    return (entry.size, entry.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _entry(
    file: str,
    status: os.stat_result,
    rows: tuple[Row, ...] = (),
    damage: str | None = None,
    error: str | None = None,
) -> Entry:
    return Entry(file, status.st_size, status.st_mtime_ns, rows, damage, error)


def _look(path: Path, status: os.stat_result) -> tuple[Entry, bool]:
    """Read a recording; also returns whether it is still being written, so that the result is valid only now."""
    from vftrace.collect.merge import load
    from vftrace.collect.recording import BEING_WRITTEN

    try:
        report = load([path])
    except VftraceError as error:
        said = str(error).removeprefix(f"cannot read {path}: ").removeprefix(f"{path} ")
        return _entry(path.name, status, error=said), False
    (damage,) = report.damage or (None,)
    damage = None if damage is None else damage.removeprefix(f"{path}: ")
    named = FileName.parse(path.name)
    lasting = damage == BEING_WRITTEN or (
        damage is not None and named is not None and named.running
    )
    rows = rows_of(report, path.name, lasting=lasting)
    return _entry(path.name, status, rows, damage), lasting


# -- the file -----------------------------------------------------------------------------------


def _read_index(path: Path) -> tuple[dict[str, Entry], bool]:
    """Return the entries by file, and whether every line of the index was valid."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES or file.readline(512) != _HEAD:
                return {}, False
            lines = file.read().splitlines()
    except OSError:
        return {}, False
    found: dict[str, Entry] = {}
    clean = True
    decoder = msgspec.json.Decoder(Entry)
    for line in lines:
        try:
            entry = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            clean = False
            continue
        if any(row.file != entry.file for row in entry.rows):
            clean = False
            continue
        clean = clean and entry.file not in found
        found[entry.file] = entry
    return found, clean


def _line_of(entry: Entry) -> bytes:
    """Return the line of a recording; None if a name in it, or the file's own, is not UTF-8: then it is read each
    time."""
    try:
        return msgspec.json.encode(entry) + b"\n"
    except UnicodeEncodeError:
        return b""


def _write_index(path: Path, entries: Iterable[Entry]) -> str | None:
    """Replace the index atomically, so that a reader has the old or the new one; returns why that failed, if it did."""
    content = _HEAD + b"".join(map(_line_of, entries))
    temporary: str | None = None
    try:
        # mkstemp: mode 0600, because names of VMs and hosts are private
        fd, temporary = tempfile.mkstemp(prefix=f"{NAME}.", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            owner = path.parent.stat()
            if os.geteuid() == 0 and owner.st_uid != 0:
                # The recorder has a user of its own, and continues to write this file.
                os.fchown(fd, owner.st_uid, owner.st_gid)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        return f"cannot write {path}: {error.strerror}; every list reads the recordings again"
    return None


def rows(contents: Contents) -> tuple[Row, ...]:
    """Return all migrations of a directory, oldest first, each once.

    Two files may hold the same migration, if they were recorded at the same time: the row with an outcome and without
    losses is kept.
    """
    best: dict[tuple[str, int, int], Row] = {}
    for row in (row for entry in contents.entries for row in entry.rows):
        key = (row.boot_id, row.started_at_ns, row.pid)
        if key not in best or _quality(row) > _quality(best[key]):
            best[key] = row
    return tuple(sorted(best.values(), key=time_of))


def _quality(row: Row) -> tuple[bool, bool, bool]:
    known = row.outcome not in (None, "unknown")
    return known, not row.incomplete, row.downtime_ns is not None


def time_of(row: Row) -> tuple[int, int]:
    """Return the key by which rows are sorted: when their migrations began."""
    return row.started_ns or 0, row.started_at_ns
