# SPDX-License-Identifier: MIT
"""Turns the model's names into words: what a checkpoint means, how and why a migration ended."""

from collections import Counter
from collections.abc import Sequence

from vftrace.model import figures
from vftrace.model.brownout import HELD_BY
from vftrace.model.migration import (
    Cause,
    Checkpoint,
    CheckpointTime,
    Kind,
    Loss,
    Migration,
    Outcome,
    Role,
    Snapshot,
    Vm,
    VmLoss,
)
from vftrace.model.report import MigrationReport
from vftrace.outputs.text.glyphs import Glyphs, clean
from vftrace.units import format_bytes, format_ns

# The step from the checkpoint before to this one, by QEMU's code (10.0):
# vm_stop -> migration/savevm.c qemu_savevm_state_complete_precopy -> loadvm -> vm_start.
HAPPENS = {
    Checkpoint.VCPUS_STOPPED: "last vCPU left the guest",
    Checkpoint.DEVICES_STOPPED: "passed-through devices stopped",
    Checkpoint.CLOCK_READ: "device models stopped, clock read",
    Checkpoint.FINAL_SYNC_DONE: "disks flushed, last dirty sync",
    Checkpoint.STATE_SAVED: "last pages sent, state read",
    Checkpoint.DEVICES_LOADED: "state sent, destination loads it",
    Checkpoint.HELD: "loaded, waited for cont",
    Checkpoint.CLOCK_SET: "destination sets guest clock",
    Checkpoint.VCPUS_RUNNING: "vCPUs enter the guest",
}
"""At most 33 characters each, so that they fit beside a bar in 80 columns."""

_DURING = {
    Checkpoint.DEVICES_STOPPED: "the source's passed-through devices were being stopped",
    Checkpoint.CLOCK_READ: "the source stopped its device models, until it read the guest's clock",
    Checkpoint.FINAL_SYNC_DONE: "disks were flushed and dirty pages read a last time",
    Checkpoint.STATE_SAVED: "the last pages were sent and the state of vCPUs and devices was read",
    Checkpoint.DEVICES_LOADED: "the rest was sent and the destination loaded it",
    Checkpoint.HELD: "the destination was loaded and waited for cont",
    Checkpoint.CLOCK_SET: "the destination was loaded and prepared to run, until it set the guest's clock",
    Checkpoint.VCPUS_RUNNING: "the destination started its devices and vCPUs",
}

AWAITED = {
    Checkpoint.VCPUS_STOPPED: "source stops its device models",
    Checkpoint.DEVICES_STOPPED: "source stops its device models",
    Checkpoint.CLOCK_READ: "source waits for its last sync",
    Checkpoint.FINAL_SYNC_DONE: "last pages sent, state read",
    Checkpoint.STATE_SAVED: "state sent, destination loads it",
    Checkpoint.DEVICES_LOADED: "destination waits to run (cont?)",
    Checkpoint.HELD: "destination waits to run",
    Checkpoint.CLOCK_SET: "destination starts its vCPUs",
}
"""The step that follows the last passed checkpoint."""

# A sync that takes less than this part of its interval is not the cause of the interval's time.
_SMALL_PART = 10


def title(vm: Vm | Migration, g: Glyphs) -> str:
    """Return a VM's title: its name with the short UUID, else the UUID, else the pid."""
    return clean(figures.title(vm.name, vm.uuid, vm.pid), g)


def label(vm: Vm | Migration, g: Glyphs) -> str:
    """Return a VM's title in one word: the name, else the short UUID, else the pid."""
    return clean(figures.label(vm.name, vm.uuid, vm.pid), g)


def happens(migration: Migration, checkpoint: Checkpoint) -> str:
    """Return a short text about the step up to this checkpoint."""
    if checkpoint == Checkpoint.VCPUS_RUNNING and figures.resumed_on_source(migration):
        return "vCPUs run again on the source"
    return HAPPENS[checkpoint]


def during(migration: Migration, checkpoint: CheckpointTime) -> str:
    """Return a clause about the step up to this checkpoint, with the figure that supports it."""
    name = checkpoint.name
    if name == Checkpoint.VCPUS_RUNNING and figures.resumed_on_source(migration):
        if migration.outcome == Outcome.COMPLETED:
            return "all of it was saved, until the source's vCPUs ran again"
        return "the migration failed, and the source's vCPUs ran again"
    held = migration.brownout.stop if migration.brownout is not None else None
    if name == Checkpoint.CLOCK_READ and held is not None and checkpoint.ns:
        if held.ns * _SMALL_PART >= checkpoint.ns:
            took = format_ns(held.ns)
            return f"{HELD_BY[held.by]} had held the vCPUs for {took} when the source stopped them"
    elif name == Checkpoint.CLOCK_READ and migration.throttled:
        return "vCPUs were throttled and slept when the source stopped them (auto-converge)"
    last = migration.rounds[-1] if migration.rounds else None
    if last is None or checkpoint.ns is None:
        return _DURING.get(name, name)
    if name == Checkpoint.FINAL_SYNC_DONE and last.duration_ns * _SMALL_PART < checkpoint.ns:
        took = format_ns(last.duration_ns)
        return f"the source waited before its last dirty sync, which took {took}"
    if name == Checkpoint.STATE_SAVED and last.sent_bytes:
        sent = format_bytes(last.sent_bytes)
        return f"the last {sent} were sent, the state of vCPUs and devices was read"
    return _DURING.get(name, name)


def headline(migration: Migration, now_ns: int) -> str:
    """Return one line: the downtime and its cause, or why it is not known."""
    downtime = migration.downtime.vcpu_ns
    largest = figures.largest_step(migration.downtime)
    if downtime is not None and largest is not None and largest.ns is not None:
        took = f"set by {largest.name} ({format_ns(largest.ns)})"
        return f"downtime {format_ns(downtime)}, {took}: {during(migration, largest)}"
    if downtime is not None:
        return f"downtime {format_ns(downtime)}"
    return f"downtime {_why_no_downtime(migration, now_ns)}"


def downtime_line(found: MigrationReport) -> str:
    """Return the headline of a migration that two hosts may have seen: a range if their clocks are not certain."""
    said = headline(found.migration, found.host.snapshot.at_ns)
    total = found.migration.downtime.vcpu_ns
    if not found.uncertainty_ns or total is None:
        return said
    rest = said.removeprefix(f"downtime {format_ns(total)}")
    return f"downtime {downtime_range(found)}{rest}"


def downtime_range(found: MigrationReport) -> str | None:
    """`4.20 ms to 6.10 ms`; one figure where both have the same digits; None if it is not known."""
    bounds = figures.downtime_bounds_ns(found)
    return None if bounds is None else _range(*bounds)


def clocks_line(found: MigrationReport) -> str | None:
    """Return the difference of two hosts' clocks; None for one clock."""
    offset = found.offset
    if offset is None:
        return None
    low, high = _signed_seconds(offset.low), _signed_seconds(offset.high)
    said = f"source's minus destination's: at least {low} ({offset.low_why})"
    said += f", at most {high} ({offset.high_why})"
    crossing = figures.clock_change(found.migration.downtime)
    if crossing is not None and crossing.ns is not None:
        least, most = figures.bounds_ns(crossing.ns, offset.uncertainty_ns)
        said += f"; so {crossing.name} took {format_ns(least)} to {format_ns(most)}"
    return said


def _range(least_ns: int, most_ns: int) -> str:
    least, most = format_ns(least_ns), format_ns(most_ns)
    return least if least == most else f"{least} to {most}"


def _signed_seconds(ns: int) -> str:
    """Return all digits: an offset of days may be known to the microsecond."""
    return f"{'-' if ns < 0 else ''}{abs(ns) // 10**9}.{abs(ns) % 10**9:09} s"


def _why_no_downtime(migration: Migration, now_ns: int) -> str:
    if migration.was_paused:
        return "none: the guest was paused before the migration"
    if migration.stopped_at_ns is None and migration.role != Role.DESTINATION:
        if migration.outcome is None:
            return "none so far: the guest runs"
        if migration.outcome == Outcome.UNKNOWN:
            return "none so far: the guest ran when the trace ended"
        if migration.outcome == Outcome.COMPLETED:
            return "not known: the stop was not seen"
        return "none: the guest was never stopped"
    if migration.kind == Kind.SAVE:
        return "not known: the guest was stopped and saved, and did not run again"
    lasting = figures.blackout(migration, now_ns)
    if lasting is not None and lasting.at_least:
        return f"at least {format_ns(lasting.ns)}: handed over, the destination is not seen here"
    if lasting is not None:
        since = f"{format_ns(lasting.since_ns)} since {lasting.since}"
        return f"{format_ns(lasting.ns)} so far, {since}: {AWAITED[lasting.since]}"
    if migration.outcome == Outcome.UNKNOWN and migration.stopped_at_ns is not None:
        lasted = format_ns(max(0, now_ns - migration.stopped_at_ns))
        return f"not known: the trace ended {lasted} into the blackout"
    if migration.role == Role.DESTINATION:
        return "not known: the source was not seen"
    if migration.outcome == Outcome.COMPLETED and migration.peer_pid is not None:
        return "not over: the destination holds the loaded guest and waits for cont"
    if migration.outcome == Outcome.COMPLETED:
        return "not known: the destination was not seen"
    return "not known: the guest was stopped and never ran again"


def verdict(migration: Migration, g: Glyphs) -> str:
    """Return outcome and cause in words."""
    m = migration
    match m.outcome, m.cause:
        case None, _:
            return "running"
        case Outcome.COMPLETED, _ if m.kind != Kind.MOVE:
            return f"completed: {save_line(m, g)}, not a move"
        case Outcome.COMPLETED, _:
            return Outcome.COMPLETED + (" (postcopy)" if m.postcopy else "")
        case Outcome.CANCELLED, _:
            return "cancelled: logging was switched off and the guest ran on"
        case Outcome.FAILED, Cause.CHANNEL_ERROR:
            return f"failed: the migration channel returned {m.channel.error or 'an error'}"
        case Outcome.FAILED, Cause.DESTINATION_ENDED:
            error = f" (channel: {m.channel.error})" if m.channel.error else ""
            return f"failed: the destination's process ended{error}"
        case Outcome.FAILED, Cause.SOURCE_ENDED:
            return "failed: the source's process ended before its state was read"
        case Outcome.FAILED, Cause.RESUMED_AFTER_STOP:
            return "failed: the source ran again after the stop (QEMU: cancelled)"
        case Outcome.FAILED, Cause.DEVICE_REFUSED | Cause.DEVICE_FAILED:
            what = (
                "a device refused a step" if m.cause == Cause.DEVICE_REFUSED else "a device failed"
            )
            return f"failed: {clean(m.cause_detail, g) if m.cause_detail else what}"
        case Outcome.UNKNOWN, _:
            return "unknown: the trace ended first"
        case outcome, cause:
            return f"{outcome}: {cause}" if cause else f"{outcome}"


def save_line(migration: Migration, g: Glyphs) -> str:
    """`saved to a file /var/lib/...`, or what it was loaded from."""
    saved = migration.kind == Kind.SAVE
    save = migration.save
    if save is None or save.channel == "unknown":
        return "saved" if saved else "loaded from a save"
    words = {"file": "a file", "pipe": "a pipe", "snapshot": "the snapshot"}
    name = save.path or (f"of {save.program}" if save.program else "")
    what = f"{words.get(save.channel, save.channel)} {clean(name, g)}".rstrip()
    return f"saved to {what}" if saved else f"loaded from {what}"


def roles(migration: Migration, g: Glyphs) -> str:
    """Return the sides that were seen, with their pids."""
    if migration.role == Role.STITCHED:
        return f"source pid {migration.pid} {g.arrow} destination pid {migration.peer_pid}"
    other = Role.DESTINATION if migration.role == Role.SOURCE else Role.SOURCE
    return f"{migration.role} pid {migration.pid}, {other} not seen here"


_NOT_COUNTED = {
    "too-large": "a slot is larger than the vftrace that recorded it could count (66 to 528 GiB)",
    "size-unknown": "a slot was made before the trace began, so its size is not known",
    "unreadable": "a part of a dirty bitmap was not in memory when it was read",
    "records-missing": "parts of a dirty bitmap were lost before they were counted",
}


NAMED_LOSSES = 3
"""How many VMs with lost events are named; all of them have a metric."""


def warnings(migration: Migration) -> tuple[str, ...]:
    """Return the reasons why the figures of this migration are uncertain."""
    said = []
    if migration.internal_error is not None:
        said.append(
            f"INCOMPLETE, INTERNAL ERROR: vftrace failed on this migration ({migration.internal_error});"
            " figures are missing or may be wrong"
        )
    elif migration.contested:
        said.append("CONTESTED: several VMs with this UUID acted as its destination")
    elif migration.incomplete:
        loss, missed_runs = migration.loss, migration.missed_runs
        if missed_runs:
            said.append(f"INCOMPLETE: {_missed(missed_runs)}; figures may be too small")
        if loss.records or loss.uncounted or not missed_runs:
            said.append(
                f"INCOMPLETE: {_missing(loss)} of this migration were lost; figures may be too small"
            )
    if migration.missed_beginning:
        said.append("BEGINNING MISSED: vftrace started in the middle of this migration")
    reasons = {s.not_counted for round_ in migration.rounds for s in round_.slots} - {None}
    counted = sorted(reason for reason in reasons if reason is not None)
    for reason in counted:
        parts = migration.loss.bitmap_parts if reason == "records-missing" else 0
        how_many = f" ({parts} parts)" if parts else ""
        said.append(f"PAGES NOT COUNTED: {_NOT_COUNTED[reason]}{how_many}")
    return tuple(said)


def _whose(lost: tuple[VmLoss, ...]) -> str:
    """Return the VMs that lost most, in brackets; empty if they are not known."""
    counts = [(vm.key, vm.loss.records + vm.loss.bitmap_parts) for vm in lost]
    said = [
        f"{count} of VM {figures.printable(key)}" for key, count in counts[:NAMED_LOSSES] if count
    ]
    return f" ({', '.join(said)})" if said else ""


def _missing(loss: Loss) -> str:
    """Return `12 events and 3 calls`; `events` if the number is not known."""
    counted = [f"{loss.records} events"] if loss.records else []
    if loss.uncounted:
        counted.append(f"{loss.uncounted} calls or sends")
    return " and ".join(counted) or "events"


def _missed(runs: Sequence[tuple[str, int]]) -> str:
    """`1 run of probe ioctl and 3 runs of probe channel were skipped by the kernel`."""
    said = [f"{count} run{'' if count == 1 else 's'} of probe {probe}" for probe, count in runs]
    verb = "was" if sum(count for _, count in runs) == 1 else "were"
    return f"{' and '.join(said)} {verb} skipped by the kernel"


def losses(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the losses of the trace as a whole."""
    said = []
    if snapshot.lost:
        said.append(f"{snapshot.lost} EVENTS LOST: a ring buffer was full{_whose(snapshot.losses)}")
    if snapshot.missed_runs:
        by_probe: Counter[str] = Counter()
        for probe, _, count in snapshot.missed_runs:
            by_probe[figures.printable(probe)] += count
        said.append(f"RUNS MISSED: {_missed(list(by_probe.items()))}")
    for uid, count in snapshot.untraced:
        said.append(
            f"{count} VM{'' if count == 1 else 's'} OF USER {uid} NOT TRACED: no room for more"
        )
    if snapshot.unknown_records:
        said.append(f"{snapshot.unknown_records} records of kinds this version does not know")
    return tuple(said)
