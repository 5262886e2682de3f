"""Errors a user can do something about; each becomes one line on stderr and an exit code."""

from typing import ClassVar


def printable(text: str) -> str:
    """Text of a command line, a file's name or a recording without what steers a terminal or cannot be encoded."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class VftraceError(Exception):
    """Something failed; the message is one line that names it."""

    exit_code: ClassVar[int] = 1


class UsageError(VftraceError):
    """The command line, or a value given on it, makes no sense."""

    exit_code: ClassVar[int] = 2


class MachineError(VftraceError):
    """This machine cannot do it as it is; `fix` is the command that would change that, if any."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix
