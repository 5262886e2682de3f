# SPDX-License-Identifier: MIT
"""Rules about the causes of the blackout (`model.calls`), each for a part that can be avoided."""

from collections.abc import Callable, Iterable

from vftrace.model.advice import Advice, Effect, Rule
from vftrace.model.calls import BlackoutCalls, Cause, CauseKind
from vftrace.model.checkpoint import Checkpoint
from vftrace.model.migration import Migration
from vftrace.model.report import MigrationReport
from vftrace.units import format_bytes, format_ns

LEAST_NS = 50_000_000
"""The shortest part of a blackout that gives an advice: blackouts of one guest differ by less."""

LEAST_PART = 0.25
"""The least share of the blackout that gives an advice."""

MANAGEMENT_NS = 100_000_000
"""The shortest wait for the management that gives an advice: libvirt takes some ten milliseconds between two of its
steps, more on a busy host."""

SETUP_CALLS = 64
SETUP_NS = 20_000_000
SETUP_PART = 0.2
"""From this number on, requests of one kind are one for each queue, vector or memory slot."""

REST_LEAST, REST_MOST, REST_NS = 0.25, 1.5, 20_000_000
"""The bounds for the rest of a blackout, which differs from run to run: a quarter to one and a half of its recorded
length, plus 20 ms on a busy host (docs/reference/advice.md)."""

_REST_ERROR = "the rest of the blackout may become a quarter to one and a half as long, plus 20 ms on a busy host"

Wanted = Callable[[Cause], bool]

FLUSHES = frozenset({"fdatasync", "fsync", "sync_file_range", "syncfs"})

SETUP_REQUESTS = {
    "KVM_IRQFD": "interrupts",
    "KVM_SET_GSI_ROUTING": "interrupts",
    "KVM_IOEVENTFD": "doorbells of queues",
    "KVM_SET_USER_MEMORY_REGION": "memory slots",
    "KVM_SET_USER_MEMORY_REGION2": "memory slots",
    "KVM_GET_DIRTY_LOG": "memory slots",
    "KVM_CLEAR_DIRTY_LOG": "memory slots",
}
"""Requests that a VMM makes once for each of these, while the guest is stopped (QEMU hw/virtio/virtio-pci.c,
accel/kvm/kvm-all.c)."""


def pre_switchover(found: MigrationReport) -> Advice | None:
    """The source waited for management before its last sync (QEMU migration/migration.c, migration_maybe_pause)."""
    m = found.migration
    wait = _of_step(
        m,
        Checkpoint.FINAL_SYNC_DONE,
        lambda c: c.kind is CauseKind.WAIT and c.side == "source" and c.call == "futex",
    )
    ns = _total(wait)
    if not _large(m, ns, MANAGEMENT_NS):
        return None
    return Advice(
        Rule.PRE_SWITCHOVER,
        "the source held the stopped guest before the switchover",
        (
            f"the migration thread waited {format_ns(ns)} in futex before its last sync, and no thread worked",
        ),
        "migrate without pause-before-switchover, or let the management send migrate-continue sooner",
        (_shorter(m, ns),),
        {"pause-before-switchover": False},
    )


def held(found: MigrationReport) -> Advice | None:
    """The destination was loaded and waited for `cont` (QEMU -S; libvirt always passes it)."""
    m = found.migration
    step = next((c for c in m.downtime.checkpoints if c.name is Checkpoint.HELD), None)
    ns = 0 if step is None else step.ns or 0
    waited = _of_step(
        m, Checkpoint.HELD, lambda c: c.kind is CauseKind.WAIT and c.side == "destination"
    )
    if m.calls is not None:
        ns = _total(waited)
    if not _large(m, ns, MANAGEMENT_NS):
        return None
    return Advice(
        Rule.HELD,
        "the destination had loaded the guest and waited for cont",
        (f"the destination waited {format_ns(ns)} for cont after it had loaded the guest's state",),
        "start the destination without -S, or let the management send cont sooner: the guest waits while the"
        " management runs hooks and switches disks and networks",
        (_shorter(m, ns),),
    )


def slow_flush(found: MigrationReport) -> Advice | None:
    """A disk image was flushed while the guest was stopped (QEMU softmmu/cpus.c, do_vm_stop: bdrv_flush_all)."""
    m = found.migration
    flushes = _of_blackout(m, lambda c: c.kind is CauseKind.CALL and c.call in FLUSHES)
    ns = _total(flushes)
    if not _large(m, ns, LEAST_NS):
        return None
    longest = max(flushes, key=lambda c: c.ns)
    path = longest.target or "a disk image"
    return Advice(
        Rule.SLOW_FLUSH,
        f"{path} had much to write when the guest was stopped",
        tuple(
            f"{c.call}({c.target or '?'}) took {format_ns(c.ns)} of the blackout" for c in flushes
        ),
        "open the image with cache=none, so that the host's page cache holds nothing that the stop has to write;"
        " if the device's own flush is slow, use faster storage",
        (_shorter(m, ns),),
        {"cache.direct": True},
    )


def cpu_wait(found: MigrationReport) -> Advice | None:
    """Threads that had to do the blackout's work waited for a CPU."""
    m = found.migration
    waits = _of_blackout(m, lambda c: c.kind is CauseKind.RUN_QUEUE)
    ns = _total(waits)
    if not _large(m, ns, LEAST_NS):
        return None
    side = max(waits, key=lambda c: c.ns).side
    return Advice(
        Rule.CPU_WAIT,
        f"the {side}'s VMM waited for a CPU during the blackout",
        tuple(
            f"the {c.side}'s {c.thread or 'threads'} waited {format_ns(c.ns)} for a CPU"
            for c in waits
            if c.ns * 20 >= ns
        ),
        f"reserve a CPU for the VMM's own threads on the {side} (libvirt: emulatorpin, and no other load on that CPU),"
        " or migrate when that host is less busy",
        (_shorter(m, ns),),
    )


def multifd(found: MigrationReport) -> Advice | None:
    """One thread sent all pages and was busy all the time, because the channel never made it wait."""
    m, calls = found.migration, found.migration.calls
    if calls is None or _other_senders(calls):
        return None
    busy = _of_step(
        m,
        Checkpoint.STATE_SAVED,
        lambda c: (
            c.side == "source"
            and c.thread == "migration thread"
            and c.kind in (CauseKind.ON_CPU, CauseKind.CALL)
        ),
    )
    ns = _total(busy)
    sent = m.rounds[-1].sent_bytes if m.rounds else None
    if not sent or not _large(m, ns, LEAST_NS * 2, part=0.5):
        return None
    down = m.downtime.vcpu_ns or 0
    return Advice(
        Rule.MULTIFD,
        "one thread sent all pages, and the speed of its CPU limited it",
        (f"the migration thread was busy for {format_ns(ns)} with the last {format_bytes(sent)}",),
        "migrate with multifd and at least two channels",
        (
            Effect(
                "downtime",
                down,
                None,
                max(0, down - ns),
                down,
                "no model: at best enough idle CPUs share the thread's work, at worst no CPU is idle",
            ),
        ),
        {"multifd": True, "multifd-channels": 2},
    )


def kvm_setup(found: MigrationReport) -> Advice | None:
    """Requests that are made once for each queue, interrupt or memory slot took a large part of the blackout."""
    m = found.migration
    requests = _of_blackout(
        m,
        lambda c: c.kind is CauseKind.CALL and c.call in SETUP_REQUESTS and c.count >= SETUP_CALLS,
    )
    ns = _total(requests)
    if not _large(m, ns, SETUP_NS, part=SETUP_PART):
        return None
    kinds = sorted({SETUP_REQUESTS[c.call or ""] for c in requests})
    down = m.downtime.vcpu_ns or 0
    return Advice(
        Rule.KVM_SETUP,
        f"the guest has many {' and '.join(kinds)}",
        tuple(f"{c.count} {c.call} took {format_ns(c.ns)} of the blackout" for c in requests),
        "give its devices fewer queues and vectors (num-queues, vectors), its memory fewer slots (DIMMs)",
        (
            Effect(
                "downtime",
                down,
                None,
                max(0, down - ns),
                down,
                "the time grows with the number of requests; without them, this part is gone",
            ),
        ),
    )


def _other_senders(calls: BlackoutCalls) -> bool:
    """Whether threads other than the migration thread sent pages, as with multifd."""
    return any(
        span.target == "migration channel"
        and span.side == "source"
        and ("source", span.tid) not in calls.critical
        for span in calls.spans
    )


def _of_step(m: Migration, checkpoint: Checkpoint, wanted: Wanted) -> list[Cause]:
    """Return the wanted causes of one step."""
    steps = () if m.calls is None else m.calls.steps
    return [c for step in steps if step.checkpoint is checkpoint for c in step.causes if wanted(c)]


def _of_blackout(m: Migration, wanted: Wanted) -> list[Cause]:
    """Return the wanted causes of the whole blackout, longest first."""
    return [] if m.calls is None else [c for c in m.calls.causes if wanted(c)]


def _total(causes: Iterable[Cause]) -> int:
    return sum(cause.ns for cause in causes)


def _large(m: Migration, ns: int, least_ns: int, part: float = LEAST_PART) -> bool:
    """Whether a part of the blackout is large enough for an advice."""
    down = m.downtime.vcpu_ns
    return down is not None and ns >= least_ns and ns >= part * down


def _shorter(m: Migration, ns: int) -> Effect:
    """Return the effect of removing `ns` from the downtime."""
    down = m.downtime.vcpu_ns or 0
    rest = max(0, down - ns)
    least, most = round(rest * REST_LEAST), round(rest * REST_MOST) + REST_NS
    return Effect("downtime", down, rest, least, most, _REST_ERROR)
