# SPDX-License-Identifier: MIT
"""Makes the names of kept recordings: the time of the beginning, the VM, the outcome, and a unique part.

`20261129T225506.123Z-web-1-completed-1f0c9a3e.vft.gz`. While the migration runs, `running` stands for its outcome.
Sorted by name, the files are in order of time.
"""

import re
from datetime import UTC, datetime
from typing import Self

import msgspec
from msgspec.structs import replace

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


class FileName(msgspec.Struct, frozen=True):
    """The parts of a kept recording's name. `started` is in UTC, cut to milliseconds."""

    started: datetime
    vm: str
    outcome: str
    unique: str

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read a file's name; None for a file that no flight recorder wrote."""
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
        """Return the name of the same file once the migration has this outcome."""
        return replace(self, outcome=outcome)


def safe_vm(name: str | None, uuid: str | None, pid: int) -> str:
    """Return a VM's name, else the first part of its UUID, else its pid, in characters that are safe in a file's name.

    It has no slash, does not begin with a dot or a dash, and is at most 64 characters long.
    """
    for text in (name, (uuid or "")[:8]):
        safe = _UNSAFE.sub("_", text or "")[:_MAX_VM].strip("._-")
        if safe:
            return safe
    return f"pid-{pid}"
