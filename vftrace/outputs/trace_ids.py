"""The ids of traces and spans: the same figures give the same ids, in a report and live."""

import hashlib

from vftrace.migration.model import Migration


def trace_id_of(migration: Migration, boot_id: str) -> str:
    """The trace of one attempt, 32 hex digits; `boot_id` is that of the clock its times are on.

    See `trace_id`.
    """
    vm = migration.uuid or f"pid-{migration.pid}"
    return trace_id(vm, boot_id, migration.started_at_ns)


def trace_id(vm: str, boot_id: str, started_at_ns: int) -> str:
    """SHA-256 over the VM's UUID and the attempt, which is known by the boot and the time it began there.

    That is the source's where the source is seen, so both hosts' halves share a trace once they are
    stitched. What only the destination saw has one of its own: nothing it sees tells the attempt apart.
    """
    return _digest("trace", vm.lower(), boot_id, str(started_at_ns))[:32]


def span_id(trace: str, path: str) -> str:
    """A span within its trace, 16 hex digits; `path` names it uniquely there."""
    return _digest("span", trace, path)[:16]


def _digest(*parts: str) -> str:
    # Zero is not a valid id, and no one has yet found a SHA-256 that begins with 64 zero bits.
    return hashlib.sha256("\0".join(("vftrace", *parts)).encode()).hexdigest()
