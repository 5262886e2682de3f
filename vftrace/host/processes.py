# SPDX-License-Identifier: MIT
"""Identifies VMM processes from /proc, both those that start and those that run already.

QEMU takes its identity on the command line: `-uuid U` (or `-smbios type=1,uuid=U`), `-name N`,
`-name guest=N,...`; libvirt writes the latter (qemu-options.hx).
"""

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from vftrace.uapi import KVM_RUN

PROC = Path("/proc")

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_KVM_RUN_WORD = f"{KVM_RUN:#x}"
"""A system call's number in the format of /proc/PID/task/TID/syscall (fs/proc/base.c, proc_pid_syscall)."""

MAX_NAME = 256
"""The longest name in characters: libvirt's names are shorter, because a file's name has at most 255 bytes."""

MAX_PATH = 4096
MAX_COMMAND_LINE = 256 << 10
"""How many bytes of a command line are read: that of a VMM with hundreds of devices has tens of thousands, and the
kernel allows six million to users who want to keep the tracer busy."""
"""PATH_MAX of Linux."""

_NO_UUID = "00000000-0000-0000-0000-000000000000"


class Identity(msgspec.Struct, frozen=True):
    """The identity in a command line: `uuid` in lower case, `name`, the executable's name, `-incoming`, `-S`."""

    uuid: str | None
    name: str | None
    vmm: str
    incoming: bool
    started_paused: bool


def identity_of(argv: list[str]) -> Identity:
    """Read a VMM's command line. Never raises; a missing option is None or False."""
    uuid = _uuid_of(argv)
    name = _field(option(argv, "name"), "guest")
    return Identity(
        uuid=uuid,
        name=printable(name) if name else name,
        vmm=(printable(Path(argv[0]).name) if argv else None) or "unknown",
        incoming=option(argv, "incoming") is not None,
        started_paused=any(word in ("-S", "--S") for word in argv),
    )


def _uuid_of(argv: list[str]) -> str | None:
    candidates = [option(argv, "uuid")]
    candidates += [_field(v, "uuid", bare=False) for v in _options(argv, "smbios")]
    for candidate in candidates:
        if candidate is not None and _UUID.fullmatch(candidate) and candidate != _NO_UUID:
            return candidate.lower()
    return None


def printable(name: str, longest: int = MAX_NAME) -> str:
    """Replace characters that no terminal should print, and cut long names: anyone who may open /dev/kvm chooses names,
    which must neither move a terminal's cursor nor fill a recording."""
    shown = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return "".join(c if c.isprintable() else "�" for c in shown)


def _options(argv: list[str], option: str) -> list[str]:
    words = (f"-{option}", f"--{option}")
    return [value for word, value in pairwise(argv) if word in words]


def option(argv: list[str], name: str) -> str | None:
    """Return the last value of an option of QEMU; None if it is not given."""
    values = _options(argv, name)
    return values[-1] if values else None


def _field(value: str | None, key: str, *, bare: bool = True) -> str | None:
    """Return the field `key` of `a=b,key=value`; with `bare` also a first word without a key.

    QEMU reads a first word as a value if a comma or the end comes before any `=` (util/qemu-option.c,
    get_opt_name_value), and a comma inside a value is written as two. Neither -name nor -smbios takes JSON.
    """
    if value is None:
        return None
    for i, field in enumerate(value.replace(",,", "\0").split(",")):
        name, equals, content = field.partition("=")
        if i == 0 and (not equals or "\0" in name):
            if bare:
                return field.replace("\0", ",") or None
        elif equals and name == key:
            return content.replace("\0", ",") or None
    return None


def command_line(pid: int) -> list[str]:
    """Return a process's arguments; empty if it has ended or is a kernel thread."""
    try:
        with (PROC / str(pid) / "cmdline").open("rb") as file:
            data = file.read(MAX_COMMAND_LINE)
    except OSError:
        return []
    return [word.decode(errors="replace") for word in data.rstrip(b"\0").split(b"\0")]


def image_of(pid: int) -> tuple[str, ...] | None:
    """Return numbers that change with each exec: the process's start time and the addresses of its arguments, which the
    kernel chooses anew (fields 22, 48 and 49 of /proc/PID/stat). None if they cannot be read."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rfind(")") + 2 :].split()
    if len(fields) < 47 or fields[45] == "0":
        return None
    return fields[19], fields[45], fields[46]


def start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat: clock ticks since boot. None if there is no such process. A process whose
    first thread has ended still exists while other threads run, which may free its memory for a while."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command's name (field 2) may contain blanks and brackets: count fields from its last bracket.
    fields = stat[stat.rfind(")") + 2 :].split()
    if len(fields) < 20 or not (fields[19].isascii() and fields[19].isdigit()):
        return None
    dead = fields[0] in ("Z", "X") and not _other_threads(pid)
    return None if dead else int(fields[19])


def use_of(pid: int) -> tuple[int, int] | None:
    """Return CPU time in ns and resident memory in bytes of a process (/proc/PID/stat); None if they cannot be read."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    except (OSError, ValueError, IndexError):
        return None
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGESIZE")


def _other_threads(pid: int) -> bool:
    try:
        return any(entry.name != str(pid) for entry in (PROC / str(pid) / "task").iterdir())
    except OSError:
        return False


def vmm_pids() -> Iterator[int]:
    """Yield the processes that have a KVM VM fd (`anon_inode:kvm-vm`)."""
    # Strings, not paths: a host has tens of thousands of open files, and a start looks at each.
    for name in os.listdir(PROC):  # noqa: PTH208
        if name.isdigit() and _holds_vm(f"{PROC}/{name}/fd"):
            yield int(name)


def qemu_pids() -> Iterator[int]:
    """Yield the QEMU processes. QEMU without a KVM VM fd emulates (TCG), and no probe of vftrace sees it."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and _is_qemu(int(entry.name)):
            yield int(entry.name)


def _is_qemu(pid: int) -> bool:
    argv = command_line(pid)
    name = Path(argv[0]).name if argv else ""
    return name.startswith(("qemu-system-", "qemu-kvm"))


def _holds_vm(directory: str) -> bool:
    try:
        names = os.listdir(directory)  # noqa: PTH208
    except OSError:
        return False
    return any(_link(f"{directory}/{name}") == "anon_inode:kvm-vm" for name in names)


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


def threads_in_kvm_run(pid: int) -> Iterator[int]:
    """Yield the threads that are inside KVM_RUN: blocked there according to /proc/PID/task/TID/syscall, or running
    under a vCPU thread's name (QEMU: `CPU 0/KVM`)."""
    try:
        tasks = list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            words = (task / "syscall").read_text().split()
            name = (task / "comm").read_text().strip()
        except OSError:
            continue
        in_ioctl = len(words) > 2 and words[0] != "-1" and words[2] == _KVM_RUN_WORD
        in_guest = in_ioctl or (words[:1] == ["running"] and name.startswith("CPU "))
        if in_guest and not _is_user_worker(task):
            yield int(task.name)


_PF_USER_WORKER = 0x4000
"""include/linux/sched.h"""


def _is_user_worker(task: Path) -> bool:
    """Whether a thread belongs to the kernel, such as KVM's worker for huge pages. It shows the registers of the vCPU
    thread that made it, inside KVM_RUN (arch/x86/kvm/mmu/mmu.c, kvm_mmu_start_lpage_recovery)."""
    try:
        stat = (task / "stat").read_text()
    except OSError:
        return False
    fields = stat[stat.rfind(")") + 2 :].split()
    return len(fields) > 6 and fields[6].isdecimal() and bool(int(fields[6]) & _PF_USER_WORKER)
