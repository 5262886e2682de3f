# SPDX-License-Identifier: MIT
"""Proves that attached programs run: makes requests of its own, and reads how often the kernel ran each program.

A kernel can attach a program and never run it. With X86_KERNEL_IBT and without CALL_PADDING (CPU_MITIGATIONS=n),
ftrace accepts fentry programs for functions whose entry it has disabled.
"""

import contextlib
import ctypes
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from vftrace.probes.bpf import syscall
from vftrace.probes.bpf.object import TRACING_PREFIXES, Object
from vftrace.probes.registry import (
    CHANNEL,
    FENTRY,
    IOCTL,
    KPROBE,
    KVM_FUNCTIONS,
    PROCESS,
    SENDERS,
    TRACEPOINT,
)
from vftrace.uapi import (
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_MP_STATE,
)

WAIT_S = 0.1
"""How long requests are repeated: the kernel skips a run now and then (docs/reference/probes.md), and a thread leaves
the kernel a moment after it has ended for Python."""

SETTLES_S = 0.0005

_DEV_KVM = Path("/dev/kvm")

_libc = ctypes.CDLL(None)


class CannotProveError(Exception):
    """Why it cannot be found out whether programs run. One line."""


class Proof(msgspec.Struct, frozen=True):
    """Requests that change nothing, and the programs that each of them runs."""

    make: Callable[[], None]
    programs: Collection[str]


def _ask_kvm() -> None:
    """Make two requests to /dev/kvm, two to a VM, which has no memory, and one to its vCPU.

    Programs run for each request, and only KVM_CREATE_VM makes a record. Raises CannotProveError.
    """
    with contextlib.ExitStack() as stack:

        def opened(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        try:
            kvm = opened(os.open(_DEV_KVM, os.O_RDWR | os.O_CLOEXEC))
            fcntl.ioctl(kvm, KVM_GET_API_VERSION)
            vm = opened(fcntl.ioctl(kvm, KVM_CREATE_VM))
            fcntl.ioctl(vm, KVM_CHECK_EXTENSION, 0)
            vcpu = opened(fcntl.ioctl(vm, KVM_CREATE_VCPU, 0))
        except OSError as error:
            raise CannotProveError(
                f"no VM of vftrace's own: {_DEV_KVM}: {error.strerror}"
            ) from error
        with contextlib.suppress(OSError):
            fcntl.ioctl(vcpu, KVM_GET_MP_STATE, struct.pack("=I", 0))


def _ask_no_file() -> None:
    """Make a request to no file: the system call's tracepoints see it."""
    _libc.ioctl(-1, KVM_GET_API_VERSION, 0)


def _send_nothing() -> None:
    """Make each call that sends, to no file."""
    for call in SENDERS:
        getattr(_libc, call)(-1, None, 0, 0, None, 0)


def _end_a_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


_FUNCTIONS = [f"{at}{function}" for function in KVM_FUNCTIONS for at in TRACING_PREFIXES]

PROOFS = {
    (IOCTL.name, FENTRY): Proof(_ask_kvm, _FUNCTIONS),
    (IOCTL.name, KPROBE): Proof(_ask_kvm, ("kp_ioctl", "kr_ioctl", "kp_vcpu_ioctl")),
    (IOCTL.name, TRACEPOINT): Proof(_ask_no_file, ("tp_ioctl_enter", "tp_ioctl_exit")),
    (CHANNEL.name, KPROBE): Proof(_send_nothing, [*(f"kp_{call}" for call in SENDERS), "kr_send"]),
    (CHANNEL.name, TRACEPOINT): Proof(
        _send_nothing,
        [*(f"tp_{call}_enter" for call in SENDERS), "tp_send_exit", "tp_write_exit"],
    ),
    (PROCESS.name, TRACEPOINT): Proof(_end_a_thread, ("tp_process_exit",)),
}
"""By probe and way. The other probes see only what a guest, a device or a VF does."""


def never_runs(bpf: Object, proof: Proof) -> str | None:
    """Return which of the attached programs did not run at requests made for them; None if all ran.

    Raises CannotProveError where that cannot be found out.
    """
    with _counting():
        missing = set(bpf.runs(proof.programs))
        until = time.monotonic() + WAIT_S
        # Nothing is attached yet where the kvm module is not loaded, which opening /dev/kvm would load.
        while missing:
            before = bpf.runs(missing)
            proof.make()
            time.sleep(SETTLES_S)
            missing = {name for name, runs in bpf.runs(before).items() if runs == before[name]}
            if missing and time.monotonic() > until:
                return f"attached, but the kernel does not run {', '.join(sorted(missing))}"
    return None


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    try:
        fd = syscall.count_runs()
    except OSError as error:
        raise CannotProveError(
            f"counting runs of programs needs CAP_SYS_ADMIN ({error.strerror})"
        ) from error
    try:
        yield
    finally:
        os.close(fd)
