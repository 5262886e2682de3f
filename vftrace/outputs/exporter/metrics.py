# SPDX-License-Identifier: MIT
"""The metrics: one table, from which the exposition and docs/reference/metrics.md are made.

A metric is added by adding one entry to `METRICS`; its `samples` reads a `View`. Label values come
from fixed lists or are cleaned and bounded, whatever a guest does.
"""

import math
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Literal

import msgspec
from msgspec.structs import asdict
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from vftrace import __version__, events
from vftrace.analysis.devices.vf_downtime import VfDowntime
from vftrace.analysis.devices.vf_history import NOT_RECORDED
from vftrace.events import wire
from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.migration import Forecast, Kind, Outcome, Role, Strategy
from vftrace.model.recorder import RecorderState
from vftrace.outputs.exporter.accounts import (
    Accounts,
    Histogram,
    Reading,
    View,
    VmView,
    clean,
    downtimes,
)
from vftrace.uapi import VFIO_DEVICE_STATES

PREFIX = "vftrace_"

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float | Histogram]]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily


class Metric(msgspec.Struct, frozen=True):
    """One metric: `name` without the prefix, `unit` as in the docs, `probe` what feeds it,
    `alert` what to alert on."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    unit: str
    labels: Labels
    probe: str
    alert: str
    samples: Callable[[View], Samples]


WAITING = "waiting"
"""The method of a probe that is not attached because its module or tracepoint does not exist yet."""

NO_CAUSE = "none"
"""The cause of a migration that completed."""

_EVENTS: tuple[type[events.Event], ...] = (*wire.CLASSES.values(), events.Unknown)


def _build_info(view: View) -> Samples:
    yield (__version__, clean(view.reading.host.kernel), platform.python_version()), 1


def _figures_timestamp(view: View) -> Samples:
    snapshot = view.reading.snapshot
    seconds = view.unix_seconds(snapshot.at_ns) if snapshot.clock else None
    if seconds is not None:
        yield (), seconds


def _probe_attached(view: View) -> Samples:
    for probe in view.reading.probes:
        method = probe.method or (WAITING if probe.waits else "none")
        yield (clean(probe.name), clean(method)), probe.method is not None


def _events(view: View) -> Samples:
    counts = dict.fromkeys((event.PROBE for event in _EVENTS), 0)
    for event, count in view.reading.event_counts.items():
        counts[event.PROBE] += count
    for probe, count in counts.items():
        yield (probe,), count


def _lost(view: View) -> Samples:
    yield (), view.reading.snapshot.lost


def _vm_lost(view: View) -> Samples:
    for vm in view.vms:
        if vm.totals.lost:
            for kind, count in asdict(vm.totals.lost).items():
                yield (vm.label, kind), count


def _reader_lateness(view: View) -> Samples:
    if view.reading.reader is not None:
        yield (), view.reading.reader.lateness_ns / 1e9


def _reader_cpu(view: View) -> Samples:
    reader = view.reading.reader
    if reader is not None and reader.cpu_ns is not None:
        yield (), reader.cpu_ns / 1e9


def _reader_memory(view: View) -> Samples:
    reader = view.reading.reader
    if reader is not None and reader.resident_bytes is not None:
        yield (), reader.resident_bytes


def _tables_full(view: View) -> Samples:
    for table, count in view.reading.snapshot.tables_full:
        yield (table,), count


def _untraced(view: View) -> Samples:
    for uid, count in view.reading.snapshot.untraced:
        yield (str(uid),), count


def _missed_runs(view: View) -> Samples:
    for probe, reason, count in view.reading.snapshot.missed_runs:
        yield (probe, reason), count


def _not_recorded(view: View) -> Samples:
    yield (), view.reading.not_recorded


def _recorder(value: Callable[[RecorderState], int]) -> Callable[[View], Samples]:
    """Return the samples of a figure of the flight recorder; empty without a recorder."""

    def samples(view: View) -> Samples:
        if view.reading.recorder is not None:
            yield (), value(view.reading.recorder)

    return samples


def _incomplete(view: View) -> Samples:
    yield (), view.accounts.incomplete


def _internal_errors(_view: View) -> Samples:
    for where, count in FAULTS.counts.items():
        yield (where,), count


def _vm_info(view: View) -> Samples:
    for vm in view.vms:
        where = vm.vm.placement
        orchestrated = (where.namespace, where.vmi, where.pod_uid, where.vmid)
        yield (vm.label, clean(vm.vm.name), clean(vm.vm.vmm), *map(clean, orchestrated)), 1


def _vm_paused(view: View) -> Samples:
    for vm in view.vms:
        if vm.paused is not None:
            yield (vm.label,), vm.paused


def _active(view: View) -> Samples:
    for vm in view.vms:
        for role, migration in vm.sides:
            yield (vm.label, role), migration.outcome is None


def _phase(view: View) -> Samples:
    for vm in view.vms:
        for role, migration in vm.sides:
            for phase in migration.phases:
                if phase.role == role:
                    yield (vm.label, role, phase.name), phase.end_at_ns is None


def _migrations(view: View) -> Samples:
    for key in product(Role, Strategy, Outcome):
        yield key, view.accounts.migrations[key]


def _saves(view: View) -> Samples:
    for key in product((Kind.SAVE, Kind.LOAD), Outcome):
        yield key, view.accounts.saves[key]


def _phase_seconds(view: View) -> Samples:
    yield from view.accounts.phases.items()


def _downtime_seconds(view: View) -> Samples:
    for kind, histogram in view.accounts.downtime.items():
        yield (kind,), histogram


def _last_downtime(view: View) -> Samples:
    for vm in view.vms:
        for migration in vm.moves:
            known = downtimes(migration)
            if known:
                for kind, ns in known.items():
                    yield (vm.label, kind), ns / 1e9
                break


def _last_outcome(view: View) -> Samples:
    for vm in view.vms:
        if vm.last_outcome is not None:
            yield (vm.label, vm.last_outcome.outcome, vm.last_outcome.cause or NO_CAUSE), 1


def _last_ended(view: View) -> Samples:
    for vm in view.vms:
        if vm.last_outcome is not None:
            yield from _timestamp(view, vm.label, vm.last_outcome.ended_at_ns)


def _last_checkpoint(view: View) -> Samples:
    for vm in view.vms:
        for migration in vm.moves:
            # The blackout begins at the first checkpoint, so no time precedes it.
            passed = [c for c in migration.downtime.checkpoints[1:] if c.ns is not None]
            if passed:
                for checkpoint in passed:
                    yield (vm.label, checkpoint.name), (checkpoint.ns or 0) / 1e9
                break


def _sent_bytes(view: View) -> Samples:
    for vm in view.vms:
        if vm.source is not None and vm.source.channel.bytes is not None:
            yield (vm.label,), vm.totals.sent_bytes


def _vcpu_seconds(view: View) -> Samples:
    for vm in view.vms:
        for state, ns in vm.totals.vcpu_ns.items():
            if ns:
                yield (vm.label, state), ns / 1e9


def _guest_speed(view: View) -> Samples:
    for vm in view.vms:
        speeds = (figures.speed_now(migration) for _, migration in vm.sides)
        speed = next((speed for speed in speeds if speed is not None), None)
        if speed is not None:
            yield (vm.label,), speed


def _stopped(view: View) -> Samples:
    for vm in view.vms:
        stopped, _ = _latest_blackout(vm)
        if stopped is not None:
            yield from _timestamp(view, vm.label, stopped)


def _resumed(view: View) -> Samples:
    for vm in view.vms:
        _, resumed = _latest_blackout(vm)
        if resumed is not None:
            yield from _timestamp(view, vm.label, resumed)


def _latest_blackout(vm: VmView) -> tuple[int | None, int | None]:
    """Return when the latest blackout began and ended, as far as seen here, both from one migration."""
    for migration in vm.moves:
        resumed = migration.downtime.checkpoints[-1].at_ns
        if migration.stopped_at_ns is not None or resumed is not None:
            return migration.stopped_at_ns, resumed
    return None, None


def _timestamp(view: View, label: str, at_ns: int) -> Samples:
    seconds = view.unix_seconds(at_ns)
    if seconds is not None:
        yield (label,), seconds


def _clock_error(view: View) -> Samples:
    if view.reading.snapshot.clock:
        yield (), view.reading.snapshot.clock[-1][2] / 1e9


def _dirty_pages(view: View) -> Samples:
    for vm in view.vms:
        if vm.source is not None:
            for source, pages in vm.totals.dirty_pages.items():
                yield (vm.label, source), pages


def _dirty_rate(view: View) -> Samples:
    for vm in view.vms:
        if vm.source is not None and vm.source.outcome is None:
            rate = figures.dirty_rate(vm.source)
            if rate is not None:
                yield (vm.label,), rate


def _dirty_rounds(view: View) -> Samples:
    for vm in view.vms:
        if vm.source is not None:
            yield (vm.label,), vm.totals.rounds


def _dirty_sync(view: View) -> Samples:
    yield (), view.accounts.sync


def _forecasts(view: View) -> Iterator[tuple[str, Forecast]]:
    for vm in view.vms:
        m = vm.source
        # Once the guest has stopped, no forecast is shown.
        if m is not None and m.outcome is None and m.stopped_at_ns is None and m.forecast:
            yield vm.label, m.forecast


def _forecast_downtime(view: View) -> Samples:
    for label, forecast in _forecasts(view):
        for cost in forecast.strategies:
            if cost.downtime_ns is not None:
                yield (label, cost.strategy), cost.downtime_ns / 1e9


def _forecast_converges(view: View) -> Samples:
    for label, forecast in _forecasts(view):
        if forecast.converges is not None:
            yield (label,), forecast.converges


def _device_state(view: View) -> Samples:
    # Only the current state: eight series for each device would be most of a host's series.
    for vm in view.vms:
        devices = [(_state(d.state), clean(d.address)) for d in vm.devices if d.state is not None]
        for state, address in sorted(devices, key=_unusual_first)[: _devices_shown(vm)]:
            yield (vm.label, address, state), 1


def _unusual_first(device: tuple[str, str]) -> tuple[int, str]:
    state, address = device
    return {"ERROR": 0, "RUNNING": 2}.get(state, 1), address


def _devices_shown(vm: VmView) -> int:
    """Return the devices that are shown, so few that no VM exceeds the promised number of series
    (docs/reference/metrics.md)."""
    return (1, 8, 4)[len(tuple(vm.sides))]


def _device_transitions(view: View) -> Samples:
    for device, old, new, count in view.reading.snapshot.transitions:
        yield (clean(device), _state(old), _state(new)), count


def _state(name: str) -> str:
    return name if name in VFIO_DEVICE_STATES else "unknown"


def _mailbox_messages(view: View) -> Samples:
    # Names are those of the drivers' tables: a guest cannot make new ones.
    for vf in view.vfs:
        flood = {(NOT_RECORDED, direction, "none"): 0 for direction in ("from-vf", "to-vf")}
        for (name, direction, result), count in (flood | dict(vf.history.counts)).items():
            yield (*_vf(vf), name, direction, result), count


def _vf_resets(view: View) -> Samples:
    for vf in view.vfs:
        yield _vf(vf), vf.history.message_resets + vf.history.function_resets


def _vf_up(view: View) -> Samples:
    for vf in view.vfs:
        if vf.up is not None:
            yield _vf(vf), vf.up


def _vf_downtime(view: View) -> Samples:
    for vf in view.vfs:
        if vf.ns is not None:
            yield _vf(vf), vf.ns / 1e9


def _vf(vf: VfDowntime) -> Labels:
    return clean(vf.history.pf), str(vf.history.vf)


METRICS = (
    Metric(
        "build_info",
        "info",
        "1, with the version of vftrace, the traced kernel and Python.",
        "",
        ("version", "kernel", "python"),
        "none",
        "versions that differ within a fleet",
        _build_info,
    ),
    Metric(
        "figures_timestamp_seconds",
        "gauge",
        "Unix time up to which the other metrics include this host's events. On a busy host, vftrace prepares them "
        "one or two seconds before the scrape, and may serve them until they are four seconds old.",
        "seconds",
        (),
        "none",
        "timestamp() minus this over some seconds for minutes: the other metrics are old",
        _figures_timestamp,
    ),
    Metric(
        "probe_attached",
        "gauge",
        "1 if a probe is attached, with its method (fentry, kprobe, tracepoint). 0 with method `waiting`: the "
        "module or tracepoint that it needs does not exist yet, such as vfio; 0 with `none`: the kernel refused "
        "the probe.",
        "",
        ("probe", "method"),
        "none",
        "0 with method none: a part of the figures is missing (`vftrace doctor` prints the reason)",
        _probe_attached,
    ),
    Metric(
        "events_total",
        "counter",
        "Records that vftrace read, by the probe that wrote them; `collector` is vftrace's own reader.",
        "events",
        ("probe",),
        "all",
        "the collector's rate at 0 for a minute: the reader hangs",
        _events,
    ),
    Metric(
        "events_lost_total",
        "counter",
        "Records that did not fit into the ring buffers; the migrations they belong to are marked incomplete.",
        "events",
        (),
        "all",
        "any increase",
        _lost,
    ),
    Metric(
        "vm_events_lost_total",
        "counter",
        "Losses of a VM: `records` for which the ring buffer had no room, or for which the VM had used up its "
        "share; `bitmap_parts`, which only make numbers of pages unknown; `uncounted` calls and sends for which a "
        "kernel table had no room. A VM without losses has no such series.",
        "events",
        ("vm", "kind"),
        "all",
        "one VM far above the others: a guest or user that floods the tracer",
        _vm_lost,
    ),
    Metric(
        "recording_lost_records_total",
        "counter",
        "Records that could not be written to the file of `--record`.",
        "records",
        (),
        "none",
        "any increase: the disk is full; tracing continues",
        _not_recorded,
    ),
    Metric(
        "flight_recorder_files",
        "gauge",
        "Recordings in the directory of `--record-dir`.",
        "files",
        (),
        "none",
        "",
        _recorder(lambda state: state.files),
    ),
    Metric(
        "flight_recorder_bytes",
        "gauge",
        "Disk space that the recordings in the directory of `--record-dir` use.",
        "bytes",
        (),
        "none",
        "",
        _recorder(lambda state: state.bytes),
    ),
    Metric(
        "flight_recorder_lost_files_total",
        "counter",
        "Migrations whose recording is missing or incomplete, because the disk was full, slow, read-only or "
        "removed, or because too many migrations ran at once.",
        "files",
        (),
        "none",
        "any increase",
        _recorder(lambda state: state.lost_files),
    ),
    Metric(
        "flight_recorder_write_errors_total",
        "counter",
        "Errors when writing to the directory of `--record-dir`.",
        "errors",
        (),
        "none",
        "any increase",
        _recorder(lambda state: state.write_errors),
    ),
    Metric(
        "reader_lateness_seconds",
        "gauge",
        "Age of the oldest record that the reader process has read and the main process has not decoded yet.",
        "seconds",
        (),
        "all",
        "more than some seconds for minutes: the other metrics are old",
        _reader_lateness,
    ),
    Metric(
        "reader_cpu_seconds_total",
        "counter",
        "CPU time of the reader process; process_cpu_seconds_total has that of the main process.",
        "seconds",
        (),
        "all",
        "",
        _reader_cpu,
    ),
    Metric(
        "reader_resident_memory_bytes",
        "gauge",
        "Resident memory of the reader process; process_resident_memory_bytes has that of the main process.",
        "bytes",
        (),
        "all",
        "",
        _reader_memory,
    ),
    Metric(
        "kernel_table_full_total",
        "counter",
        "Entries for which a kernel table had no room; vftrace marks a VM that needed one as incomplete.",
        "entries",
        ("table",),
        "all",
        "any increase; with table `vms`: vftrace does not trace some VMs at all",
        _tables_full,
    ),
    Metric(
        "untraced_vms_total",
        "counter",
        "VMs that vftrace does not trace, because the kernel table of VMs had no room for them, by the user (uid) who"
        " started them; for the first 64 users.",
        "VMs",
        ("uid",),
        "all",
        "any increase: this user has far more VMs than usual, and their migrations are not seen",
        _untraced,
    ),
    Metric(
        "probe_missed_runs_total",
        "counter",
        "Runs of a probe's programs that the kernel skipped: another program was under way on that CPU (`recursion`),"
        " or the probe was hit inside another one or had no instance left (`kprobe`). Migrations under way are marked"
        " incomplete if the probe may concern them; `calls`, `vcpus` and `process` mark none.",
        "runs",
        ("probe", "reason"),
        "all",
        "any increase, except with `calls` and `vcpus`: another tracer runs inside the same calls",
        _missed_runs,
    ),
    Metric(
        "migrations_incomplete_total",
        "counter",
        "Migrations that ended and have missing records.",
        "migrations",
        (),
        "all",
        "any increase: figures of these migrations have gaps",
        _incomplete,
    ),
    Metric(
        "internal_errors_total",
        "counter",
        "Errors in vftrace itself that were contained, by the part of vftrace; a migration that an error concerns is"
        " marked incomplete.",
        "errors",
        ("where",),
        "all",
        "any increase: please report it, with the file that the log names",
        _internal_errors,
    ),
    Metric(
        "vm_info",
        "info",
        "1 for each VM on this host, with its name, the name of the VMM's executable, and its orchestrator's names "
        "for it: KubeVirt's namespace, VMI and pod, Proxmox VE's VMID.",
        "",
        ("vm", "name", "vmm", "namespace", "vmi", "pod_uid", "vmid"),
        "ioctl",
        "nothing; joins a name to the other metrics",
        _vm_info,
    ),
    Metric(
        "vm_paused",
        "gauge",
        "1 if no vCPU of the VM is allowed to run, else 0; absent if that is not known.",
        "",
        ("vm",),
        "ioctl",
        "1 for longer than VMs are paused on purpose",
        _vm_paused,
    ),
    Metric(
        "migration_active",
        "gauge",
        "Whether a migration of the VM is running on this host, by the host's role in it.",
        "",
        ("vm", "role"),
        "ioctl, channel",
        "1 for longer than a migration may take: precopy does not converge",
        _active,
    ),
    Metric(
        "migration_phase",
        "gauge",
        "1 for the phase the migration is in, 0 for the phases before it.",
        "",
        ("vm", "role", "phase"),
        "ioctl, channel",
        "1 for too long in a phase of the blackout: stop, final-sync, device-save, handover",
        _phase,
    ),
    Metric(
        "migrations_total",
        "counter",
        "Migrations that ended. Each is counted once, a second after its end; role `stitched`: this host was the "
        "source and the destination. `saves_total` counts saves and loads.",
        "migrations",
        ("role", "strategy", "outcome"),
        "ioctl, channel, process",
        "an increase with outcome failed",
        _migrations,
    ),
    Metric(
        "migration_last_outcome",
        "gauge",
        "1, with the outcome and the cause of the VM's latest migration (cause `none` if it completed), without saves "
        "and loads. Each VM has one series, which stays as long as the VM is here, and an hour more.",
        "",
        ("vm", "outcome", "cause"),
        "ioctl, channel, process",
        "outcome failed whose migration_last_ended_timestamp_seconds has changed",
        _last_outcome,
    ),
    Metric(
        "migration_last_ended_timestamp_seconds",
        "gauge",
        "Unix time at which the migration of migration_last_outcome ended.",
        "seconds",
        ("vm",),
        "ioctl, channel, process",
        "nothing; a change means that another migration ended",
        _last_ended,
    ),
    Metric(
        "saves_total",
        "counter",
        "Saves of VMs to a file or a pipe, and loads from one, that ended. Each is counted once.",
        "saves",
        ("kind", "outcome"),
        "ioctl, channel, process",
        "an increase with kind save and outcome failed, if saves are backups",
        _saves,
    ),
    Metric(
        "migration_phase_seconds",
        "histogram",
        "Durations of the phases of migrations that ended.",
        "seconds",
        ("role", "phase"),
        "ioctl, channel, process",
        "nothing; for quantiles of a fleet",
        _phase_seconds,
    ),
    Metric(
        "migration_downtime_seconds",
        "histogram",
        "Downtime of migrations that ended, if this host saw its beginning and its end. vcpu: from the last exit "
        "of a vCPU on the source to the first entry on the destination, or on the source again; device: the "
        "longest downtime of a passed-through device.",
        "seconds",
        ("kind",),
        "ioctl, vfio",
        "a quantile over the downtime you promise",
        _downtime_seconds,
    ),
    Metric(
        "migration_last_downtime_seconds",
        "gauge",
        "Downtime of the VM's latest migration, if this host saw its beginning and its end; kinds as in "
        "migration_downtime_seconds.",
        "seconds",
        ("vm", "kind"),
        "ioctl, vfio",
        "over the downtime you promise",
        _last_downtime,
    ),
    Metric(
        "migration_last_checkpoint_seconds",
        "gauge",
        "The latest blackout by checkpoint: the time from the previous checkpoint to this one.",
        "seconds",
        ("vm", "checkpoint"),
        "ioctl",
        "nothing; shows which step took most of the downtime",
        _last_checkpoint,
    ),
    Metric(
        "migration_sent_bytes_total",
        "counter",
        "Bytes that the VM sent on its migration channels, in all its migrations.",
        "bytes",
        ("vm",),
        "channel",
        "its rate near 0 while migration_active is 1: the channel stalls",
        _sent_bytes,
    ),
    Metric(
        "vm_vcpu_seconds_total",
        "counter",
        "Time of the VM's vCPUs while it migrated and its guest was to run, by what they did: guest, idle (halted by "
        "the guest), exit (in KVM), fault (page faults), user (in the VMM), queue (waiting for a CPU), throttle "
        "(auto-converge), limit (dirty limit), ring-full, stopped (or waiting for a lock), unknown.",
        "seconds",
        ("vm", "state"),
        "vcpus",
        "nothing; its rate by state shows why a guest is slow",
        _vcpu_seconds,
    ),
    Metric(
        "migration_guest_speed_ratio",
        "gauge",
        "Guest speed: the share of the last two seconds in which the guest could run, divided by the same share before "
        "the migration; only while it migrates.",
        "ratio",
        ("vm",),
        "vcpus",
        "below 0.2 for a minute: the guest hardly runs",
        _guest_speed,
    ),
    Metric(
        "migration_stopped_timestamp_seconds",
        "gauge",
        "Unix time of the latest vCPU exit of the VM's latest blackout; set on the source's host.",
        "seconds",
        ("vm",),
        "ioctl",
        "nothing; a rule joins it with the destination's resumed time",
        _stopped,
    ),
    Metric(
        "migration_resumed_timestamp_seconds",
        "gauge",
        "Unix time at which a vCPU ran again after the latest blackout; set on the host it ran on.",
        "seconds",
        ("vm",),
        "ioctl",
        "nothing; minus the source's stopped time it is the downtime across two hosts",
        _resumed,
    ),
    Metric(
        "clock_error_seconds",
        "gauge",
        "The kernel's bound on the error of this host's clock (adjtimex): how exactly times of two hosts compare.",
        "seconds",
        (),
        "none",
        "more than the precision you need for downtimes across two hosts",
        _clock_error,
    ),
    Metric(
        "dirty_pages_total",
        "counter",
        "New pages found by the rounds after the first (with dirty rings by all rounds), by the source of the "
        "report: kvm (the guest wrote them), vfio (a device's DMA logging, in its own page size), iommu (a "
        "container or an iommufd).",
        "pages",
        ("vm", "source"),
        "ioctl, dirty-ring, vfio",
        "nothing; see the rate",
        _dirty_pages,
    ),
    Metric(
        "dirty_rate_bytes_per_second",
        "gauge",
        "New pages of the latest round, divided by the time since the round before; with dirty rings the mean since "
        "the beginning; only while migrating.",
        "bytes_per_second",
        ("vm",),
        "ioctl, dirty-ring",
        "over the rate of migration_sent_bytes_total for minutes: precopy does not converge",
        _dirty_rate,
    ),
    Metric(
        "dirty_rounds_total",
        "counter",
        "Rounds (dirty syncs over all logged memory), as QEMU's dirty-sync-count.",
        "rounds",
        ("vm",),
        "ioctl",
        "tens of rounds in one migration: precopy does not converge",
        _dirty_rounds,
    ),
    Metric(
        "forecast_downtime_seconds",
        "gauge",
        "Forecast downtime for each way to migrate, if the guest's dirty rate stays the same; only in precopy, from "
        "the second dirty sync on. If max-bandwidth holds the channel back, only the order of the strategies is right "
        "(docs/explanation/forecast.md).",
        "seconds",
        ("vm", "strategy"),
        "ioctl, channel, dirty-ring",
        "strategy plain over the downtime you promise: there is still time to cancel",
        _forecast_downtime,
    ),
    Metric(
        "forecast_converges",
        "gauge",
        "1 if precopy converges, else 0, with QEMU's default downtime limit of 300 ms, or with a lower limit if "
        "the rounds show one; only in precopy, from the second dirty sync on, and absent while it is not known.",
        "",
        ("vm",),
        "ioctl, channel, dirty-ring",
        "0 for a minute: slow the guest down, or switch to postcopy",
        _forecast_converges,
    ),
    Metric(
        "vfio_device_state",
        "gauge",
        "1 for the state of a passed-through device (enum vfio_device_mig_state); its other states have no series. "
        "A VM shows at most one device, 8 while it migrates, 4 if it migrates within this host: first devices in "
        "ERROR, then those not RUNNING.",
        "",
        ("vm", "device", "state"),
        "vfio",
        "ERROR: only a reset ends it; STOP_COPY or RESUMING for long: the transfer of the state is slow",
        _device_state,
    ),
    Metric(
        "vfio_transitions_total",
        "counter",
        "Changes of a passed-through device's state.",
        "transitions",
        ("device", "from", "to"),
        "vfio",
        "any to ERROR",
        _device_transitions,
    ),
    Metric(
        "dirty_sync_seconds",
        "histogram",
        "Durations of the rounds' dirty syncs.",
        "seconds",
        (),
        "ioctl",
        "a quantile that is a large part of the downtime limit: the last dirty sync is a part of the blackout",
        _dirty_sync,
    ),
    Metric(
        "vf_mailbox_messages_total",
        "counter",
        "Messages between a network card and its virtual functions; `message` is the name in the driver's "
        "table, `unknown`, or `not-recorded` for messages beyond 1,000 per second.",
        "messages",
        ("pf", "vf", "message", "direction", "result"),
        "mailbox",
        "result NACK of messages other than API_NEGOTIATE and RESET; any not-recorded: a guest floods",
        _mailbox_messages,
    ),
    Metric(
        "vf_resets_total",
        "counter",
        "Resets of a virtual function, by its RESET message or as a PCI function.",
        "resets",
        ("pf", "vf"),
        "mailbox",
        "several per minute: the guest driver keeps failing to initialise",
        _vf_resets,
    ),
    Metric(
        "vf_up",
        "gauge",
        "1 if the virtual function is up, according to its mailbox messages, else 0; absent if it is not up and no "
        "VM of this host has it.",
        "",
        ("pf", "vf"),
        "mailbox, vfio",
        "see vf_downtime_seconds",
        _vf_up,
    ),
    Metric(
        "vf_downtime_seconds",
        "gauge",
        "How long a virtual function was last not up, or how long it is not up so far; counted from when its driver "
        "lost it, or from when its VM arrived here by migration.",
        "seconds",
        ("pf", "vf"),
        "mailbox, vfio, ioctl",
        "more than half a minute while vf_up is 0: the guest's driver did not start again",
        _vf_downtime,
    ),
)


class Exporter(Collector):
    """A prometheus_client collector: builds every family at each scrape from the data that `read` returns.

    `read` is None until there is a source; until then there are no metrics. `keep_ns`: how long VMs and migrations
    that ended stay. `warn` gets lines for the operator.
    """

    def __init__(self, keep_ns: int, warn: Callable[[str], None]) -> None:
        self.read: Callable[[], Reading] | None = None
        self._accounts = Accounts(keep_ns, warn)
        self._lock = threading.Lock()
        self.counted_at = -math.inf
        """When a scrape or `update` last counted (time.monotonic)."""

    def update(self) -> None:
        """Count migrations that ended since the last call; called once a second, so that scrapes may be rare."""
        if self.read is not None:
            with self._lock:
                self.counted_at = time.monotonic()
                self._accounts.count(self.read())

    def describe(self) -> Iterable[Family]:
        """Return the families without samples, so that registering reads no data."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        """Yield the families with their present values."""
        if self.read is None:
            return
        with self._lock:
            self.counted_at = time.monotonic()
            families = list(families_of(self._accounts.update(self.read())))
        yield from families


def families_of(view: View) -> Iterator[Family]:
    """Yield all metrics as prometheus_client's families."""
    for metric in METRICS:
        family = _family(metric)
        try:
            samples = list(metric.samples(view))
        except Exception as error:
            # The other metrics are still served.
            FAULTS.contained(Where.METRICS, error, f"metric {family.name} has no samples")
            samples = []
        for labels, value in samples:
            _add(family, metric, labels, value)
        yield family


def _family(metric: Metric) -> Family:
    name = PREFIX + metric.name
    unit = metric.unit if metric.name.removesuffix("_total").endswith("_" + metric.unit) else ""
    labels = metric.labels
    if metric.kind == "counter":
        return CounterMetricFamily(name, metric.help, labels=labels, unit=unit)
    if metric.kind == "histogram":
        return HistogramMetricFamily(name, metric.help, labels=labels, unit=unit)
    if metric.kind == "info":
        return InfoMetricFamily(name.removesuffix("_info"), metric.help)
    return GaugeMetricFamily(name, metric.help, labels=labels, unit=unit)


def _add(family: Family, metric: Metric, labels: Labels, value: float | Histogram) -> None:
    if isinstance(value, Histogram):
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, value.cumulative(), value.sum)
    elif isinstance(family, InfoMetricFamily):
        family.add_metric((), dict(zip(metric.labels, labels, strict=True)))
    else:
        assert not isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, float(value))
