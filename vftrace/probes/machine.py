# SPDX-License-Identifier: MIT
"""The numbers of this machine that BPF programs need to read a thread and its system call."""

import platform

from vftrace.probes import btf

# asm/unistd_64.h, asm-generic/unistd.h; struct pt_regs (arch/*/include/asm/ptrace.h): di, si, r10, orig_ax; regs[0],
# regs[1], regs[3], syscallno.
NUMBERS = {
    "x86_64": {
        "SYS_IOCTL": 16,
        "SYS_FUTEX": 202,
        "SYS_NANOSLEEP": 35,
        "SYS_CLOCK_NANOSLEEP": 230,
        "FIRST_ARGUMENT_OFFSET": 112,
        "SECOND_ARGUMENT_OFFSET": 104,
        "FOURTH_ARGUMENT_OFFSET": 56,
        "NUMBER_OFFSET": 120,
    },
    "aarch64": {
        "SYS_IOCTL": 29,
        "SYS_FUTEX": 98,
        "SYS_NANOSLEEP": 101,
        "SYS_CLOCK_NANOSLEEP": 115,
        "FIRST_ARGUMENT_OFFSET": 0,
        "SECOND_ARGUMENT_OFFSET": 8,
        "FOURTH_ARGUMENT_OFFSET": 24,
        "NUMBER_OFFSET": 280,
    },
}
"""By machine."""


def thread_flags() -> list[str]:
    """Return the compiler's flags for bpf/thread.h and what includes it.

    Raises LookupError if this machine's system calls or its kernel's structures are not known.
    """
    machine = platform.machine()
    if machine not in NUMBERS:
        raise LookupError(f"the system calls of {machine} are not known")
    pid = btf.member_offset("task_struct", "pid")
    if pid is None:
        raise LookupError("the kernel's BTF lacks task_struct.pid")
    return [
        f"-DTASK_PID_OFFSET={pid}",
        *(f"-D{name}={number}" for name, number in NUMBERS[machine].items()),
    ]
