# SPDX-License-Identifier: MIT
"""Deletes recordings, the oldest first, if they are too old or together too large."""

import os
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from vftrace.archive.names import FileName
from vftrace.archive.regular import open_regular
from vftrace.collect.recording import lock

MAX_FILES = 20_000
"""The most recordings of one directory, whatever their size: listing more would take too long."""


class Limits(msgspec.Struct, frozen=True):
    """The limits: how long recordings are kept after their end (ns), and how many bytes they may use on the disk."""

    retain_ns: int
    max_bytes: int


class Kept(msgspec.Struct, frozen=True):
    """The contents of a directory: the number of its recordings and the bytes that they use on the disk."""

    files: int
    bytes: int


class _File(msgspec.Struct, frozen=True):
    name: str
    bytes: int
    ended_ns: int


def enforce(directory: Path, limits: Limits, writing: Collection[str]) -> Kept:
    """Delete the oldest recordings until the limits are met; returns the remaining contents.

    Files that are being written, by name or by another vftrace, are never deleted, and other files never touched.
    Raises OSError if the directory cannot be read.
    """
    files = _files(directory)
    count, total = len(files), sum(file.bytes for file in files)
    oldest_ns = time.time_ns() - limits.retain_ns
    for file in files:
        over = total > limits.max_bytes or count > MAX_FILES
        due = over or file.ended_ns < oldest_ns
        if due and file.name not in writing and _delete(directory / file.name):
            count, total = count - 1, total - file.bytes
    return Kept(count, total)


def _files(directory: Path) -> list[_File]:
    """Return the recordings of a directory, the oldest first."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if FileName.parse(entry.name) is None or not entry.is_file(follow_symlinks=False):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # deleted meanwhile
            found.append(_File(entry.name, status.st_blocks * 512, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.name)


def _delete(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            if not lock(file):
                return False
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
