# SPDX-License-Identifier: MIT
"""Writes log lines to standard error, or to systemd's journal if standard error is connected to it.

Writing never waits: if nobody reads standard error, lines are lost and counted, and tracing continues.
"""

import logging
import os
import select
import socket
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Literal, TextIO

from vftrace.faults import FAULTS
from vftrace.outputs.log.entries import Entry
from vftrace.outputs.log.formats import journal_datagram, json_line, text_line

Format = Literal["text", "json"]

LOGGER = logging.getLogger("vftrace")
JOURNAL_SOCKET = "/run/systemd/journal/socket"


class Handler(logging.Handler):
    """Writes each record in one of the formats. `journal` is the address of the journal's socket, if it is used."""

    def __init__(
        self, form: Format, stream: TextIO | None = None, journal: str | None = None
    ) -> None:
        super().__init__()
        self.form = form
        self._stream = stream
        self._journal = None if journal is None else Journal(journal)
        self._lost = 0
        self._cut = False
        """Whether the end of the latest line is missing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        entry = Entry(record.levelno, record.getMessage(), getattr(record, "fields", {}))
        if self._journal is not None and self.form == "text" and self._journal.send(entry):
            return
        self._write(json_line(entry, _now()) if self.form == "json" else text_line(entry))

    def say(self, text: str) -> None:
        """Write a text of several lines, such as a traceback, as it is; or count it as lost."""
        with self.lock or nullcontext():
            self._write(text)

    def _write(self, line: str) -> None:
        """Write a line in this format, after a line about lost ones if there are any."""
        stream = self._stream or sys.stderr
        prefix = "" if self.form == "json" else "vftrace: "
        try:
            if self._lost:
                entry = Entry(logging.WARNING, "lines not written", {"lost": self._lost})
                lost = json_line(entry, _now()) if self.form == "json" else text_line(entry)
                if not self._put(stream, f"{prefix}{lost}\n"):
                    self._lost += 1
                    return
                self._lost = 0
            self._lost += not self._put(stream, f"{prefix}{line}\n")
        except (OSError, ValueError):
            self._lost += 1

    def _put(self, stream: TextIO, line: str) -> bool:
        """Write without waiting; returns whether all was written.

        A pipe takes PIPE_BUF bytes at once if poll(2) reports that it takes any (pipe(7)), but perhaps no more.
        """
        encoding = stream.encoding or "utf-8"
        data = line.encode(encoding, "backslashreplace")
        try:
            fd = stream.fileno()
        except (OSError, ValueError):  # not a file of the kernel: it never waits
            stream.write(data.decode(encoding))
            stream.flush()
            return True
        if self._cut:
            data = b"\n" + data
        for first in range(0, len(data), select.PIPE_BUF):
            if not _writable(fd):
                self._cut = self._cut or first > 0
                return False
            os.write(fd, data[first : first + select.PIPE_BUF])
        self._cut = False
        return True


class Journal:
    """systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def send(self, entry: Entry) -> bool:
        """Send one entry; False if the journal does not take it now."""
        try:
            self._socket.sendto(journal_datagram(entry), self._address)
        except OSError:
            return False
        return True


def configure(
    form: Format = "text", level: str = "info", environ: Mapping[str, str] = os.environ
) -> None:
    """Send vftrace's log to standard error in this format; a later call replaces the format."""
    # For a terminal use the present stream: the live view holds back lines while it draws.
    stream = None if sys.stderr.isatty() else sys.stderr
    journal = JOURNAL_SOCKET if is_journal(sys.stderr, environ) else None
    handler = Handler(form, stream, journal)
    LOGGER.handlers = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    # JSON has the traceback in one line.
    FAULTS.say = handler.say if form == "text" else lambda text: LOGGER.error("%s", text)


def log(entry: Entry) -> None:
    """Write one entry."""
    LOGGER.log(entry.level, "%s", entry.message, extra={"fields": entry.fields})


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether this stream is the connection to the journal that `JOURNAL_STREAM` names (systemd.exec(5))."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError, ValueError):
        found = os.fstat(stream.fileno())
        return (str(found.st_dev), str(found.st_ino)) == (device, inode)
    return False


def _writable(fd: int) -> bool:
    """Whether something can be written without waiting."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _now() -> datetime:
    return datetime.now(UTC)
