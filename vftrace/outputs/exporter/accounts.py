# SPDX-License-Identifier: MIT
"""Keeps the data that Prometheus needs beyond a snapshot: totals that only grow, and the `vm` of each process.

`Accounts.update` takes a snapshot and gives a `View`, from which every metric is read. Times are
CLOCK_BOOTTIME nanoseconds.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client.samples import Exemplar

from vftrace.analysis.devices.vf_downtime import VfDowntime, VfDowntimes
from vftrace.analysis.settled import settled as settled_at
from vftrace.events import Event
from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.brownout import STATES, VcpuState
from vftrace.model.host import HostInfo, ProbeStatus, ReaderUse
from vftrace.model.migration import (
    Cause,
    Kind,
    Loss,
    Migration,
    Outcome,
    Phase,
    PhaseSpan,
    Role,
    Snapshot,
    Vm,
    VmDevice,
    VmLoss,
)
from vftrace.model.recorder import RecorderState
from vftrace.model.trace_id import trace_id

UPDATE_NS = 1_000_000_000
"""The longest time between two calls of `Accounts.update`: a change may be noticed this much late."""

MAX_ENDED_VMS = 1000
"""How many ended VMs are kept: a host that starts and ends VMs in a loop must not fill the memory."""

OUTCOME_KEEP_NS = 3600 * 1_000_000_000
"""How long the name and the last outcome of an ended VM stay if `keep_ns` is less: an alert that fires
minutes after a failure, and the board that is opened then, still name the VM."""

_LONGEST_LABEL = 80

DOWNTIME_KINDS = ("vcpu", "device")
"""The kinds without `service`, which a pinger measures and reports."""

DOWNTIME_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
)
"""0.3 s is QEMU's default downtime-limit (migration/options.c)."""
PHASE_BUCKETS = (
    *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    *(1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0),
)
SYNC_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5),
)

SOURCE_PHASES = (
    *(
        Phase.SETUP,
        Phase.PRECOPY,
        Phase.STOP,
        Phase.FINAL_SYNC,
        Phase.DEVICE_SAVE,
        Phase.HANDOVER,
        Phase.POSTCOPY,
    ),
    Phase.CLEANUP,
)
DESTINATION_PHASES = (Phase.INCOMING, Phase.DEVICE_LOAD, Phase.RESUME, Phase.POSTCOPY)
"""The phases without `running`, which is the VM's life and not a part of a migration."""


class Reading(msgspec.Struct, frozen=True):
    """The present data.

    `ended`: there are no more events (a replay's end).
    """

    snapshot: Snapshot
    now_ns: int
    host: HostInfo
    probes: tuple[ProbeStatus, ...]
    event_counts: Mapping[type[Event], int]
    ended: bool = False
    traced: bool = False
    """Whether traces are sent too: the downtime's exemplars name them."""
    not_recorded: int = 0
    """Records that could not be written to the file of `--record`."""
    recorder: RecorderState | None = None
    reader: ReaderUse | None = None
    """The reader process; None in a replay."""


class Histogram:
    """A histogram over fixed upper bounds (`le`), in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, trace: str | None = None) -> None:
        """Count one value; its bucket's exemplar becomes this trace."""
        index = bisect_left(self._bounds, seconds)
        self._counts[index] += 1
        self.sum += seconds
        if trace is not None:
            self._exemplars[index] = Exemplar({"trace_id": trace}, seconds)

    def cumulative(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """(`le`, values up to it, exemplar) as Prometheus wants them, `+Inf` last."""
        total = 0
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        bounds = (*self._bounds, "+Inf")
        for bound, count, example in zip(bounds, self._counts, self._exemplars, strict=True):
            total += count
            bucket = str(bound), float(total)
            buckets.append(bucket if example is None else (*bucket, example))
        return buckets


class VmTotals(msgspec.Struct):
    """The totals of one `vm`: bytes sent, pages dirtied by source, rounds, its vCPUs' time by state while it migrated,
    and its losses."""

    sent_bytes: int = 0
    dirty_pages: Counter[str] = msgspec.field(default_factory=Counter)
    rounds: int = 0
    vcpu_ns: Counter[VcpuState] = msgspec.field(default_factory=Counter)
    lost: Loss = msgspec.field(default_factory=Loss)


class _Seen(msgspec.Struct):
    """The parts of one migration that have been added to the totals."""

    sent_bytes: int = 0
    dirty_pages: Counter[str] = msgspec.field(default_factory=Counter)
    rounds: int = 0
    vcpu_ns: Counter[VcpuState] = msgspec.field(default_factory=Counter)
    syncs: int = 0
    counted: bool = False
    phases: set[tuple[str, str]] = msgspec.field(default_factory=set)


class _Kept(msgspec.Struct):
    """A present or past `vm`: its process, and the time at which it was last seen."""

    vm: Vm
    seen_ns: int


class LastOutcome(msgspec.Struct, frozen=True):
    """How the latest migration of a `vm` ended; `cause` None if it completed."""

    outcome: Outcome
    cause: Cause | None
    ended_at_ns: int


class VmView(msgspec.Struct, frozen=True):
    """One `vm` at one scrape.

    `source` and `destination` are its latest migrations seen from that side, each None without one that
    runs or ended within the time that ended migrations are kept. `paused` None: not known, or the VM ended.
    `devices` are those of all its processes; empty for an ended VM.
    """

    label: str
    vm: Vm
    paused: bool | None
    devices: tuple[VmDevice, ...]
    source: Migration | None
    destination: Migration | None
    totals: VmTotals
    last_outcome: LastOutcome | None = None
    """None until one of its migrations has settled."""

    @property
    def sides(self) -> Iterator[tuple[str, Migration]]:
        """(role, migration) of each side that is there."""
        if self.source is not None:
            yield Role.SOURCE, self.source
        if self.destination is not None:
            yield Role.DESTINATION, self.destination

    @property
    def migrations(self) -> tuple[Migration, ...]:
        """The one or two migrations, the latest first."""
        found = {id(m): m for _, m in self.sides}
        return tuple(sorted(found.values(), key=lambda m: m.started_at_ns, reverse=True))

    @property
    def moves(self) -> tuple[Migration, ...]:
        """The migrations that are moves: a VM that is loaded from a file later had no downtime meanwhile."""
        return tuple(m for m in self.migrations if m.kind == Kind.MOVE)


class View(msgspec.Struct, frozen=True):
    """The data that a scrape reads."""

    reading: Reading
    vms: tuple[VmView, ...]
    vfs: tuple[VfDowntime, ...]
    accounts: "Accounts"

    def unix_seconds(self, at_ns: int) -> float | None:
        """Return CLOCK_BOOTTIME as Unix time; None without a clock sample."""
        ns = figures.realtime_ns(self.reading.snapshot.clock, at_ns)
        return None if ns is None else ns / 1e9


class Accounts:
    """The totals. Not thread-safe: its user holds a lock.

    `keep_ns`: how long ended VMs and migrations stay. `warn` gets lines for the operator.
    """

    def __init__(self, keep_ns: int, warn: Callable[[str], None]) -> None:
        self._keep_ns = keep_ns
        self._warn = warn
        self._seen: dict[tuple[str, int, int], _Seen] = {}
        self._totals: dict[str, VmTotals] = {}
        self._kept: dict[str, _Kept] = {}
        self._last_outcomes: dict[str, LastOutcome] = {}
        self._second: set[tuple[str, int]] = set()
        self._lost: dict[tuple[int, int], Loss] = {}
        self._vf_downtimes = VfDowntimes(UPDATE_NS)
        self.migrations: Counter[tuple[str, str, str]] = Counter()
        self.saves: Counter[tuple[str, str]] = Counter()
        self.incomplete = 0
        self.downtime = {kind: Histogram(DOWNTIME_BUCKETS) for kind in DOWNTIME_KINDS}
        self.phases = {
            (role, phase): Histogram(PHASE_BUCKETS)
            for role, phases in (
                (Role.SOURCE, SOURCE_PHASES),
                (Role.DESTINATION, DESTINATION_PHASES),
            )
            for phase in phases
        }
        self.sync = Histogram(SYNC_BUCKETS)

    def update(self, reading: Reading) -> View:
        """Add new events and forget old ones; returns the data that a scrape reads."""
        processes, migrations = self._count_all(reading)
        vms = self._views(self._kept, processes, migrations, reading)
        return View(reading, vms, self._vfs(vms, reading), self)

    def count(self, reading: Reading) -> None:
        """Count as `update` does, once a second or more often; an idle VM costs almost nothing."""
        processes, migrations = self._count_all(reading)
        migrating = {label: self._kept[label] for label in migrations if label in self._kept}
        self._vfs(self._views(migrating, processes, migrations, reading), reading)

    def _count_all(
        self, reading: Reading
    ) -> tuple[dict[str, list[Vm]], dict[str, list[Migration]]]:
        """Count; returns the processes and the migrations of each label."""
        snapshot = reading.snapshot
        self._find_second(snapshot)
        by_label: dict[str, list[Migration]] = {}
        for migration in snapshot.migrations:
            by_label.setdefault(self._label(migration), []).append(migration)
            try:
                self._add(migration, reading)
            except Exception as error:
                # An error on one migration must not end the metrics of the others.
                what = f"a migration of {self._label(migration)} is not counted"
                FAULTS.contained(Where.METRICS, error, what, (migration.pid,))
        identities = {figures.identity(migration) for migration in snapshot.migrations}
        self._seen = {key: seen for key, seen in self._seen.items() if key in identities}
        processes: dict[str, list[Vm]] = {}
        for vm in snapshot.vms:
            processes.setdefault(self._label(vm), []).append(vm)
        self._keep(processes, by_label, reading.now_ns)
        self._add_losses(snapshot.losses)
        return processes, by_label

    def _views(
        self,
        kept_by_label: Mapping[str, _Kept],
        processes: Mapping[str, list[Vm]],
        migrations: Mapping[str, list[Migration]],
        reading: Reading,
    ) -> tuple[VmView, ...]:
        vms: list[VmView] = []
        for label, kept in kept_by_label.items():
            try:
                mine = processes.get(label, []), migrations.get(label, [])
                vms.append(self._view(label, kept, *mine, reading))
            except Exception as error:
                FAULTS.contained(Where.METRICS, error, f"{label} has no metrics", (kept.vm.pid,))
        return tuple(vms)

    def _vfs(self, vms: Sequence[VmView], reading: Reading) -> tuple[VfDowntime, ...]:
        try:
            arrivals = dict(filter(None, map(_arrival, vms)))
            return self._vf_downtimes.update(reading.snapshot, arrivals, reading.now_ns)
        except Exception as error:
            FAULTS.contained(Where.METRICS, error, "virtual functions have no downtime")
            return ()

    # -- which process is which vm --------------------------------------------------------------

    def _label(self, thing: Vm | VmLoss | Migration) -> str:
        label = clean(thing.key)
        return f"{label}#{thing.pid}" if (thing.key, thing.pid) in self._second else label

    def _find_second(self, snapshot: Snapshot) -> None:
        """Mark the second of two VMs that run at once under one UUID and are not the two ends of a migration."""
        present = {(vm.key, vm.pid) for vm in snapshot.vms}
        present |= {(migration.key, migration.pid) for migration in snapshot.migrations}
        self._second &= present
        first: dict[str, Vm] = {}
        for vm in snapshot.vms:
            if not vm.running or (vm.key, vm.pid) in self._second:
                continue
            other = first.setdefault(vm.key, vm)
            if other is not vm and not _belong_together(vm, other, snapshot):
                self._second.add((vm.key, vm.pid))
                self._warn(
                    f"two VMs run with the UUID {clean(vm.key)}: the metrics of pid {vm.pid} have "
                    f'vm="{self._label(vm)}", those of pid {other.pid} the bare UUID'
                )

    def _keep(
        self, processes: dict[str, list[Vm]], migrations: dict[str, list[Migration]], now_ns: int
    ) -> None:
        labels = {vm.pid: label for label, vms in processes.items() for vm in vms}
        for label, vms in processes.items():
            running = next((vm for vm in vms if vm.running), vms[0])
            self._kept[label] = _Kept(running, now_ns)
        for label, found in migrations.items():
            if label not in self._kept:
                last = max(found, key=lambda m: m.started_at_ns)
                self._kept[label] = _Kept(_vm_of(last), last.ended_at_ns or now_ns)
        self._kept = {
            label: kept
            for label, kept in self._kept.items()
            if now_ns - kept.seen_ns <= self._keep_ns_of(label)
            # A process whose UUID is known now is not also an ended VM `pid-N`.
            and labels.get(kept.vm.pid, label) == label
        }
        ended = sorted(
            (kept.seen_ns, label) for label, kept in self._kept.items() if label not in processes
        )
        for _, label in ended[: max(0, len(ended) - MAX_ENDED_VMS)]:
            del self._kept[label]
        self._totals = {label: self._totals.get(label) or VmTotals() for label in self._kept}
        self._last_outcomes = {
            label: last for label, last in self._last_outcomes.items() if label in self._kept
        }

    def _keep_ns_of(self, label: str) -> int:
        return max(self._keep_ns, OUTCOME_KEEP_NS if label in self._last_outcomes else 0)

    def _view(
        self,
        label: str,
        kept: _Kept,
        processes: list[Vm],
        migrations: list[Migration],
        reading: Reading,
    ) -> VmView:
        shown = [m for m in migrations if self._is_recent(m, reading.now_ns)]
        return VmView(
            label=label,
            vm=kept.vm,
            paused=_paused(processes),
            devices=_devices(processes),
            source=_latest(shown, (Role.SOURCE, Role.STITCHED)),
            destination=_latest(shown, (Role.DESTINATION, Role.STITCHED)),
            totals=self._totals[label],
            last_outcome=self._last_outcomes.get(label),
        )

    def _is_recent(self, migration: Migration, now_ns: int) -> bool:
        ended = migration.ended_at_ns
        return migration.outcome is None or ended is None or now_ns - ended <= self._keep_ns

    # -- what only grows ------------------------------------------------------------------------

    def _add(self, migration: Migration, reading: Reading) -> None:
        seen = self._seen.setdefault(figures.identity(migration), _Seen())
        totals = self._totals.setdefault(self._label(migration), VmTotals())
        # Figures of a migration may be taken back (an fd turns out not to be its channel): a total
        # waits until they have grown past what it has.
        sent = migration.channel.bytes or 0
        totals.sent_bytes += max(0, sent - seen.sent_bytes)
        seen.sent_bytes = max(sent, seen.sent_bytes)
        for source, pages in _dirty_pages(migration).items():
            totals.dirty_pages[source] += max(0, pages - seen.dirty_pages[source])
            seen.dirty_pages[source] = max(pages, seen.dirty_pages[source])
        total = migration.brownout.total if migration.brownout is not None else None
        for state, ns in zip(STATES, total.ns if total is not None else (), strict=False):
            totals.vcpu_ns[state] += max(0, ns - seen.vcpu_ns[state])
            seen.vcpu_ns[state] = max(ns, seen.vcpu_ns[state])
        rounds = figures.dirty_sync_count(migration)
        totals.rounds += max(0, rounds - seen.rounds)
        seen.rounds = max(rounds, seen.rounds)
        # The newest dirty sync may not have ended yet.
        going_on = 0 if migration.outcome is not None else 1
        done = rounds - going_on
        latest = migration.rounds[: len(migration.rounds) - going_on]
        for round_ in latest[len(latest) - max(0, min(done - seen.syncs, len(latest))) :]:
            self.sync.observe(round_.duration_ns / 1e9)
        seen.syncs = max(seen.syncs, done)
        if settled(migration, reading):
            self._count(migration, seen, reading)

    def _add_losses(self, losses: Sequence[VmLoss]) -> None:
        """Add the losses of each process since the last call to its `vm`."""
        seen = self._lost
        self._lost = {(vm.pid, vm.first_seen_ns): vm.loss for vm in losses}
        for vm in losses:
            totals = self._totals.get(self._label(vm))
            if totals is not None:
                totals.lost += vm.loss.since(seen.get((vm.pid, vm.first_seen_ns), Loss()))

    def _count(self, migration: Migration, seen: _Seen, reading: Reading) -> None:
        if migration.kind != Kind.MOVE:
            self._count_save(migration, seen)
            return
        if not seen.counted:
            seen.counted = True
            outcome = migration.outcome or Outcome.UNKNOWN
            self.migrations[migration.role, migration.strategy, outcome] += 1
            self.incomplete += migration.incomplete
            self._remember(migration, outcome, reading.now_ns)
            trace = trace_id(migration, reading.host.boot_id) if reading.traced else None
            for kind, ns in downtimes(migration).items():
                self.downtime[kind].observe(ns / 1e9, trace)
        for phase in migration.phases:
            self._count_phase(phase, seen)

    def _remember(self, migration: Migration, outcome: Outcome, now_ns: int) -> None:
        last = LastOutcome(outcome, migration.cause, migration.ended_at_ns or now_ns)
        label = self._label(migration)
        before = self._last_outcomes.get(label)
        if before is None or before.ended_at_ns <= last.ended_at_ns:
            self._last_outcomes[label] = last

    def _count_save(self, migration: Migration, seen: _Seen) -> None:
        """Count a save or a load of a VM."""
        if not seen.counted:
            seen.counted = True
            self.saves[migration.kind, migration.outcome or Outcome.UNKNOWN] += 1

    def _count_phase(self, phase: PhaseSpan, seen: _Seen) -> None:
        key = phase.role, phase.name
        if phase.end_at_ns is None or key in seen.phases or key not in self.phases:
            return
        seen.phases.add(key)
        self.phases[key].observe((phase.end_at_ns - phase.start_at_ns) / 1e9)


def downtimes(migration: Migration) -> dict[str, int]:
    """Return each known kind of downtime, ns; `device` is the longest downtime of a device."""
    known = {"vcpu": migration.downtime.vcpu_ns, "device": figures.device_downtime_ns(migration)}
    return {kind: ns for kind, ns in known.items() if ns is not None}


def clean(text: str | None) -> str:
    """Return a bounded, printable label value, whatever a command line holds."""
    return figures.printable(str(text or "")[:_LONGEST_LABEL])


def settled(migration: Migration, reading: Reading) -> bool:
    """Whether a migration ended so long ago that no more events of it are expected."""
    return settled_at(migration, reading.now_ns, trace_ended=reading.ended)


def _belong_together(vm: Vm, other: Vm, snapshot: Snapshot) -> bool:
    pids = {vm.pid, other.pid}
    return any(
        {m.pid, m.peer_pid} == pids or (m.outcome is None and m.pid in pids)
        for m in snapshot.migrations
    )


def _paused(processes: list[Vm]) -> bool | None:
    known = [vm.running for vm in processes if vm.running is not None]
    return None if not known else not any(known)


def _devices(processes: list[Vm]) -> tuple[VmDevice, ...]:
    """Return the devices of all processes of a VM, each address once, those of the running process first."""
    ordered = sorted(processes, key=lambda vm: vm.running is not True)
    found: dict[str, VmDevice] = {}
    for device in (device for vm in ordered for device in vm.devices):
        found.setdefault(device.address, device)
    return tuple(found.values())


def _arrival(vm: VmView) -> tuple[int, int] | None:
    """Return the process that arrived here by migration, and when its guest ran."""
    m = vm.destination
    pid = None if m is None else m.pid if m.role == Role.DESTINATION else m.peer_pid
    at_ns = None if m is None else m.downtime.checkpoints[-1].at_ns
    return None if pid is None or at_ns is None else (pid, at_ns)


def _dirty_pages(migration: Migration) -> dict[str, int]:
    """New pages by what reported them, of those sources that are known."""
    dirty = migration.dirty
    known = {
        "kvm": figures.known_new_pages(migration),
        "vfio": dirty.vfio_pages,
        "iommu": dirty.iommu_pages,
    }
    return {source: pages for source, pages in known.items() if pages is not None}


def _latest(migrations: list[Migration], roles: tuple[str, ...]) -> Migration | None:
    mine = [m for m in migrations if m.role in roles]
    return max(mine, key=lambda m: m.started_at_ns, default=None)


def _vm_of(migration: Migration) -> Vm:
    """Return a VM of which only a migration is known."""
    return Vm(migration.key, migration.pid, migration.uuid, migration.name, None, None, None)
