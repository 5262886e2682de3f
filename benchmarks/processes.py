# SPDX-License-Identifier: MIT
"""Reads /proc for the benchmarks."""

from pathlib import Path


def tree_of(pid: int) -> list[int]:
    """A process and all that descend from it: vftrace's reader is a process of its own."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree_of(int(child))
    return found
