# SPDX-License-Identifier: MIT
"""Lists the probes, and for each the ways to attach it, in the order in which they are tried.

`doctor` lists the probes and `vftrace_probe_attached` names them. A hook is a place
(tracepoint or kernel function) and the function of bpf/kvm.bpf.c that runs there.
"""

from collections.abc import Sequence

import msgspec

from vftrace.mailbox.drivers import DRIVERS
from vftrace.model.host import ProbeStatus

FENTRY, KPROBE, TRACEPOINT = "fentry", "kprobe", "tracepoint"
WAYS = (FENTRY, KPROBE, TRACEPOINT)


NO_KVM = "the kvm module is not loaded"
NO_VFIO = "the vfio module is not loaded"
NO_MIGRATABLE = "no device that can migrate has been seen"
NO_CARD = f"no module {' or '.join(driver.name for driver in DRIVERS.values())} is loaded"
NO_MIGRATION = "no VM migrates"
WAITS = frozenset({NO_KVM, NO_VFIO, NO_MIGRATABLE, NO_CARD, NO_MIGRATION})
"""The reasons of probes that wait: vftrace attaches them later, and nothing is wrong."""


class Hook(msgspec.Struct, frozen=True):
    """One place (a tracepoint has a colon, a kernel function none) and the BPF function that runs there. `sleeps`: many
    calls of the function may be under way at a time. `raw`: the tracepoint's own arguments are read, not its record."""

    where: str
    function: str
    at_return: bool = False
    sleeps: bool = False
    raw: bool = False


class Way(msgspec.Struct, frozen=True):
    """One way to attach a probe; `optional` hooks may be missing from a kernel.

    fentry hooks stand in the BPF text itself (BCC attaches them when it compiles), so that way has none.
    """

    name: str
    hooks: tuple[Hook, ...]
    optional: tuple[Hook, ...] = ()


class Probe(msgspec.Struct, frozen=True):
    """A probe: its name, purpose and ways. `needed`: without it vftrace has nothing to report."""

    name: str
    what: str
    ways: tuple[Way, ...]
    needed: bool = False


def status_of(probe: Probe, method: str | None, reason: str | None) -> ProbeStatus:
    """Return how a probe is attached."""
    return ProbeStatus(probe.name, method, reason, waits=method is None and reason in WAITS)


def _syscalls(call: str, enter: str, leave: str) -> tuple[Hook, ...]:
    return (
        Hook(f"syscalls:sys_enter_{call}", enter),
        Hook(f"syscalls:sys_exit_{call}", leave),
    )


def _kprobes(
    function: str, enter: str, leave: str | None, *, sleeps: bool = False
) -> tuple[Hook, ...]:
    entry = (Hook(function, enter),)
    return (
        entry if leave is None else (*entry, Hook(function, leave, at_return=True, sleeps=sleeps))
    )


# The calls a migration channel is written with: sockets by sendmsg, fd: and file: targets by the rest
# (QEMU io/channel-socket.c, io/channel-file.c). Second: the kernel's function for it, where it has a
# name of its own (net/socket.c, fs/read_write.c).
SENDERS = {
    "sendmsg": "__sys_sendmsg",
    "sendto": "__sys_sendto",
    "write": "ksys_write",
    "writev": "do_writev",
    "pwrite64": "ksys_pwrite64",
    "pwritev": "do_pwritev",
}

KVM_FUNCTIONS = ("kvm_dev_ioctl", "kvm_vm_ioctl", "kvm_vcpu_ioctl")
"""The ioctl functions of KVM's files (virt/kvm/kvm_main.c)."""

PROBES = (
    Probe(
        "ioctl",
        "KVM and userfaultfd requests of every VMM",
        (
            Way(FENTRY, ()),
            Way(
                KPROBE,
                (
                    *_kprobes("kvm_dev_ioctl", "kp_ioctl", "kr_ioctl"),
                    *_kprobes("kvm_vm_ioctl", "kp_ioctl", "kr_ioctl"),
                    *_kprobes("kvm_vcpu_ioctl", "kp_vcpu_ioctl", None),
                    Hook("kvm:kvm_userspace_exit", "tp_userspace_exit"),
                ),
                optional=_kprobes("userfaultfd_ioctl", "kp_ioctl", "kr_ioctl"),
            ),
            Way(TRACEPOINT, _syscalls("ioctl", "tp_ioctl_enter", "tp_ioctl_exit")),
        ),
        needed=True,
    ),
    Probe(
        "channel",
        "bytes and errors of the migration channel",
        (
            Way(
                KPROBE,
                _kprobes(SENDERS["sendmsg"], "kp_sendmsg", "kr_send", sleeps=True),
                optional=tuple(
                    hook
                    for call, function in SENDERS.items()
                    if call != "sendmsg"
                    for hook in _kprobes(function, f"kp_{call}", "kr_send", sleeps=True)
                ),
            ),
            Way(
                TRACEPOINT,
                tuple(
                    hook
                    for call in SENDERS
                    for hook in _syscalls(
                        call,
                        f"tp_{call}_enter",
                        "tp_write_exit" if call == "write" else "tp_send_exit",
                    )
                ),
            ),
        ),
        needed=True,
    ),
    Probe(
        "process",
        "the end of a VMM",
        (Way(TRACEPOINT, (Hook("sched:sched_process_exit", "tp_process_exit"),)),),
        needed=True,
    ),
    Probe(
        "dirty-ring",
        "pages pushed to KVM's dirty rings",
        (
            Way(
                TRACEPOINT,
                (
                    Hook("kvm:kvm_dirty_ring_push", "tp_dirty_ring_push"),
                    Hook("kvm:kvm_dirty_ring_exit", "tp_dirty_ring_exit"),
                ),
            ),
        ),
    ),
)

IOCTL, CHANNEL, PROCESS, DIRTY_RING = PROBES

# Probes of the second object (bpf/vfio.bpf.c), attached while the vfio module is loaded.
VFIO = Probe(
    "vfio",
    "requests to VFIO devices, groups, containers and iommufd, and device resets",
    (
        Way(
            KPROBE,
            _kprobes("vfio_device_fops_unl_ioctl", "kp_device_request", "kr_request"),
            optional=(
                *_kprobes("vfio_group_fops_unl_ioctl", "kp_request", "kr_request"),
                *_kprobes("vfio_fops_unl_ioctl", "kp_request", "kr_request"),
                *_kprobes("iommufd_fops_ioctl", "kp_request", "kr_request"),
                Hook("vfio_device_fops_release", "kp_release"),
                Hook("pcie_flr", "kp_flr"),
            ),
        ),
        Way(
            TRACEPOINT,
            (
                *_syscalls("ioctl", "tp_request", "tp_request_exit"),
                Hook("syscalls:sys_enter_close", "tp_close"),
            ),
        ),
    ),
)

VFIO_DATA = Probe(
    "vfio-data",
    "bytes of device state that a VMM reads and writes",
    (
        Way(FENTRY, ()),
        Way(
            TRACEPOINT,
            (
                *_syscalls("read", "tp_data", "tp_data_exit"),
                *_syscalls("write", "tp_data", "tp_data_exit"),
            ),
        ),
    ),
)
"""By tracepoint it is attached only once a device that can migrate is seen, because it costs every system call."""


def precopy_info(functions: list[str]) -> Way:
    """VFIO_MIG_GET_PRECOPY_INFO goes to the data fd, whose ioctl function is the variant driver's own."""
    return Way(
        KPROBE, (), tuple(h for f in functions for h in _kprobes(f, "kp_request", "kr_request"))
    )


MAILBOX = Probe(
    "mailbox",
    "messages between a network card and its virtual functions",
    (Way(KPROBE, ()),),
)
"""Each driver's file in vftrace/mailbox/ has its hooks."""


_SCHED = (
    Hook("sched:sched_switch", "typed__sched_switch", raw=True),
    Hook("sched:sched_wakeup", "typed__sched_wakeup", raw=True),
)
"""bpf/thread.h"""

CALLS = Probe(
    "calls",
    "system calls of a migrating VMM while its guest is stopped",
    (
        Way(
            TRACEPOINT,
            (
                Hook("raw_syscalls:sys_enter", "typed__sys_enter", raw=True),
                Hook("raw_syscalls:sys_exit", "typed__sys_exit", raw=True),
                *_SCHED,
            ),
        ),
    ),
)
"""Attached only while a VM migrates: it costs every system call and every switch of the host."""

VCPUS = Probe(
    "vcpus",
    "where the time of a migrating VM's vCPUs goes",
    (
        Way(
            TRACEPOINT,
            (
                Hook("kvm:kvm_entry", "raw_guest_enter", raw=True),
                Hook("kvm:kvm_exit", "raw_guest_exit", raw=True),
                Hook("kvm:kvm_userspace_exit", "raw_userspace_exit", raw=True),
                *_SCHED,
            ),
            optional=(
                Hook("kvm:kvm_fpu", "raw_fpu", raw=True),
                Hook("exceptions:page_fault_kernel", "raw_kernel_fault", raw=True),
                Hook("kvm:kvm_page_fault", "raw_page_fault", raw=True),
                Hook("kvm:kvm_guest_fault", "raw_guest_fault", raw=True),
                Hook("kvm:kvm_pml_full", "raw_pml_full", raw=True),
                Hook("kvm:kvm_vcpu_wakeup", "raw_halted", raw=True),
                Hook("kvm:kvm_dirty_ring_exit", "raw_ring_exit", raw=True),
            ),
        ),
    ),
)
"""Attached only while a VM migrates: it costs every exit from a guest and every switch of the host."""


BY_NAME = {probe.name: probe for probe in (*PROBES, VFIO, VFIO_DATA, MAILBOX, CALLS, VCPUS)}


def probe_of(program: str, probes: Sequence[Probe]) -> Probe:
    """Return which of the probes of one BPF object a program belongs to."""
    for probe in probes:
        for way in probe.ways:
            if any(program == hook.function for hook in (*way.hooks, *way.optional)):
                return probe
    tied = program.startswith(("fentry__", "fexit__"))
    by_fentry = (p for p in probes if tied and any(way.name == FENTRY for way in p.ways))
    return next(by_fentry, probes[0])
