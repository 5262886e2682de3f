# SPDX-License-Identifier: MIT
"""Checks this machine for `doctor`, without the probes: one finding for each line."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec

from vftrace.errors import MachineError
from vftrace.host import namespaces
from vftrace.probes import kernel
from vftrace.probes.bcc import cache, process

_SMALLEST = "int nothing(void *ctx) { return 0; }"


class Finding(msgspec.Struct, frozen=True):
    """One line of `doctor`: `state` is ok, note (a limit, or absent hardware), warn or bad; `fix` is what to do, None
    if nothing is to be done."""

    name: str
    state: str
    text: str
    fix: str | None = None


def findings() -> tuple[Finding, ...]:
    """Return all findings that need no loaded program."""
    return (
        Finding("kernel", "ok", f"{platform.release()} {platform.machine()}"),
        _privileges(),
        _pid_namespace(),
        _time_namespace(),
        _tracefs(),
        _btf(),
        _bcc(),
        _kvm(),
        Finding("32-bit VMMs", "note", "not traced: their ioctls enter the kernel by compat_ioctl"),
    )


def programs(cached: tuple[bool, ...]) -> Finding:
    """Return the finding about the origin of the loaded programs; `cached`: for each object, whether it is from the
    cache."""
    place, reason = cache.directory(), cache.refuses()
    text = f"{sum(cached)} of {len(cached)} objects from the cache"
    if reason is None:
        return Finding("programs", "ok", f"{text}, {place}")
    where = f" in {place}" if place else ""
    return Finding("programs", "note", f"{text}; none is kept{where}: {reason}")


def proved(unproved: Mapping[str, str]) -> Finding:
    """Return whether the kernel was seen to run the programs; `unproved`: by probe, why it could not be."""
    if not unproved:
        return Finding(
            "runs", "ok", "the kernel runs the programs: each saw a request of vftrace's own"
        )
    reasons = "; ".join(dict.fromkeys(unproved.values()))
    return Finding("runs", "note", f"not proved for {', '.join(unproved)}: {reasons}")


def _privileges() -> Finding:
    try:
        kernel.require_bpf()
    except MachineError as error:
        return Finding("privileges", "bad", str(error), error.fix)
    return Finding("privileges", "ok", "root" if os.geteuid() == 0 else "capabilities")


def _pid_namespace() -> Finding:
    try:
        namespaces.require_host_pids()
    except MachineError as error:
        return Finding("pid namespace", "bad", str(error), error.fix)
    return Finding("pid namespace", "ok", "the host's")


def _time_namespace() -> Finding:
    try:
        namespaces.require_host_clock()
    except MachineError as error:
        return Finding("time namespace", "bad", str(error), error.fix)
    return Finding("time namespace", "ok", "the host's boot clock")


def _tracefs() -> Finding:
    try:
        return Finding("tracefs", "ok", str(kernel.tracefs()))
    except MachineError as error:
        return Finding("tracefs", "bad", str(error), error.fix)


def _btf() -> Finding:
    if Path("/sys/kernel/btf/vmlinux").exists():
        return Finding("BTF", "ok", "/sys/kernel/btf/vmlinux")
    return Finding(
        "BTF", "warn", "none: fentry is not possible; vftrace uses kprobes and tracepoints"
    )


def _bcc() -> Finding:
    try:
        version = process.version()
    except MachineError as error:
        return Finding("BCC", "bad", str(error), error.fix)
    try:
        process.compile_text(_SMALLEST, ())
    except process.CompileError as error:
        # Kept programs can still be loaded.
        return Finding(
            "BCC",
            "warn",
            f"{version} does not compile: {error}",
            f"reinstall: {process.INSTALL_BCC}",
        )
    return Finding("BCC", "ok", f"{version}, compiles")


def _kvm(device: Path = Path("/dev/kvm")) -> Finding:
    if not device.exists():
        return Finding(
            "KVM",
            "note",
            f"no {device}: no VM can run here now",
            "modprobe kvm-intel or kvm-amd",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        # Tracing does not need it: `demo`, which starts a VM, does.
        return Finding(
            "KVM",
            "note",
            f"{device}: this user may not open it, so `vftrace demo` cannot start a VM",
            "run as root, or join the group of the device (usually kvm)",
        )
    return Finding("KVM", "ok", str(device))
