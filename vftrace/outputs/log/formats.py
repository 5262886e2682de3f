# SPDX-License-Identifier: MIT
"""A log entry as a line of text, as JSON, or as a datagram for systemd's journal. Pure.

Names come from the command lines of VMMs: in no format can a name end the line, send control characters to a terminal
or add a field.
"""

import json
import logging
import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from vftrace.outputs.log.entries import BEGAN, ENDED, NOT_LOGGED, Entry, Value, iso_time
from vftrace.units import format_ns

MESSAGE_IDS = {
    BEGAN: "ad522e4de25540478482592d9ae2afb2",
    ENDED: "8904204b6a9e4ef28e15a33d6c79f869",
    NOT_LOGGED: "ace11517dc7c4e9eaad25babcc0b21ad",
}
"""The ids of these lines for `journalctl MESSAGE_ID=`. They never change."""

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@+,[]#%~-")

# sd-daemon(3); the numbers are syslog's.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


def level_name(level: int) -> str:
    """`info`, `warning`, ..."""
    return logging.getLevelName(level).lower()


def text_line(entry: Entry) -> str:
    """`migration ended time=... name=... downtime=12.3ms`: unknown and false values are left out."""
    shown = (_text_field(key, value) for key, value in _said(entry))
    return " ".join((_printable(entry.message), *shown))


def json_line(entry: Entry, now: datetime) -> str:
    """Return one JSON object of ASCII characters; `time` is the event's, else that of the line."""
    document: dict[str, Value] = {
        "time": iso_time(now.astimezone(UTC)),
        "level": level_name(entry.level),
        "msg": entry.message,
    }
    known = {key: value for key, value in entry.fields.items() if key != "time" or value}
    # Escape everything but ASCII, so that the line is harmless to a terminal too.
    return json.dumps(document | known, ensure_ascii=True)


def journal_datagram(entry: Entry) -> bytes:
    """Return the entry in the journal's native protocol, with a field for each known value."""
    fields: dict[str, str] = {
        "MESSAGE": text_line(entry),
        "PRIORITY": str(_priority(entry.level)),
        "SYSLOG_IDENTIFIER": "vftrace",
    }
    if entry.message in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[entry.message]
    fields |= {
        f"VFTRACE_{key.upper().replace('-', '_')}": _plain(value) for key, value in _said(entry)
    }
    return b"".join(_journal_fields(fields))


def _said(entry: Entry) -> Iterable[tuple[str, Value]]:
    return ((k, v) for k, v in entry.fields.items() if v is not None and v is not False)


def _journal_fields(fields: Mapping[str, str]) -> Iterable[bytes]:
    for key, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            # A value with a newline is sent with its length before it, so that it cannot begin another field.
            yield key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            yield key.encode() + b"=" + data + b"\n"


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def _text_field(key: str, value: Value) -> str:
    if key.endswith("_ns") and isinstance(value, int):
        return f"{key.removesuffix('_ns')}={format_ns(value).replace(' ', '')}"
    return f"{key}={_quoted(_plain(value))}"


def _plain(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    if text and all(c in _BARE for c in text):
        return text
    return '"' + _printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _printable(text: str) -> str:
    """Return a text with control characters, line ends and marks that change the direction of writing as `\\u202e`."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
