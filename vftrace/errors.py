# SPDX-License-Identifier: MIT
"""Errors that a user can fix; each becomes one line on stderr and an exit code."""

from typing import ClassVar


def printable(text: str) -> str:
    """Text of a command line, a file's name or a recording without control characters and characters that cannot be
    encoded."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class VftraceError(Exception):
    """Something failed; the message is one line that names it."""

    exit_code: ClassVar[int] = 1


class UsageError(VftraceError):
    """The command line, or a value given on it, makes no sense."""

    exit_code: ClassVar[int] = 2


class MachineError(VftraceError):
    """This machine lacks something that the command needs; `fix` is the command that mends it, if there is one."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix
