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
from contextlib import suppress
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

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        entry = Entry(record.levelno, record.getMessage(), getattr(record, "fields", {}))
        if self._journal is not None and self.form == "text" and self._journal.send(entry):
            return
        stream = self._stream or sys.stderr
        if not _writable(stream):
            self._lost += 1
            return
        try:
            if self._lost:
                lost, self._lost = self._lost, 0
                self._write(stream, Entry(logging.WARNING, "lines not written", {"lost": lost}))
            self._write(stream, entry)
        except (OSError, ValueError):
            self._lost += 1

    def _write(self, stream: TextIO, entry: Entry) -> None:
        json = self.form == "json"
        line = json_line(entry, datetime.now(UTC)) if json else f"vftrace: {text_line(entry)}"
        encoding = stream.encoding or "utf-8"
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()


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
    LOGGER.handlers = [Handler(form, stream, journal)]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    if form == "json":
        # With its traceback, which would be many lines.
        FAULTS.say = lambda text: LOGGER.error("%s", text)


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


def _writable(stream: TextIO) -> bool:
    """Whether a line can be written without waiting; an object that is not a file of the kernel is always writable."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True
