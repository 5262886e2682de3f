# SPDX-License-Identifier: MIT
"""Computes the ids of traces and spans: a migration has the same ids in a report and live, and on both hosts."""

import hashlib

from vftrace.model.migration import Kind, Migration


def trace_id(m: Migration, boot_id: str) -> str:
    """Return the id of one attempt's trace, 32 hex digits; `boot_id` names the clock of its times.

    The id is a SHA-256 over the VM's UUID and the attempt. The guest's kvmclock identifies the attempt: the destination
    sets the value that the source reads last, to the nanosecond (QEMU hw/i386/kvm/clock.c), so two hosts write
    into one trace without communication. An attempt without that value is identified by the source's boot and the
    time at which it began there; so are a save and its loads, which share one clock value.
    """
    vm = (m.uuid or f"pid-{m.pid}").lower()
    if m.guest_clock_ns is not None and m.kind == Kind.MOVE:
        return _digest("trace", vm, "clock", str(m.guest_clock_ns))[:32]
    return _digest("trace", vm, boot_id, str(m.started_at_ns))[:32]


def span_id(trace: str, path: str) -> str:
    """Return a span's id within its trace, 16 hex digits; `path` is unique in the trace."""
    return _digest("span", trace, path)[:16]


def _digest(*parts: str) -> str:
    # Zero is not a valid id, and no one has yet found a SHA-256 that begins with 64 zero bits.
    text = "\0".join(("vftrace", *parts))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
