# SPDX-License-Identifier: MIT
"""Reads a thread's state and times from /proc."""

import os
from pathlib import Path

import msgspec

from vftrace.uapi import KVM_RUN

PROC = Path("/proc")
_KVM_RUN_WORD = f"{KVM_RUN:#x}"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class ThreadUse(msgspec.Struct, frozen=True):
    """Totals of a thread, ns: `guest_ns` in the guest, `user_ns` in user space without the guest, `queue_ns` waiting
    for a CPU. The kernel counts the first three by its timer interrupt (`kernel/sched/cputime.c`)."""

    guest_ns: int
    user_ns: int
    system_ns: int
    queue_ns: int


def use_of(pid: int, tid: int) -> ThreadUse | None:
    """Read the totals of a thread; None if it has ended."""
    task = PROC / str(pid) / "task" / str(tid)
    try:
        stat = (task / "stat").read_text()
        queue = int((task / "schedstat").read_text().split()[1])
        fields = stat[stat.rindex(")") + 2 :].split()
        user, system, guest = (int(fields[at]) * _TICK_NS for at in (11, 12, 40))
    except (OSError, ValueError, IndexError):
        return None
    return ThreadUse(guest, max(0, user - guest), system, queue)


def in_kvm_run(pid: int, tid: int) -> tuple[bool, bool]:
    """Whether a thread is inside KVM_RUN, as far as /proc shows it, and whether it sleeps. A running thread counts as
    inside."""
    try:
        words = (PROC / str(pid) / "task" / str(tid) / "syscall").read_text().split()
    except OSError:
        return False, False
    if words[:1] == ["running"]:
        return True, False
    return len(words) > 2 and words[2] == _KVM_RUN_WORD, True
