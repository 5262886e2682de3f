# SPDX-License-Identifier: MIT
"""Makes snapshots of events: routes events to processes, finds the two sides of migrations, and forgets old ones."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

from msgspec.structs import astuple, replace

from vftrace import events
from vftrace.analysis.assemble import Sides, build_migration
from vftrace.analysis.calls.log import CallEvent
from vftrace.analysis.clock_samples import ClockSamples
from vftrace.analysis.devices.device import Transition
from vftrace.analysis.devices.mailbox_evidence import HostContext
from vftrace.analysis.devices.strategy import UNPLUG_WINDOW_NS
from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.devices.vf_phases import VfHistories
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.missed import MissedLog
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.pairing import PAIRING_EVENTS, Pair, Pairing, is_impostor, local_source
from vftrace.analysis.process import Process
from vftrace.analysis.sequence import SequenceTracker
from vftrace.analysis.unbuilt import unbuilt_migration
from vftrace.analysis.vcpus.log import VcpuEvent
from vftrace.events import COLLECTOR, NO_PROCESS, Event
from vftrace.faults import FAULTS, Where
from vftrace.model.migration import Migration, Placement, Snapshot, Vm, VmLoss

MAX_PROCESSES = 32_768
"""The most processes at once. Beyond that, as in a damaged recording, the oldest counts as ended."""

MAX_ENDED_PROCESSES = 256
"""How many ended processes are kept for other processes' migrations; the oldest are forgotten first."""

MAX_ENDED_MIGRATING = 1024
"""How many ended processes may have migrations that have not settled. Beyond that, the oldest settle at once."""


SETTLE_AFTER_NS = 30_000_000_000
SETTLE_EVERY_NS = 1_000_000_000
MAX_SETTLED = 1024
"""A migration that ended half a minute ago no longer changes, unless it waits for a device; and how many settled
migrations are kept."""

LOOK_AGAIN_NS = 20_000_000_000
"""How often a running migration is checked, so that its end is seen before it has to settle."""

MAX_UNSETTLED = 64
"""How many ended migrations of one process wait to settle. If a process makes them faster, the oldest settle at once:
every event of a process looks at its unsettled migrations."""

Unsettled = tuple[Process, OutgoingMigration | IncomingMigration, Pair | None]
"""A source's attempt with its pair if it has one, or a destination without a source."""

MAX_NETWORK = 4096
"""How many changes of interfaces and bridges are kept."""

STALL_NS = 150_000_000
"""The collector writes a tick every 100 to 120 ms (it polls for 20); if a tick is this late, the collector waited for a
CPU."""

MAX_INTERNAL_ERRORS = 1000
"""Failures after which only a process's end is still processed, because each failure costs much."""

GIVES_UP_NS = 10_000_000_000
"""A destination ends this soon after its source shuts the channel down; a later end has another reason."""


class Tracker:
    """Takes events in order of time; returns a `snapshot` at any time."""

    def __init__(self, mailboxes: Mailboxes | None = None) -> None:
        """`mailboxes`: with the tables of drivers whose messages are to be known."""
        self.mailboxes = Mailboxes() if mailboxes is None else mailboxes
        self._processes: dict[int, Process] = {}
        self._ended: list[Process] = []
        self._pairing = Pairing()
        self._user = SequenceTracker()
        self._collector_loss_ns: int | None = None
        self._unowned = SequenceTracker()
        self._mailbox_ns = 0
        self._mailbox_loss: tuple[int, int] | None = None
        self._transitions: Counter[Transition] = Counter()
        self._now_ns = 0
        self._events = 0
        self._lost = 0
        self._tables_full: dict[str, int] = {}
        self._untraced: dict[int, int] = {}
        self._missed_runs = MissedLog()
        self._unknown = 0
        self._clock = ClockSamples()
        self._ended_at_ns: int | None = None
        self._settled: list[Migration] = []
        self._settled_ns = 0
        self._network: deque[events.NetAddress | events.NetLink] = deque(maxlen=MAX_NETWORK)
        self._network_missed = 0
        self._tick_ns: int | None = None
        self._stalls: deque[tuple[int, int]] = deque(maxlen=MAX_NETWORK)
        self._recorded: events.RecordedMigration | None = None

    @property
    def now_ns(self) -> int:
        """The time of the latest event."""
        return self._now_ns

    def feed(self, event: Event) -> None:
        """Take one event. Never raises: senseless events are counted or ignored. An error in vftrace itself
        costs the event, and makes the migrations incomplete that it may belong to."""
        self._events += 1
        at_ns, tgid = event.at_ns, event.tgid
        if at_ns > self._now_ns:
            self._now_ns = at_ns
        kind = type(event)
        if kind is events.Unknown:
            self._unknown += 1
        if tgid in _UNOWNED:
            try:
                if tgid == COLLECTOR:
                    self._feed_own(event)
                else:
                    self._feed_unowned(event)
            except Exception as error:
                self._failed_unowned(event, error)
            return
        process = self._processes.get(tgid)
        if process is None:
            process = self._new_process(tgid, at_ns)
        stream = process.stream
        if kind is events.BitmapPart:
            # The records of their calls have their number.
            pass
        elif event.seq == stream.next:
            stream.next += 1
        elif not self._takes_out_of_sequence(process, event):
            return
        if process.internal_errors > MAX_INTERNAL_ERRORS and kind is not events.Exit:
            return
        try:
            process.feed(event)
            if len(process.outgoing) > process.settle_above:
                self._settle_oldest(process)
            if kind in PAIRING_EVENTS:
                self._pairing.feed(process, event, self._everyone)
        except Exception as error:
            self._failed_on(process, event, error)
        if kind is events.Exit:
            self._end(process, at_ns)

    def finish(self) -> None:
        """End the input: migrations that have not ended become `unknown`."""
        self._ended_at_ns = self._now_ns

    def _failed_on(self, process: Process, event: Event, error: Exception) -> None:
        what = (
            f"an event of {_key(process)} (pid {process.pid}) is ignored, its migration incomplete"
        )
        place = FAULTS.contained(Where.EVENT, error, what, (process.pid,))
        process.failed_on_event(event.at_ns, place)

    def _failed_unowned(self, event: Event, error: Exception) -> None:
        """Count an event of the collector or of a mailbox, on which vftrace failed, as lost."""
        concerned = self._processes.get(getattr(event, "pid", 0))
        if concerned is not None:
            self._failed_on(concerned, event, error)
        elif isinstance(event, _MAILBOX_EVENTS):
            FAULTS.contained(Where.MAILBOX, error, "a mailbox event is ignored")
            self._mailbox_gap(event.at_ns)
            self._unowned.overflow()
        else:
            FAULTS.contained(
                Where.EVENT, error, f"a record of kind {type(event).__name__} is ignored"
            )
            if self._collector_loss_ns is None:
                self._collector_loss_ns = event.at_ns

    # -- what goes on, for a recorder -----------------------------------------------------------

    def unsettled(self) -> list[Unsettled]:
        """Return the parts of migrations that may still change, without building the migrations."""
        return list(self._unsettled(self._everyone()))

    def build(self, part: Unsettled) -> Migration:
        """Build one of `unsettled`."""
        return self._build(*part, self._context(self._vf_histories(), self._everyone()))

    def waits_since_ns(self, pid: int) -> int | None:
        """Return when the first thread of a process began to read or switch on dirty logs and has not yet shown whether
        it migrates the VM; None without such a thread."""
        process = self._processes.get(pid)
        if process is None or not process.open:
            return None
        began = [a.started_at_ns for a in process.open.values() if not a.is_migration]
        return min(began, default=None)

    # -- the collector's own records ------------------------------------------------------------

    def _feed_own(self, event: Event) -> None:
        stream = self._user
        if event.seq == stream.next:
            stream.next += 1
        elif not stream.accept(event.seq):
            return
        elif self._collector_loss_ns is None and stream.holes:
            self._collector_loss_ns = event.at_ns
        take = _TAKES.get(type(event))
        if take is not None:
            take(self, event)

    def _name_fd(self, event: events.FileDescriptor) -> None:
        process = self._processes.get(event.pid)
        if process is not None:
            process.describe(event)

    def _name_device(self, event: events.Device) -> None:
        process = self._processes.get(event.pid)
        if process is not None:
            process.devices.identify(event)

    def _log_call(self, event: CallEvent) -> None:
        # A process's last calls are written after its end.
        process = self._latest(event.pid)
        if process is not None:
            process.calls.feed(event)

    def _log_vcpu(self, event: VcpuEvent) -> None:
        process = self._latest(event.pid)
        if process is not None:
            process.vcpus.feed(event)

    def _latest(self, pid: int) -> Process | None:
        """Return the process that has a pid, else the latest one that had it."""
        process = self._processes.get(pid)
        return process or next((p for p in reversed(self._ended) if p.pid == pid), None)

    def _gone(self, event: events.Gone) -> None:
        process = self._processes.get(event.pid)
        if process is not None:
            # It ended without a word: its last records are lost.
            process.last_loss_ns = event.at_ns
            self._end(process, event.at_ns)

    def _uncounted(self, event: events.Uncounted) -> None:
        process = self._processes.get(event.pid)
        if process is not None:
            process.lost.report(event)
            process.last_loss_ns = max(process.last_loss_ns or 0, event.at_ns)

    def _count_lost(self, event: events.Lost) -> None:
        self._lost = max(self._lost, event.count)

    def _count_lost_of(self, event: events.VmLost) -> None:
        process = self._latest(event.pid)
        if process is None:
            return
        before = process.lost.total.records
        process.lost.report(event)
        # A missing part of a bitmap shows when the parts of its call are counted.
        if event.records > before:
            process.last_loss_ns = max(process.last_loss_ns or 0, event.at_ns)

    def _change_network(self, event: events.NetAddress | events.NetLink) -> None:
        self._network.append(event)

    def _record_only(self, event: events.RecordedMigration) -> None:
        self._recorded = event

    def _count_full(self, event: events.TableFull) -> None:
        self._tables_full[event.table] = max(self._tables_full.get(event.table, 0), event.count)

    def _count_untraced(self, event: events.Untraced) -> None:
        self._untraced[event.uid] = max(self._untraced.get(event.uid, 0), event.count)

    def _miss_runs(self, event: events.MissedRuns) -> None:
        if self._missed_runs.report(event) and event.probe == "mailbox":
            # The message may be older than the latest recorded one.
            self._mailbox_ns = min(self._mailbox_ns, event.since_ns)
            self._mailbox_gap(event.until_ns)
            self._unowned.overflow()

    def _miss_network(self, event: events.NetMissed) -> None:
        self._network_missed = max(self._network_missed, event.count)

    def _tick(self, event: events.Tick) -> None:
        if self._tick_ns is not None and event.at_ns - self._tick_ns > STALL_NS:
            self._stalls.append((self._tick_ns, event.at_ns))
        self._tick_ns = event.at_ns
        if self._now_ns - self._settled_ns >= SETTLE_EVERY_NS:
            self._settle()
        self.mailboxes.feed(event)

    def _hear(self, event: events.MailboxFlood | events.VfAddress) -> None:
        self.mailboxes.feed(event)

    def _sample_clock(self, event: events.ClockSample) -> None:
        self._clock.add(event)

    def _settle(self) -> None:
        """Keep only the result of a migration that ended long ago, because bitmaps are large."""
        self._settled_ns = self._now_ns
        everyone = self._everyone()
        due = [each for each in self._unsettled(everyone) if self._may_settle(each[1])]
        self._drop(self._settle_parts(due, everyone) if due else set(), everyone)

    def _drop(self, done: set[int], everyone: list[Process]) -> None:
        """Forget the parts, by id, of migrations that have settled."""
        self._bound_settled()
        self._pairing.settle(done)
        for process in everyone:
            if process.outgoing:
                process.outgoing = [
                    outgoing
                    for outgoing in process.outgoing
                    if id(outgoing) not in done and (outgoing.is_migration or not outgoing.ended)
                ]
            if id(process.incoming) in done:
                process.incoming = None

    def _bound_settled(self) -> None:
        """Forget the oldest migrations of the process with most of them, until the limit is met."""
        excess = len(self._settled) - MAX_SETTLED
        if excess <= 0:
            return
        counts = Counter(migration.pid for migration in self._settled)
        forgotten: Counter[int] = Counter()
        for _ in range(excess):
            pid = counts.most_common(1)[0][0]
            counts[pid] -= 1
            forgotten[pid] += 1
        kept = []
        for migration in self._settled:
            if forgotten[migration.pid] > 0:
                forgotten[migration.pid] -= 1
            else:
                kept.append(migration)
        self._settled = kept

    def _settle_oldest(self, process: Process) -> None:
        """Settle all ended migrations of a process except the latest ones, as they are."""
        everyone = self._everyone()
        context = self._context(self._vf_histories(), everyone)
        oldest = {id(part) for part in process.outgoing[:-MAX_UNSETTLED] if part.ended}
        done: set[int] = set()
        for owner, part, pair in self._unsettled([process]):
            if id(part) in oldest:
                self._settled.append(self._contained(owner, part, pair, context, final=True))
                done.update(id(each) for each in (part, pair and pair.incoming) if each)
        self._drop(done, everyone)
        process.settle_above = 2 * max(MAX_UNSETTLED, len(process.outgoing))

    def _may_settle(self, part: OutgoingMigration | IncomingMigration) -> bool:
        """Whether it is time to check a part: a migration that began recently cannot have ended long ago."""
        began = part.started_at_ns if isinstance(part, OutgoingMigration) else part.first_act_ns
        return max(part.look_again_ns, began + SETTLE_AFTER_NS) <= self._now_ns

    def _settle_parts(self, due: Iterable[Unsettled], everyone: list[Process]) -> set[int]:
        """Settle the parts whose migration ended long enough ago; returns their ids.

        Building a migration is most of a tracer's work, so a running one is not checked every second.
        """
        done: set[int] = set()
        context = self._context(self._vf_histories(), everyone)
        for process, part, pair in due:
            migration = self._contained(process, part, pair, context)
            ended = migration.ended_at_ns
            after = UNPLUG_WINDOW_NS if migration.awaits_device else SETTLE_AFTER_NS
            if not migration.outcome or not ended:
                part.look_again_ns = self._now_ns + LOOK_AGAIN_NS
            elif self._now_ns - ended > after:
                self._settled.append(migration)
                done.update(id(each) for each in (part, pair and pair.incoming) if each)
            else:
                part.look_again_ns = ended + SETTLE_AFTER_NS
        return done

    def _compare_streams(self, event: events.End) -> None:
        """Take the writer's list of processes that had not ended, with the number of records of each."""
        mailbox_records = event.streams.get(NO_PROCESS, 0)
        if self._unowned.skips_to(mailbox_records):
            self._mailbox_gap(event.at_ns)
        self._unowned.ends_at(mailbox_records)
        for process in self._processes.values():
            next_seq = event.streams.get(process.pid)
            if next_seq is None:
                # It ended without a word: its last records are lost.
                process.last_loss_ns = event.at_ns
                continue
            if process.stream.skips_to(next_seq):
                process.last_loss_ns = event.at_ns

    def _identify(self, event: events.Process) -> None:
        process = self._processes.get(event.pid)
        if process is None:
            process = self._new_process(event.pid, event.at_ns)
        elif process.was_replaced_by(event):
            before = process
            self._end(before, event.at_ns)
            process = self._new_process(event.pid, event.at_ns)
            process.follows(before)
        process.identity = event
        if process.incoming is not None:
            process.incoming.started_paused = event.started_paused

    # -- the kernel side's records ---------------------------------------------------------------

    def _feed_unowned(self, event: Event) -> None:
        """Take an event of a mailbox, which belongs to a card, whatever process its interrupt hit."""
        if self._unowned.skips_to(event.seq):
            self._mailbox_gap(event.at_ns)
        self._mailbox_ns = event.at_ns
        if self._unowned.accept(event.seq):
            self.mailboxes.feed(event)

    def _mailbox_gap(self, at_ns: int) -> None:
        """Note that records of mailboxes are missing or late between the latest one and this time."""
        first = self._mailbox_ns if self._mailbox_loss is None else self._mailbox_loss[0]
        self._mailbox_loss = first, at_ns

    def _takes_out_of_sequence(self, process: Process, event: Event) -> bool:
        """Take a record whose number is not the next one; returns whether the record is new."""
        lost = process.stream.skips_to(event.seq)
        if not process.stream.accept(event.seq):
            return False
        if lost:
            process.lost_something(event.at_ns)
        return True

    def _new_process(self, pid: int, at_ns: int) -> Process:
        if len(self._processes) >= MAX_PROCESSES:
            oldest = next(iter(self._processes.values()))
            oldest.last_loss_ns = at_ns
            self._end(oldest, at_ns)
        process = Process(pid, at_ns)
        process.devices.transitions = self._transitions
        process.settle_above = 2 * MAX_UNSETTLED
        self._processes[pid] = process
        return process

    def _everyone(self) -> list[Process]:
        """Return all known processes, those that ended first."""
        return [*self._ended, *self._processes.values()]

    def _end(self, process: Process, at_ns: int) -> None:
        process.end(at_ns)
        process.slots.clear()
        process.pieces.clear()
        self._processes.pop(process.pid, None)
        self._ended.append(process)
        if len(self._ended) > MAX_ENDED_PROCESSES:
            self._forget_one()

    def _forget_one(self) -> None:
        """Forget the oldest ended process that had no migration, because others seldom need it. A process whose
        migration has not settled is forgotten only if there are very many of them; then its migration settles as it
        is."""
        for at, process in enumerate(self._ended):
            if not process.migrates:
                self._pairing.forget(self._ended.pop(at))
                return
        if len(self._ended) <= MAX_ENDED_MIGRATING:
            return
        oldest = self._ended[0]
        everyone = self._everyone()
        context = self._context(self._vf_histories(), everyone)
        for process, part, pair in list(self._unsettled(everyone)):
            if process is oldest:
                self._settled.append(self._contained(process, part, pair, context, final=True))
        self._bound_settled()
        self._ended.remove(oldest)
        self._pairing.forget(oldest)

    # -- results --------------------------------------------------------------------------------

    def snapshot(self, *, brief: bool = False) -> Snapshot:
        """Return everything that is known now, immutable.

        `brief`: migrations that may still change have no time line of the guest's speed, which takes half of the time.
        """
        histories = self._vf_histories()
        return Snapshot(
            at_ns=self._now_ns,
            vms=tuple(self._vm(process) for process in self._processes.values()),
            migrations=self._migrations(histories, brief=brief),
            events=self._events,
            lost=self._lost,
            unknown_records=self._unknown,
            clock=tuple(self._clock.kept),
            vfs=tuple(histories.values()),
            transitions=tuple((*key, n) for key, n in sorted(self._transitions.items())),
            vfs_incomplete=self._unowned.holes,
            network=tuple(self._network),
            network_missed=self._network_missed,
            stalls=tuple(self._stalls),
            tables_full=tuple(sorted(self._tables_full.items())),
            untraced=tuple(sorted(self._untraced.items())),
            losses=self._vm_losses(),
            missed_runs=self._missed_runs.total,
        )

    def _vm_losses(self) -> tuple[VmLoss, ...]:
        found = (
            VmLoss(_key(process), process.pid, process.first_seen_ns, process.lost.total)
            for process in self._everyone()
            if process.lost
        )
        return tuple(sorted(found, key=lambda vm: sum(astuple(vm.loss)), reverse=True))

    def _vf_histories(self) -> VfHistories:
        return {(history.pf, history.vf): history for history in self.mailboxes.vf_histories()}

    def _vm(self, process: Process) -> Vm:
        identity = process.identity
        try:
            paused, devices = process.paused, process.devices.shown()
        except Exception as error:
            what = f"{_key(process)} (pid {process.pid}) is shown without state and devices"
            FAULTS.contained(Where.VM, error, what, (process.pid,))
            paused, devices = None, ()
        state = identity, process.created_at_ns, paused, devices
        if process.shown is not None and process.shown[0] == state:
            return process.shown[1]
        vm = Vm(
            key=_key(process),
            pid=process.pid,
            uuid=identity.uuid if identity else None,
            name=identity.name if identity else None,
            vmm=identity.vmm if identity else None,
            started_at_ns=process.created_at_ns,
            running=None if paused is None else not paused,
            devices=devices,
            placement=Placement(identity.namespace, identity.vmi, identity.pod_uid, identity.vmid)
            if identity
            else Placement(),
        )
        process.shown = state, vm
        return vm

    def _migrations(self, histories: VfHistories, *, brief: bool) -> tuple[Migration, ...]:
        everyone = self._everyone()
        context = self._context(histories, everyone)
        unsettled = (
            self._contained(*part, context, brief=brief) for part in self._unsettled(everyone)
        )
        found = sorted((*self._settled, *unsettled), key=lambda m: (m.started_at_ns, m.pid))
        return _only(self._recorded, found) if self._recorded is not None else tuple(found)

    def _context(self, histories: VfHistories, everyone: list[Process]) -> HostContext:
        loss = self._mailbox_loss if self._unowned.holes else None
        return HostContext(
            histories, everyone, self._now_ns, loss, self.mailboxes.names_roles, self._missed_runs
        )

    def _unsettled(self, everyone: list[Process]) -> Iterator[Unsettled]:
        """Yield the parts of migrations that may still change."""
        by_outgoing = {id(pair.outgoing): pair for pair in self._pairing.pairs}
        paired = {id(pair.incoming) for pair in self._pairing.pairs}
        for process in everyone:
            for outgoing in process.outgoing:
                if outgoing.is_migration:
                    yield process, outgoing, by_outgoing.get(id(outgoing))
            if process.incoming is not None and id(process.incoming) not in paired:
                yield process, process.incoming, None

    def _contained(
        self,
        process: Process,
        part: OutgoingMigration | IncomingMigration,
        pair: Pair | None,
        context: HostContext,
        *,
        final: bool = False,
        brief: bool = False,
    ) -> Migration:
        """Do `_build`; if it fails, return the migration without figures, so that the others are still shown."""
        try:
            return self._build(process, part, pair, context, final=final, brief=brief)
        except Exception as error:
            peer = None if pair is None else pair.destination
            pids = (process.pid,) if peer is None else (process.pid, peer.pid)
            what = f"a migration of {_key(process)} (pid {process.pid}) is shown without figures"
            place = FAULTS.contained(Where.MIGRATION, error, what, pids)
            trace_ended = self._now_ns if final else self._ended_at_ns
            return unbuilt_migration(_key(process), process, part, peer, trace_ended, place)

    def _build(
        self,
        process: Process,
        part: OutgoingMigration | IncomingMigration,
        pair: Pair | None,
        context: HostContext,
        *,
        final: bool = False,
        brief: bool = False,
    ) -> Migration:
        """Build the migration of a part. `final`: without an outcome now it will not get one."""
        sides = Sides(
            key=_key(process),
            context=context,
            collector_loss_ns=self._collector_loss_ns,
            peer_loss_ns=None if pair else _peer_loss(process, context),
            trace_ended_ns=self._now_ns if final else self._ended_at_ns,
            brief=brief,
        )
        if isinstance(part, IncomingMigration):
            shares = local_source(process, context.processes)
            if shares is not None:
                return build_migration(replace(sides, source=shares, destination=(process, part)))
            contested = is_impostor(process, context.processes)
            return build_migration(replace(sides, destination=(process, part), contested=contested))
        return build_migration(
            replace(
                sides,
                source=(process, part),
                destination=(pair.destination, pair.incoming) if pair else None,
                peer_ended_ns=self._peer_ended(process, part),
                contested=pair is not None and pair.contested,
            )
        )

    def _peer_ended(self, source: Process, outgoing: OutgoingMigration) -> int | None:
        """Return when a destination of the same UUID, which never ran, ended during the attempt or because of its
        end."""
        uuid = source.uuid
        over = outgoing.over_at_ns or outgoing.process_ended_at_ns or self._now_ns
        for process in self._ended:
            ended = process.ended_at_ns
            if (
                uuid is not None
                and process is not source
                and process.uuid == uuid
                and process.waits
                and ended is not None
                and outgoing.started_at_ns <= ended <= over + GIVES_UP_NS
            ):
                return ended
        return None


def _peer_loss(process: Process, context: HostContext) -> int | None:
    """Return the time of the latest loss of a process that may be the other side of a migration of which only
    `process` is known."""
    doubts = (
        p.last_loss_ns
        for p in context.lossy
        if p.last_loss_ns is not None and p is not process and _may_be_peer(p, process)
    )
    return max(doubts, default=None)


def _may_be_peer(other: Process, process: Process) -> bool:
    """Whether another process may be the other side of this one's migration: it has the same UUID. If neither has a
    UUID, as with VMMs other than QEMU, a source's destination is a process that has not run before."""
    if other.uuid != process.uuid:
        return False
    if process.uuid is not None or not process.outgoing:
        return True
    began = min(part.started_at_ns for part in process.outgoing)
    return not other.has_run or (other.first_run_ns or 0) > began


def _only(recorded: events.RecordedMigration, found: list[Migration]) -> tuple[Migration, ...]:
    """Return the migration that a recording was kept for; other migrations in it lack a beginning or an end."""
    mine = [m for m in found if recorded.pid in (m.pid, m.peer_pid)]
    if not mine:
        return ()
    m = min(mine, key=lambda m: abs(m.started_at_ns - recorded.started_at_ns))
    return (replace(m, attempt=recorded.attempt),)


def _key(process: Process) -> str:
    return process.uuid or f"pid-{process.pid}"


_UNOWNED = frozenset((COLLECTOR, NO_PROCESS))

_MAILBOX_EVENTS = (
    events.Mailbox,
    events.Virtchnl,
    events.VfReset,
    events.VfAddress,
    events.MailboxFlood,
)

_TAKES: dict[type[Event], Callable[[Tracker, Any], None]] = {
    events.Process: Tracker._identify,
    events.FileDescriptor: Tracker._name_fd,
    events.Device: Tracker._name_device,
    events.Gone: Tracker._gone,
    events.Uncounted: Tracker._uncounted,
    events.Lost: Tracker._count_lost,
    events.TableFull: Tracker._count_full,
    events.Untraced: Tracker._count_untraced,
    events.MissedRuns: Tracker._miss_runs,
    events.RecordedMigration: Tracker._record_only,
    events.VmLost: Tracker._count_lost_of,
    events.NetAddress: Tracker._change_network,
    events.NetLink: Tracker._change_network,
    events.NetMissed: Tracker._miss_network,
    events.ClockSample: Tracker._sample_clock,
    events.Tick: Tracker._tick,
    **dict.fromkeys(get_args(CallEvent), Tracker._log_call),
    **dict.fromkeys(get_args(VcpuEvent), Tracker._log_vcpu),
    events.MailboxFlood: Tracker._hear,
    events.VfAddress: Tracker._hear,
    events.End: Tracker._compare_streams,
}
"""The method that takes one of the collector's own events, by its type."""
