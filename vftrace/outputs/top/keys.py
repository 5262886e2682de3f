# SPDX-License-Identifier: MIT
"""Reads the keyboard one key at a time, and restores the terminal afterwards."""

import os
import select
import termios
import tty
from types import TracebackType
from typing import Self

_ESCAPE = 0x1B
_SEQUENCES = {
    b"[A": "Up",
    b"[B": "Down",
    b"OA": "Up",
    b"OB": "Down",
    b"[H": "Home",
    b"[F": "End",
    b"OH": "Home",
    b"OF": "End",
    b"[1~": "Home",
    b"[4~": "End",
    b"[5~": "PageUp",
    b"[6~": "PageDown",
}
_NAMES = {" ": "Space", "\r": "Enter", "\n": "Enter", "\x7f": "Backspace", "\x08": "Backspace"}

ESCAPE_SECONDS = 0.05
"""A terminal sends a key's sequence at once: an escape alone for this long is the Esc key."""


def parse(data: bytes) -> tuple[list[str], bytes]:
    """Return the keys in `data`, and the rest that may be incomplete.

    Printable characters stand for themselves; unknown sequences are dropped as a whole.
    """
    keys: list[str] = []
    while data:
        if data[0] == _ESCAPE:
            length = _sequence_length(data)
            if length is None:
                return keys, data
            name = _SEQUENCES.get(data[1:length])
            if length == 1:
                keys.append("Esc")
            elif name is not None:
                keys.append(name)
            data = data[length:]
            continue
        length = _character_length(data[0])
        if len(data) < length:
            return keys, data
        character = data[:length].decode("utf-8", "replace")
        data = data[length:]
        if character in _NAMES:
            keys.append(_NAMES[character])
        elif character.isprintable():
            keys.append(character)
    return keys, b""


def _sequence_length(data: bytes) -> int | None:
    """Return the length of the escape sequence at the start (CSI of ECMA-48, or SS3); 1: Esc itself, None:
    incomplete."""
    if len(data) == 1:
        return None
    if data[1:2] == b"O":
        return 3 if len(data) >= 3 else None
    if data[1:2] != b"[":
        return 1
    for index in range(2, len(data)):
        if 0x40 <= data[index] <= 0x7E:
            return index + 1
    return None


def _character_length(first: int) -> int:
    """Return the length in bytes of the UTF-8 character that begins with this byte."""
    if first >= 0xF0:
        return 4
    if first >= 0xE0:
        return 3
    return 2 if first >= 0xC0 else 1


class KeyReader:
    """Reads keys from the terminal `fd` without waiting. Ctrl-C still interrupts.

    Ctrl-Z is switched off, because a stopped program would leave its picture on the shell's screen.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._before: list[object] = []

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSANOW)
        now = termios.tcgetattr(self._fd)
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._fd, termios.TCSANOW, now)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def read(self) -> list[str]:
        """Return the keys pressed since the last call."""
        data = self._rest
        while self._ready(ESCAPE_SECONDS if data == b"\x1b" else 0):
            more = os.read(self._fd, 1024)
            if not more:
                break
            data += more
        keys, self._rest = parse(data)
        if self._rest == b"\x1b":
            # Nothing followed in time.
            keys.append("Esc")
            self._rest = b""
        return keys

    def _ready(self, seconds: float) -> bool:
        return bool(select.select([self._fd], [], [], seconds)[0])
