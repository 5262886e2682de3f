# SPDX-License-Identifier: MIT
"""Reduces the privileges of this process: capabilities, no_new_privs, its user, and the socket families it may open.

Privileges belong to a thread (credentials(7), capabilities(7)); the threads and programs that it starts inherit them.
So a process drops its privileges before it starts threads, or each thread drops its own.
"""

import contextlib
import ctypes
import os
import platform
import pwd
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vftrace.errors import UsageError, VftraceError

# include/uapi/linux/capability.h
CAP_DAC_READ_SEARCH = 2
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = struct.Struct("=6I")

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2

# include/uapi/linux/seccomp.h, bpf_common.h, audit.h
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_EAFNOSUPPORT = 97
_LOAD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_GREATER_EQUAL = 0x35
_RETURN = 0x06
_NR_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32_BIT = 0x40000000


class _Numbers(NamedTuple):
    """A machine's AUDIT_ARCH (linux/audit.h), and numbers of system calls (asm/unistd_64.h, asm-generic/unistd.h).
    io_uring_setup(2) could open sockets too."""

    architecture: int
    socket: int
    io_uring_setup: int
    setgroups: int
    setresgid: int
    setresuid: int


_SYSTEM_CALLS = {
    "x86_64": _Numbers(0xC000003E, 41, 425, 116, 119, 117),
    "aarch64": _Numbers(0xC00000B7, 198, 425, 159, 149, 147),
}

FAMILIES = (socket.AF_UNIX, socket.AF_NETLINK)
"""Socket families that remain after `deny_internet`."""

_libc = ctypes.CDLL(None, use_errno=True)


def keep_only(capabilities: Iterable[int], user: str | None = None) -> None:
    """Let this thread, and whatever it starts, keep at most these capabilities and gain none again.

    Change to `user` as well, if it is named and this is root. Raises UsageError where there is no such user.
    """
    ids = _ids_of(user)
    kept = _mask(capabilities) & permitted()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if ids is not None:
        _prctl(_PR_SET_KEEPCAPS, 1)
        _become(*ids)
    _capset(kept, kept, kept)
    for capability in range(64):
        if kept >> capability & 1:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
    if ids is not None and not kept:
        # Changed ids make a process undumpable, and /proc/self/fd root's (kernel/cred.c, commit_creds). There is
        # nothing left to protect from its own user.
        _prctl(_PR_SET_DUMPABLE, 1)


def require_user(user: str | None) -> None:
    """Raise UsageError if this process cannot become that user."""
    _ids_of(user)


def give(path: str | os.PathLike[str], user: str | None) -> None:
    """Give a file or directory to a user, if one is named. Raises UsageError if the user does not exist, OSError if the
    kernel does not allow it."""
    ids = _ids_of(user)
    if ids is not None:
        os.chown(path, ids[0], ids[1])


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Use no capabilities in this context, so that only what is possible after `keep_only` succeeds."""
    effective, allowed, inheritable = _capget()
    _capset(0, allowed, inheritable)
    try:
        yield
    finally:
        _capset(effective, allowed, inheritable)


def deny_internet() -> bool:
    """Let this thread open only sockets of `FAMILIES`, by seccomp; False if this machine's numbers are not known.

    Needs no_new_privs (`keep_only`).
    """
    known = _SYSTEM_CALLS.get(platform.machine())
    if known is None:
        return False
    code = b"".join(_filter(known.architecture, known.socket, known.io_uring_setup))
    instructions = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    )
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
    return True


def end_with_parent(number: int) -> None:
    """Make the kernel send this signal when the thread that started this process ends; a change of user undoes this."""
    _prctl(_PR_SET_PDEATHSIG, number)


def permitted() -> int:
    """Return the capabilities that this thread may use, one bit for each."""
    return _capget()[1]


def _filter(architecture: int, socket_number: int, io_uring_setup: int) -> list[bytes]:
    """Return the filter's instructions: (code, jump if true, jump if false, value); jumps count from the next one."""
    checks: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 0, "deny", architecture),
        (_LOAD, 0, 0, _NR_AT),
        (_JUMP_GREATER_EQUAL, "deny", 0, _X32_BIT),
        (_JUMP_EQUAL, "deny", 0, io_uring_setup),
        (_JUMP_EQUAL, 0, "allow", socket_number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        *((_JUMP_EQUAL, "allow", 0, int(family)) for family in FAMILIES),
        (_RETURN, 0, 0, _RET_ERRNO | _EAFNOSUPPORT),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    targets = {"deny": len(checks) - 2, "allow": len(checks) - 1}

    def distance(at: int, jump: int | str) -> int:
        return targets[jump] - at - 1 if isinstance(jump, str) else jump

    return [
        struct.pack("=HBBI", code, distance(at, yes), distance(at, no), value)
        for at, (code, yes, no, value) in enumerate(checks)
    ]


def _ids_of(user: str | None) -> tuple[int, int, str] | None:
    """Return uid, gid and name of the user to change to; None if this process is that user already."""
    if user is None:
        return None
    try:
        found = pwd.getpwnam(user)
    except KeyError as error:
        raise UsageError(f"there is no user {user!r} on this machine") from error
    if found.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise UsageError(f"only root can change to the user {user!r}")
    return found.pw_uid, found.pw_gid, user


def _become(uid: int, gid: int, user: str) -> None:
    """Change this thread's user and groups by system calls: libc's functions change every thread, and abort the
    process if one of them has dropped the right to (nptl/nptl_setxid.c)."""
    numbers = _SYSTEM_CALLS.get(platform.machine())
    if numbers is None:
        raise VftraceError(f"cannot change the user on {platform.machine()}")
    groups = os.getgrouplist(user, gid)
    packed = (ctypes.c_uint32 * len(groups))(*groups)
    calls: tuple[tuple[int, tuple[Any, ...]], ...] = (
        (numbers.setgroups, (len(groups), packed)),
        (numbers.setresgid, (gid, gid, gid)),
        (numbers.setresuid, (uid, uid, uid)),
    )
    for number, words in calls:
        if _libc.syscall(number, *words) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise VftraceError(f"cannot change to the user {user!r}: {reason}")


def _mask(capabilities: Iterable[int]) -> int:
    return sum(1 << capability for capability in set(capabilities))


def _capset(effective: int, allowed: int, inheritable: int) -> None:
    masks = (effective, allowed, inheritable)
    low, high = ([mask >> shift & 0xFFFFFFFF for mask in masks] for shift in (0, 32))
    data = ctypes.create_string_buffer(_CAPABILITIES.pack(*low, *high))
    if _libc.capset(_capability_header(), data) != 0:
        raise VftraceError(f"cannot drop capabilities: {os.strerror(ctypes.get_errno())}")


def _capget() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities."""
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    if _libc.capget(_capability_header(), data) != 0:
        raise VftraceError(f"cannot read capabilities: {os.strerror(ctypes.get_errno())}")
    words = _CAPABILITIES.unpack(data.raw[: _CAPABILITIES.size])
    effective, allowed, inheritable = (words[at] | words[at + 3] << 32 for at in range(3))
    return effective, allowed, inheritable


def _capability_header() -> Any:
    return ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))


def _prctl(option: int, first: int, second: int = 0) -> None:
    words = (ctypes.c_ulong(word) for word in (first, second, 0, 0))
    if _libc.prctl(option, *words) != 0:
        raise VftraceError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
