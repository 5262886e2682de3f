# SPDX-License-Identifier: MIT
"""Counts the entries of every kernel table before and after many migrations and lives of VMs; nothing may be left.

    sudo .venv/bin/python -m tests.leftovers [--migrations 200] [--lives 1000]

Prints a Markdown table and ends with 1 if an entry is left. tests/host/test_tables.py does the same with fewer.
"""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

from tests.host.test_tables import Machine
from tests.kernel_tables import WHILE_TRACED, entries, vms_of
from vftrace.probes.tables import CLEAN_EVERY_S

CHANNELS = 5
AT_ONCE = 20
"""Orders that one answer is waited for."""
SETTLE_S = 45.0
"""The calls of a VM are traced until it has been quiet for 30 s."""


def counted(machine: Machine) -> Counter[str]:
    """What the tables have at once: of every object that is loaded, without other VMs of this host."""
    others = {pid for pid in vms_of(os.getpid()) if Path(f"/proc/{pid}").exists()}
    return entries(os.getpid(), others - {machine.vmm.pid})


def settled(machine: Machine) -> Counter[str]:
    """What the tables have when all that ended should have gone."""
    stop_at = time.monotonic() + SETTLE_S
    while time.monotonic() < stop_at:
        machine.steps(5)
        found = counted(machine)
        if not any(found[name] for name in WHILE_TRACED) and found["deleted_channels"]:
            break
    cleaned = time.monotonic() + 3 * CLEAN_EVERY_S
    while time.monotonic() < cleaned:
        machine.steps(5)
    return counted(machine)


def repeat(machine: Machine, what: str, count: int) -> None:
    """Give an order so many times."""
    for begun in range(0, count, AT_ONCE):
        machine.order(what, min(AT_ONCE, count - begun), CHANNELS if what == "migrate" else 0)


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--migrations", type=int, default=200)
    parser.add_argument("--lives", type=int, default=1000)
    args = parser.parse_args()
    machine = Machine()
    try:
        machine.order("write")
        machine.order("migrate")
        before = settled(machine)
        begun = time.monotonic()
        repeat(machine, "migrate", args.migrations)
        between = counted(machine)
        repeat(machine, "life", args.lives)
        machine.order("migrate")
        after = settled(machine)
        took = time.monotonic() - begun
        full = {name: n for name, n in machine.source.probes.full().items() if n}
        lost = machine.pump.snapshot().lost
    finally:
        machine.close()
    print(f"| table | before | after {args.migrations} migrations | after {args.lives} lives too |")
    print("|---|---|---|---|")
    for name in sorted(before | between | after):
        print(f"| `{name}` | {before[name]} | {between[name]} | {after[name]} |")
    print(f"\n{took:.0f} s, records lost: {lost}, tables full: {full or 'none'}")
    return 0 if after == before else 1


if __name__ == "__main__":
    sys.exit(main())
