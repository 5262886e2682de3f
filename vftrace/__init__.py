# SPDX-License-Identifier: MIT
"""vftrace: where the time of a live migration goes, seen from the host with BPF."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from vftrace.archive.api import Recordings

__version__ = "0.2.0"
__all__ = ["open"]


def open(*paths: str | os.PathLike[str]) -> Recordings:  # noqa: A001
    """Open recordings: their report's objects and their events (docs/how-to/python.md).

    Recordings of several hosts are joined as `vftrace report` joins them; a directory stands for its recordings.
    Raises `vftrace.errors.VftraceError` where one cannot be read.
    """
    # `import vftrace` imports nothing else.
    from vftrace.archive.api import Recordings

    return Recordings(*paths)
