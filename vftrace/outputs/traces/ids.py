"""The ids of traces and spans: the same figures give the same ids, in a report and live."""

import hashlib

from vftrace.model.migration import Migration


def trace_id_of(migration: Migration, boot_id: str) -> str:
    """The trace of one attempt, 32 hex digits; `boot_id` is that of the clock its times are on.

    See `trace_id`.
    """
    vm = migration.uuid or f"pid-{migration.pid}"
    return trace_id(vm, boot_id, migration.started_at_ns, migration.guest_clock_ns)


def trace_id(vm: str, boot_id: str, started_at_ns: int, guest_clock_ns: int | None) -> str:
    """SHA-256 over the VM's UUID and the attempt.

    The attempt is known by the guest's kvmclock: what the source reads last the destination sets, to the
    nanosecond (QEMU hw/i386/kvm/clock.c), so two hosts write into one trace without talking to each other.
    An attempt that never came so far is known by the source's boot and the time it began there.
    """
    if guest_clock_ns is not None:
        return _digest("trace", vm.lower(), "clock", str(guest_clock_ns))[:32]
    return _digest("trace", vm.lower(), boot_id, str(started_at_ns))[:32]


def span_id(trace: str, path: str) -> str:
    """A span within its trace, 16 hex digits; `path` names it uniquely there."""
    return _digest("span", trace, path)[:16]


def _digest(*parts: str) -> str:
    # Zero is not a valid id, and no one has yet found a SHA-256 that begins with 64 zero bits.
    return hashlib.sha256("\0".join(("vftrace", *parts)).encode()).hexdigest()
