"""The names of kept recordings: when the migration began, whose it is, how it ended, and a part that is unique.

`20261129T225506.123Z-web-1-completed-1f0c9a3e.vft.gz`. While the migration runs, `running` stands for its outcome.
Sorted by name the files are in the order of time.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

from vftrace.dataclass import dataclass

SUFFIX = ".vft.gz"
RUNNING = "running"
OUTCOMES = ("completed", "cancelled", "failed", "unknown")
"""The outcomes of `vftrace.model.migration.Outcome`, in the names of files whose migration has ended."""

_MAX_VM = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_TIME = "%Y%m%dT%H%M%S.%f"
_NAME = re.compile(
    r"(?P<time>\d{8}T\d{6}\.\d{3})Z-(?P<vm>[A-Za-z0-9._-]+)"
    rf"-(?P<outcome>{'|'.join((RUNNING, *OUTCOMES))})-(?P<unique>[0-9a-f]{{8}})"
    rf"{re.escape(SUFFIX)}"
)


@dataclass(frozen=True, slots=True)
class FileName:
    """The parts of a kept recording's name. `started` is in UTC, cut to milliseconds."""

    started: datetime
    vm: str
    outcome: str
    unique: str

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Take a file's name apart; None for a file that no flight recorder wrote."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        try:
            started = datetime.strptime(found["time"] + "000", _TIME).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(started, found["vm"], found["outcome"], found["unique"])

    def __str__(self) -> str:
        time = self.started.astimezone(UTC).strftime(_TIME)[:-3]
        return f"{time}Z-{self.vm}-{self.outcome}-{self.unique}{SUFFIX}"

    @property
    def running(self) -> bool:
        """Whether the migration had no outcome when the file got this name."""
        return self.outcome == RUNNING

    def ended(self, outcome: str) -> "FileName":
        """The name of the same file once the migration has this outcome."""
        return replace(self, outcome=outcome)


def safe_vm(name: str | None, uuid: str | None, pid: int) -> str:
    """A VM's name, else the first part of its UUID, else its pid, with the characters that are safe in a file's name.

    It holds no slash, does not begin with a dot or a dash, and is at most 64 characters long.
    """
    for text in (name, (uuid or "")[:8]):
        safe = _UNSAFE.sub("_", text or "")[:_MAX_VM].strip("._-")
        if safe:
            return safe
    return f"pid-{pid}"
