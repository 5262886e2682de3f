"""The ids of traces and spans: the same migration gives the same ids, in a report and live, on either host."""

import hashlib

from vftrace.model.migration import Kind, Migration


def trace_id(m: Migration, boot_id: str) -> str:
    """The trace of one attempt, 32 hex digits; `boot_id` is that of the clock its times are on.

    SHA-256 over the VM's UUID and the attempt. The attempt is known by the guest's kvmclock: what the source
    reads last the destination sets, to the nanosecond (QEMU hw/i386/kvm/clock.c), so two hosts write into one
    trace without talking to each other. An attempt that never came so far is known by the source's boot and the
    time it began there, and so are a save and each load of it, which have one clock.
    """
    vm = (m.uuid or f"pid-{m.pid}").lower()
    if m.guest_clock_ns is not None and m.kind == Kind.MOVE:
        return _digest("trace", vm, "clock", str(m.guest_clock_ns))[:32]
    return _digest("trace", vm, boot_id, str(m.started_at_ns))[:32]


def span_id(trace: str, path: str) -> str:
    """A span within its trace, 16 hex digits; `path` names it uniquely there."""
    return _digest("span", trace, path)[:16]


def _digest(*parts: str) -> str:
    # Zero is not a valid id, and no one has yet found a SHA-256 that begins with 64 zero bits.
    text = "\0".join(("vftrace", *parts))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
