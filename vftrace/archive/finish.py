# SPDX-License-Identifier: MIT
"""Finishes recordings without an end, after a killed recorder or a full disk."""

import contextlib
import os
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

from vftrace.archive.names import FileName
from vftrace.archive.regular import NotRegularError, open_regular
from vftrace.collect.recording import Recording, frames_of, head_of, lock
from vftrace.collect.replay import track
from vftrace.errors import VftraceError
from vftrace.events import COLLECTOR, End, wire
from vftrace.events.layout import Kind
from vftrace.model.migration import Outcome

CLOSED = bytes.fromhex("1f8b080000000000000303000000000000000000")
"""An empty gzip member, which ends every closed recording."""
PART = ".part"
"""The suffix of a file in which nothing can be read yet."""
_LEVEL = 6


def finish_all(directory: Path, writing: Collection[str], closed: Callable[[Path], None]) -> bool:
    """Give each recording of a directory without an end its end and its final name; False if that failed for one.

    Recordings that are being written, by name or by another vftrace, are not touched. `closed` gets the path of each
    finished recording. Raises OSError if the directory cannot be read.
    """
    whole = True
    for path in sorted(directory.iterdir()):
        name = path.name
        if name.endswith(PART) and FileName.parse(name.removesuffix(PART)) is not None:
            with contextlib.suppress(FileNotFoundError, NotRegularError):
                _remove(path)
        if FileName.parse(name) is None or name in writing or is_closed(path):
            continue
        try:
            finished = _finish(path)
        except (FileNotFoundError, NotRegularError):
            continue
        except OSError:
            whole = False
            continue
        if finished is not None:
            closed(finished)
    return whole


def _remove(path: Path) -> None:
    """Remove unfinished temporary files of a recording's beginning or of this module."""
    with open_regular(path) as file:
        if lock(file):
            path.unlink(missing_ok=True)


def is_closed(path: Path) -> bool:
    """Whether a recording was closed by its writer, by its last bytes."""
    try:
        with open_regular(path) as file:
            file.seek(-len(CLOSED), os.SEEK_END)
            return file.read() == CLOSED
    except OSError:
        return False


def _finish(path: Path) -> Path | None:
    """Write a recording again with an end, under the name of its outcome; None if it is being written, empty or
    damaged. Raises OSError if the disk fails."""
    with open_regular(path) as file:
        if not lock(file):
            return None
        name = FileName.parse(path.name)
        assert name is not None
        if os.fstat(file.fileno()).st_size == 0:
            path.unlink()  # the machine went down before its first line was on the disk
            return None
        try:
            outcome = _outcome(path)
        except VftraceError as error:
            # A file that cannot be read now may be readable later, on another disk or by another vftrace.
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            return None
        part = path.with_name(path.name + PART)
        try:
            whole = _copy(path, part)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if not whole:
            part.unlink()
            return None
        status = os.fstat(file.fileno())
        os.utime(part, ns=(status.st_mtime_ns, status.st_mtime_ns))
        ended = path.with_name(str(name.ended(outcome) if name.running else name))
        part.rename(ended)
        if ended != path:
            path.unlink()
    return ended


def _outcome(path: Path) -> Outcome:
    """Return the migration's outcome as far as its recording shows it."""
    migrations = track(Recording(path)).snapshot().migrations
    return (migrations[-1].outcome if migrations else None) or Outcome.UNKNOWN


def _copy(path: Path, into: Path) -> bool:
    """Write the readable part of a recording, and an end; False if it is damaged."""
    recording = Recording(path)
    compressor = zlib.compressobj(_LEVEL, wbits=31)
    at_ns = own = pid = 0
    streams: dict[int, int] = {}
    with open(os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        file.write(compressor.compress(head_of(recording.host)))
        for batch in recording.batches():
            file.write(compressor.compress(frames_of(batch)))
            for record in batch:
                at_ns, seq, _, kind, _, tgid, tid = wire.HEADER.unpack_from(record)
                if tgid == COLLECTOR:
                    own, pid = seq + 1, tid
                elif kind == Kind.EXIT:
                    streams.pop(tgid, None)
                elif kind != Kind.BITMAP:
                    streams[tgid] = max(seq + 1, streams.get(tgid, 0))
        if not recording.has_end:
            end = End(at_ns, own, COLLECTOR, pid, streams)
            file.write(compressor.compress(frames_of([wire.encode(end)])))
        file.write(compressor.flush() + CLOSED)
    return recording.damage is None
