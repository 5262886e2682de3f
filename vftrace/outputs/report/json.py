# SPDX-License-Identifier: MIT
"""The report as JSON: the stable form that report.schema.json describes."""

from typing import Any

from msgspec import to_builtins
from msgspec.structs import asdict, replace

from vftrace.analysis.advice.advise import advise
from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.brownout import STATES, Brownout, FaultWaits, VcpuSpan
from vftrace.model.calls import BlackoutCalls
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration, Outcome, Snapshot, without_figures
from vftrace.model.report import (
    HostReport,
    MigrationReport,
    Outage,
    Report,
    ServiceRoundTrips,
    live_report,
)
from vftrace.model.vf import VfHistory

SCHEMA = 1


def report_json(report: Report) -> dict[str, Any]:
    """Return the whole report. Integers are nanoseconds or counts, None is not known."""
    return {
        "schema": SCHEMA,
        "hosts": [host_json(host) for host in report.hosts],
        "migrations": [_contained_json(found) for found in report.migrations],
    }


def host_json(host: HostReport) -> dict[str, Any]:
    """Return one host between two boots, with its clock samples and its virtual functions."""
    snapshot = host.snapshot
    return {
        "name": host.name,
        "boot_id": host.boot_id,
        "kernel": host.info.kernel,
        "clock": [
            {"at_ns": at, "realtime_offset_ns": offset, "error_ns": error}
            for at, offset, error in snapshot.clock
        ],
        "events": snapshot.events,
        "lost": snapshot.lost,
        "losses": [{"vm": vm.key, "pid": vm.pid, **asdict(vm.loss)} for vm in snapshot.losses],
        "untraced_vms": [{"uid": uid, "count": count} for uid, count in snapshot.untraced],
        "missed_runs": [
            {"probe": probe, "reason": reason, "count": count}
            for probe, reason, count in snapshot.missed_runs
        ],
        "vfs": [vf_json(life) for life in snapshot.vfs],
    }


def state_json(host: HostInfo, snapshot: Snapshot) -> dict[str, Any]:
    """Return the state at `at_ns`, as `vftrace top --json` prints it.

    Migrations are as in `report --format json`, except that `outcome` is null while a migration runs; in addition
    they have the present `phase` and `blackout_ns` so far. Times are CLOCK_BOOTTIME nanoseconds.
    """
    report = report_json(live_report(host, snapshot))
    migrations = []
    for written, migration in zip(report["migrations"], snapshot.migrations, strict=True):
        phase, blackout_ns = _now(migration, snapshot.at_ns)
        migrations.append(
            {
                **written,
                "outcome": migration.outcome,
                "phase": phase,
                "blackout_ns": blackout_ns,
            }
        )
    return {
        "schema": SCHEMA,
        "at_ns": snapshot.at_ns,
        "host": host.name,
        "events": snapshot.events,
        "lost": snapshot.lost,
        "vms": [
            {
                "uuid": vm.uuid,
                "name": vm.name,
                "pid": vm.pid,
                "vmm": vm.vmm,
                "started_at_ns": vm.started_at_ns,
                "running": vm.running,
            }
            for vm in snapshot.vms
        ],
        "vfs": report["hosts"][0]["vfs"],
        "migrations": migrations,
    }


def _now(migration: Migration, at_ns: int) -> tuple[str | None, int | None]:
    """Return the present phase of a migration, and its blackout so far."""
    try:
        phase = figures.current_phase(migration) if migration.outcome is None else None
        stop = figures.blackout(migration, at_ns)
    except Exception as error:
        what = (
            f"migration {figures.title(migration.name, migration.uuid, migration.pid)} has no phase"
        )
        FAULTS.contained(Where.REPORT, error, what, (migration.pid,))
        return None, None
    return (phase.name if phase else None), (stop.ns if stop else None)


def vf_json(life: VfHistory) -> dict[str, Any]:
    """Return a virtual function; `states`, `changes` and `messages` have the latest entries."""
    return {
        "pf": life.pf,
        "vf": life.vf,
        "address": life.address,
        "driver": life.driver,
        "state": life.state,
        "keeps_resetting": life.keeps_resetting,
        "unanswered": life.unanswered,
        "refused": life.refused,
        "not_recorded": life.not_recorded,
        "function_resets": life.function_resets,
        "message_resets": life.message_resets,
        "settings": dict(life.settings),
        "vlans": list(life.vlans),
        "states": [
            {"name": s.name, "start_at_ns": s.start_at_ns, "end_at_ns": s.end_at_ns}
            for s in life.states
        ],
        "changes": [{"at_ns": c.at_ns, "what": c.what, "value": c.value} for c in life.changes],
        "messages": [
            {
                "at_ns": m.at_ns,
                "direction": m.direction,
                "opcode": m.opcode,
                "message": m.name,
                "role": m.role,
                "arguments": m.arguments,
                "result": m.result,
                "refused": m.refused,
                "note": m.note,
                "latency_ns": m.latency_ns,
            }
            for m in life.recent
        ],
    }


def _contained_json(found: MigrationReport) -> dict[str, Any]:
    """Do `migration_json`; if it fails, return the migration without figures."""
    try:
        return migration_json(found)
    except Exception as error:
        m = found.migration
        what = f"migration {figures.title(m.name, m.uuid, m.pid)} is written without figures"
        place = FAULTS.contained(Where.REPORT, error, what, (m.pid,))
        bare = replace(
            found,
            migration=without_figures(m, place),
            outage=None,
            round_trips=None,
            service_ns=None,
            uncertainty_ns=None,
        )
        return migration_json(bare)


def migration_json(found: MigrationReport) -> dict[str, Any]:
    """Return one migration; its times are on the clock of `host`."""
    m = found.migration
    return {
        "vm": {"uuid": m.uuid, "name": m.name, "pid": m.pid},
        "peer_pid": m.peer_pid,
        "attempt": m.attempt,
        "kind": m.kind,
        "save": None if m.save is None else asdict(m.save),
        "role": m.role,
        "host": found.host.name,
        "peer_host": None if found.peer is None else found.peer.name,
        "strategy": m.strategy,
        "strategy_evidence": [{"event": e.event, "at_ns": e.at_ns} for e in m.strategy_evidence],
        "outcome": m.outcome or Outcome.UNKNOWN,
        "cause": m.cause,
        "cause_detail": m.cause_detail,
        "was_paused": m.was_paused,
        "postcopy": m.postcopy,
        "incomplete": m.incomplete,
        "contested": m.contested,
        "missed_beginning": m.missed_beginning,
        "internal_error": m.internal_error,
        "loss": asdict(m.loss),
        "missed_runs": [{"probe": probe, "count": count} for probe, count in m.missed_runs],
        "guest_clock_ns": m.guest_clock_ns,
        "started_at_ns": m.started_at_ns,
        "ended_at_ns": m.ended_at_ns,
        "phases": [
            {
                "name": p.name,
                "role": p.role,
                "start_at_ns": p.start_at_ns,
                "end_at_ns": p.end_at_ns,
            }
            for p in m.phases
        ],
        "rounds": [
            {
                "at_ns": r.at_ns,
                "duration_ns": r.duration_ns,
                "new_pages": r.new_pages,
                "redirtied_pages": r.redirtied_pages,
                "logged_pages": r.logged_pages,
                "sent_bytes": r.sent_bytes,
                "syncs": r.syncs,
                "dma_pages": {"vfio": r.vfio_pages, "iommu": r.iommu_pages},
                "slots": [
                    {
                        "slot": s.slot,
                        "new_pages": s.new_pages,
                        "logged_pages": s.logged_pages,
                        "not_counted": s.not_counted,
                    }
                    for s in r.slots
                ],
            }
            for r in m.rounds
        ],
        "dirty": {
            "new_pages": m.dirty.new_pages,
            "distinct_pages": m.dirty.distinct_pages,
            "rate_bytes_per_second": figures.dirty_rate(m),
            "mean_rate_bytes_per_second": figures.mean_dirty_rate(m),
            "counted_since_ns": figures.counted_since_ns(m),
            "page_size": m.dirty.page_size,
            "dma": m.dirty.dma,
            "sources": {
                "kvm": m.dirty.kvm_pages,
                "vfio": m.dirty.vfio_pages,
                "iommu": m.dirty.iommu_pages,
            },
        },
        "channel": {
            "kind": m.channel.kind,
            "bytes": m.channel.bytes,
            "state_bytes": m.channel.state_bytes,
            "error": m.channel.error,
            "error_at_ns": m.channel.error_at_ns,
            "peer": m.channel.peer,
        },
        "downtime": {
            "vcpu_ns": m.downtime.vcpu_ns,
            "service_ns": found.service_ns,
            "gap": None if found.outage is None else _outage(found.outage),
            "uncertainty_ns": found.uncertainty_ns,
            "set_by": m.downtime.set_by,
            "longest_vcpu_pause_ns": m.vcpu_pause_ns,
            "throttled": m.throttled,
            "checkpoints": [
                {"name": c.name, "at_ns": c.at_ns, "ns": c.ns} for c in m.downtime.checkpoints
            ],
            "devices": [
                {"address": d.address, "id": d.id, "from_at_ns": d.from_ns, "ns": d.ns}
                for d in m.downtime.devices
            ],
            "slowest_device": m.downtime.slowest_device,
            "calls": None if m.calls is None else _calls(m.calls),
        },
        "devices": [
            {
                "address": d.address,
                "id": d.id,
                "role": d.role,
                "driver": d.driver,
                "peer_address": d.peer_address,
                "states": [{"state": s.state, "at_ns": s.at_ns} for s in d.states],
                "state_ns": dict(d.state_ns),
                "bytes": d.bytes,
                "mapping": None if d.mapping is None else asdict(d.mapping),
                "iommu_tracks": d.iommu_tracks,
            }
            for d in m.devices
        ],
        "vfs": [
            {
                "pf": v.pf,
                "vf": v.vf,
                "address": v.address,
                "role": v.role,
                "phases": [
                    {"name": p.name, "start_at_ns": p.start_at_ns, "end_at_ns": p.end_at_ns}
                    for p in v.phases
                ],
            }
            for v in m.vfs
        ],
        "forecast": None if m.forecast is None else to_builtins(m.forecast),
        "advice": [to_builtins(advice) for advice in advise(found)],
        "brownout": None if m.brownout is None else _brownout(m.brownout),
        "round_trips": None if found.round_trips is None else _round_trips(found.round_trips),
    }


def _brownout(b: Brownout) -> dict[str, Any]:
    """Return the brownout. Speeds and shares are parts of one. `state_ns` has the sum of all vCPUs' times."""
    total, waits = b.total, b.waits
    return {
        "guest_speed": b.speed,
        "slow_ns": b.slow_ns,
        "slow_least": b.slow_least,
        "slow_most": b.slow_most,
        "rounds": list(b.rounds),
        "baseline": None if b.baseline is None else asdict(b.baseline),
        "holds": [
            {"by": h.by, "since_at_ns": h.since_ns, "round": h.round, "share": h.share}
            for h in b.holds
        ],
        "held_at_stop": None
        if b.stop is None
        else {"by": b.stop.by, "from_at_ns": b.stop.from_ns, "ns": b.stop.ns},
        "state_ns": {} if total is None else _states(total),
        "page_waits": None if waits is None else _waits(waits),
        "vcpus": [
            {
                "side": use.side,
                "thread": use.thread,
                "vcpu": use.number,
                "state_ns": _states(use.total),
                "exits": use.exits,
                "faults": use.faults,
                "ring_full": use.ring_full,
                "page_waits": _waits(use.waits) if use.waits.count else None,
            }
            for use in b.vcpus
        ],
        "timeline": [
            {
                "side": span.side,
                "start_at_ns": span.vcpus.start_ns,
                "end_at_ns": span.vcpus.end_ns,
                "guest_speed": span.speed,
                "state_ns": _states(span.vcpus),
            }
            for span in b.timeline
        ],
    }


def _round_trips(trips: ServiceRoundTrips) -> dict[str, Any]:
    """Return the round trips. A part is null if the ping certainly sent no probe in it."""
    return {name: None if part is None else asdict(part) for name, part in trips.parts()}


def _states(span: VcpuSpan) -> dict[str, int]:
    return {state: ns for state, ns in zip(STATES, span.ns, strict=True) if ns}


def _waits(waits: FaultWaits) -> dict[str, Any]:
    """Return waits. Entry i of `buckets` counts the waits shorter than 2**i us."""
    return {
        "count": waits.count,
        "ns": waits.ns,
        "longest_ns": waits.longest_ns,
        "half_ns": waits.quantile_ns(0.5),
        "p99_ns": waits.quantile_ns(0.99),
        "buckets": list(waits.buckets),
    }


def _calls(calls: BlackoutCalls) -> dict[str, Any]:
    """Return the causes of each step, which add up to its time. `totals` are the calls that took longest."""
    return {
        "named_ns": calls.named_ns,
        "missed": calls.missed,
        "attach_ns": calls.attach_ns,
        "traced": [
            {"side": side, "since_at_ns": since, "until_at_ns": until}
            for side, since, until in calls.traced
        ],
        "steps": [
            {
                "checkpoint": step.checkpoint,
                "ns": step.ns,
                "causes": [asdict(cause) for cause in step.causes],
            }
            for step in calls.steps
        ],
        "totals": [asdict(total) for total in calls.totals],
    }


def _outage(outage: Outage) -> dict[str, Any]:
    """Return the outage. Times are on the migration's clock; `seen_on` is null for spans without a reason."""
    return {
        "start_at_ns": outage.start_at_ns,
        "ns": outage.ns,
        "least_ns": outage.least_ns,
        "most_ns": outage.most_ns,
        "uncertainty_ns": outage.uncertainty_ns,
        "explained_ns": outage.explained_ns,
        "spans": [
            {
                "name": span.name,
                "seen_on": span.side,
                "start_at_ns": span.start_at_ns,
                "end_at_ns": span.end_at_ns,
            }
            for span in outage.spans
        ],
    }
