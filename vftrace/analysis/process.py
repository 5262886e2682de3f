"""One VMM process: its memslots, channels and vCPUs, and the outgoing and incoming migrations found in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from vftrace import events
from vftrace.analysis import dirty
from vftrace.analysis.devices.device import Devices, PassedDevice, VfioEvent
from vftrace.analysis.dirty import Bitmap, SlotLog, bitmap_of
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.sequence import SequenceTracker
from vftrace.events import Event
from vftrace.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, PAGE_SIZE

# A burst is one thread switching logging on slot by slot (QEMU memory_global_dirty_log_start).
BURST_NS = 1_000_000_000
_MAX_PENDING_PIECES = 65536


@dataclass
class MemorySlot:
    """What the last region call said of a slot."""

    size: int
    flags: int
    log: SlotLog | None


@dataclass
class Process:
    """The state of one process, fed with its events in order of time."""

    pid: int
    first_seen_ns: int
    stream: SequenceTracker = field(default_factory=SequenceTracker)
    identity: events.Process | None = None
    created_at_ns: int | None = None
    slots: dict[int, MemorySlot] = field(default_factory=dict)
    manual_protect: int | None = None
    channels: dict[int, events.Channel] = field(default_factory=dict)
    descriptors: dict[int, events.FileDescriptor] = field(default_factory=dict)
    pieces: dict[tuple[int, int], list[events.Piece]] = field(default_factory=dict)
    switched_on: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By thread: (time, slot) of the flags it switched on in its last burst."""
    vcpu_threads: set[int] = field(default_factory=set)
    devices: Devices = field(default_factory=Devices)
    outgoing: list[OutgoingMigration] = field(default_factory=list)
    attempts: int = 0
    """How many migrations it began before the latest attempt."""
    current: OutgoingMigration | None = None
    incoming: IncomingMigration | None = None
    last_state_ns: int | None = None
    last_run_ns: int | None = None
    first_run_ns: int | None = None
    last_stop_ns: int | None = None
    ended_at_ns: int | None = None
    last_event_ns: int = 0
    last_loss_ns: int | None = None
    """When something went missing or came out of order, latest."""
    pieces_held: int = 0
    ring_untracked: int = 0

    @property
    def peers(self) -> dict[int, str | None]:
        """The remote address of each fd that is a TCP socket."""
        return {fd: found.peer for fd, found in self.descriptors.items()}

    def kind_of(self, fds: set[int]) -> str:
        """What these fds are, `unknown` where they differ or were not seen."""
        kinds = {self.descriptors[fd].kind for fd in fds if fd in self.descriptors}
        return kinds.pop() if len(kinds) == 1 else "unknown"

    def writes_file(self, outgoing: OutgoingMigration) -> bool:
        """Whether a migration's stream goes to a file: nobody receives it."""
        return self.kind_of(outgoing.channel_fds(self.peers)) == "file"

    @property
    def uuid(self) -> str | None:
        """The VM's UUID by its command line."""
        return self.identity.uuid if self.identity else None

    @property
    def has_run(self) -> bool:
        """Whether a vCPU of it was ever in the guest."""
        return self.first_run_ns is not None or (
            self.identity is not None and self.identity.running
        )

    @property
    def waits(self) -> bool:
        """Whether this is a destination that has not run yet, by its command line."""
        return self.identity is not None and self.identity.incoming and not self.has_run

    @property
    def paused(self) -> bool | None:
        """Whether its vCPUs are stopped: the clock was read since they last ran, or they never ran."""
        if self.last_stop_ns is not None or self.last_run_ns is not None:
            return (self.last_stop_ns or 0) > (self.last_run_ns or 0)
        if self.identity is not None and self.identity.running:
            return False
        return True if self.created_at_ns is not None and self.last_loss_ns is None else None

    def released_ns(self, device: PassedDevice) -> int | None:
        """When the process closed a device, or ended with it open; None while it has the device.

        An end is not a `closed_at_ns`: only a device that a running VMM closes was unplugged.
        """
        return device.closed_at_ns if device.closed_at_ns is not None else self.ended_at_ns

    def has_open(self, device: PassedDevice, at_ns: int) -> bool:
        """Whether the process had the device open at a time."""
        released = self.released_ns(device)
        opened = device.opened_at_ns or 0
        return opened <= at_ns and (released is None or at_ns < released)

    def feed(self, event: Event) -> None:
        """Take one event of this process. Never raises on content."""
        if event.at_ns >= self.last_event_ns:
            self.last_event_ns = event.at_ns
        elif not isinstance(event, events.Piece):
            self.last_loss_ns = max(self.last_loss_ns or 0, self.last_event_ns)
        take = _TAKES.get(type(event))
        if take is not None:
            take(self, event)

    def lost_something(self, at_ns: int) -> None:
        """A record is missing: forget what it may have changed."""
        self.last_loss_ns = max(self.last_loss_ns or 0, at_ns)
        if not self.vcpu_threads:
            # QEMU asks for it before it makes vCPUs (accel/kvm/kvm-all.c, kvm_init), and once.
            self.manual_protect = None
        for slot in self.slots.values():
            if slot.log is not None:
                slot.log.damaged()
        if self.current is None:
            self.slots.clear()

    def _vm_created(self, event: events.VmCreated) -> None:
        self.created_at_ns = event.at_ns
        self.manual_protect = 0

    def _vcpu_created(self, event: events.VcpuCreated) -> None:
        self.vcpu_threads.add(event.tid)

    def _exit(self, event: events.Exit) -> None:
        self.end(event.at_ns)

    def end(self, at_ns: int) -> None:
        """The process is no more."""
        if self.ended_at_ns is not None:
            return
        self.ended_at_ns = at_ns
        if self.current is not None:
            self.current.process_ended_at_ns = at_ns
            self.current = None
        if self.incoming is not None and self.incoming.ended_at_ns is None:
            self.incoming.ended_at_ns = at_ns

    # -- memory ---------------------------------------------------------------------------------

    def _region(self, event: events.Region) -> None:
        if event.ret != 0:
            return
        before = self.slots.get(event.slot)
        was_on = before is not None and bool(before.flags & KVM_MEM_LOG_DIRTY_PAGES)
        is_on = bool(event.flags & KVM_MEM_LOG_DIRTY_PAGES)
        if was_on and is_on and self.last_loss_ns is not None:
            # Nobody asks for what is there (kvm_slot_update_flags): that it went off is lost.
            was_on = False
        largest = max((slot.size for slot in self.slots.values()), default=0)
        if event.size == 0:
            self.slots.pop(event.slot, None)
            return
        log = before.log if before is not None and was_on and before.size == event.size else None
        if is_on and log is None:
            log = self._new_log(event.size)
        self.slots[event.slot] = MemorySlot(event.size, event.flags, log if is_on else None)
        if is_on and not was_on:
            self._switched_on(event, max(largest, event.size))
        elif was_on and not is_on and event.size >= largest:
            self._switched_off(event)

    def _new_log(self, size: int) -> SlotLog:
        flags = self.manual_protect
        return SlotLog(
            pages=size // PAGE_SIZE,
            manual=None if flags is None else bool(flags & 1),
            initially_set=None if flags is None else bool(flags & 2),
        )

    def _switched_on(self, event: events.Region, largest: int) -> None:
        burst = self.switched_on.setdefault(event.tid, [])
        if burst and event.at_ns - burst[0][0] > BURST_NS:
            burst.clear()
        burst.append((event.at_ns, event.slot))
        if event.size < largest or not self._may_migrate(event.tid):
            return
        if (
            self.current is not None
            and self.last_loss_ns is not None
            and event.tid != self.current.tid
        ):
            # the end of what another thread began is lost
            self.current.logging_off_at_ns, self.current = burst[0][0], None
        if self.current is None:
            self._open_outgoing(event.tid, burst[0][0])

    def _may_migrate(self, tid: int) -> bool:
        """Whether a thread may be a migration's: neither a vCPU nor the main thread is. The main thread logs for
        a display, and for an internal snapshot (QEMU migration/savevm.c, save_snapshot)."""
        return tid not in self.vcpu_threads and tid != self.pid

    def _open_outgoing(self, tid: int, at_ns: int, *, missed_beginning: bool = False) -> None:
        if self.outgoing and self.outgoing[-1].is_migration:
            self.attempts = self.outgoing[-1].number + 1
        outgoing = OutgoingMigration(
            pid=self.pid,
            tid=tid,
            number=self.attempts,
            started_at_ns=at_ns,
            baseline={fd: channel.bytes for fd, channel in self.channels.items()},
            baseline_errors={fd: channel.error_ns for fd, channel in self.channels.items()},
            paused_before=self._surely_paused(),
            uncertain=self._uncertain(),
            missed_beginning=missed_beginning,
        )
        self.current = outgoing
        self.outgoing.append(outgoing)
        if len(self.outgoing) > 64:
            self.outgoing = [s for s in self.outgoing if s.is_migration or s is self.current]

    def _surely_paused(self) -> bool | None:
        """Whether its vCPUs are stopped; None if a record that said otherwise may be missing."""
        said = max(self.last_stop_ns or 0, self.last_run_ns or 0)
        return self.paused if self.last_loss_ns is None or self.last_loss_ns < said else None

    def _uncertain(self) -> frozenset[int] | None:
        """The fds whose totals may have gone on since they were last reported; None: no record is missing."""
        doubt = self.last_loss_ns
        if doubt is None:
            return None
        return frozenset(fd for fd, channel in self.channels.items() if channel.at_ns <= doubt)

    def _switched_off(self, event: events.Region) -> None:
        if self.current is not None:
            self.current.logging_off_at_ns = event.at_ns
            self.current = None
        self.switched_on.clear()

    def _capability(self, event: events.Capability) -> None:
        if event.ret == 0 and event.cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
            self.manual_protect = event.arg0

    # -- dirty logs -----------------------------------------------------------------------------

    def _piece(self, event: events.Piece) -> None:
        if self.pieces_held >= _MAX_PENDING_PIECES:
            oldest = next(iter(self.pieces))
            self.pieces_held -= len(self.pieces.pop(oldest))
        self.pieces.setdefault((event.tid, event.call_ns), []).append(event)
        self.pieces_held += 1

    def _take_pieces(self, tid: int, call_ns: int) -> list[events.Piece]:
        """The pieces of one call. Older ones of the same thread belong to nothing any more."""
        mine = self.pieces.pop((tid, call_ns), [])
        for key in [key for key in self.pieces if key[0] == tid and key[1] < call_ns]:
            del self.pieces[key]
        self.pieces_held = sum(len(rest) for rest in self.pieces.values())
        return mine

    def _get_dirty_log(self, event: events.GetDirtyLog) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        slot = self.slots.get(event.slot)
        log = None if slot is None else slot.log
        if event.ret != 0:
            return
        if slot is None:
            self._maybe_missed_beginning(event)
        whole = (
            event.bitmap_bytes > 0
            and event.walked_bytes == event.bitmap_bytes
            and event.read_errors == 0
            and len(pieces) == event.pieces
        )
        bitmap = bitmap_of(pieces) if whole else None
        if log is not None:
            if bitmap is None:
                log.damaged()
            else:
                log.got(bitmap)
        if self.current is not None and event.tid == self.current.tid:
            self.current.got_dirty_log(event, log, bitmap)

    def _maybe_missed_beginning(self, event: events.GetDirtyLog) -> None:
        """A thread other than the main one reads the log of slots we never saw: vftrace came late."""
        late = self.identity is not None and self.identity.late
        current = self.current
        # a guess that has sent nothing gives way to the next
        guess = current is not None and current.missed_beginning and not current.is_migration
        other = current is None or (guess and current.tid != event.tid)
        if late and other and event.tid != self.pid:
            self._open_outgoing(event.tid, event.enter_ns, missed_beginning=True)

    def _clear_dirty_log(self, event: events.ClearDirtyLog) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        slot = self.slots.get(event.slot)
        if slot is None or slot.log is None or event.ret < 0:
            return
        whole = (
            event.walked_bytes == event.bitmap_bytes
            and event.read_errors == 0
            and len(pieces) == event.pieces
        )
        if whole:
            slot.log.cleared(bitmap_of(pieces))
        else:
            slot.log.damaged()
            slot.log.shadow = {}

    def _reset_rings(self, event: events.ResetDirtyRings) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        untracked, self.ring_untracked = event.untracked - self.ring_untracked, event.untracked
        by_slot: dict[int, list[events.Piece]] = {}
        for piece in pieces:
            by_slot.setdefault(piece.slot, []).append(piece)
        whole = len(pieces) == event.pieces and untracked <= 0
        for number, slot in self.slots.items():
            if slot.log is None:
                continue
            if whole:
                # The ring's pages are new by nature: nothing is left over from before.
                slot.log.manual = False
                slot.log.got(bitmap_of(by_slot.get(number, [])))
            else:
                slot.log.damaged()
        if self.current is not None and event.tid == self.current.tid:
            self.current.reset_rings(event, self._take_ring())

    def _take_ring(self) -> dict[int, Bitmap] | None:
        """What all slots gathered since the last sweep; None if a part is missing."""
        taken: dict[int, Bitmap] = {}
        whole = True
        for number, slot in self.slots.items():
            if slot.log is not None:
                fresh, _ = slot.log.take()
                if fresh is None:
                    whole = False
                else:
                    taken[number] = fresh
        return taken if whole else None

    # -- vCPUs and clock ------------------------------------------------------------------------

    def _run(self, event: events.Run) -> None:
        self.vcpu_threads.add(event.tid)
        self.last_run_ns = event.at_ns
        if self.first_run_ns is None:
            self.first_run_ns = event.at_ns
        if self.current is not None:
            self.current.ran(event.at_ns)
        for earlier in self.outgoing:
            if earlier is not self.current and earlier.stop is not None:
                earlier.ran(event.at_ns)
        incoming = self.incoming
        if incoming is not None and incoming.running_at_ns is None:
            incoming.running_at_ns = event.at_ns

    def _clock(self, event: events.Clock) -> None:
        if event.op == events.Clock.GET and event.last_exit_ns:
            self.last_stop_ns = event.at_ns
            if self.current is not None and event.tid == self.current.tid:
                self.current.clock_read(event)
        elif event.op == events.Clock.SET and (self.waits or self._takes_over(event)):
            self._arrive(event.at_ns)
            assert self.incoming is not None
            self.incoming.clock_set_at_ns = event.at_ns
            self.incoming.clock_asked_at_ns = event.enter_ns
            self.incoming.guest_clock_ns = event.clock or None
            if self.incoming.loaded_at_ns is None:
                self.incoming.loaded_at_ns = self.last_state_ns

    def _takes_over(self, event: events.Clock) -> bool:
        """Whether a guest that has not run yet is given a clock that shows more than its VM has lived: it
        is another's. KVM starts the clock of a VM at 0 (arch/x86/kvm/x86.c, kvm_arch_init_vm)."""
        created = self.created_at_ns
        if created is None or self.has_run or event.ret != 0:
            return False
        return event.clock > event.at_ns - created

    def _vcpu_state(self, event: events.VcpuState) -> None:
        self.last_state_ns = event.at_ns
        if self.incoming is not None and self.incoming.clock_set_at_ns is None:
            self.incoming.loaded_at_ns = event.at_ns

    def loads_state(self, at_ns: int) -> None:
        """The tracker says that what this process does now belongs to a migration that runs."""
        self._arrive(at_ns)

    def _arrive(self, at_ns: int) -> None:
        if self.incoming is None:
            paused = self.identity is not None and self.identity.started_paused
            self.incoming = IncomingMigration(self.pid, paused, at_ns)

    # -- passed-through devices -----------------------------------------------------------------

    def _vfio(self, event: VfioEvent) -> None:
        self.devices.feed(event)
        if isinstance(event, events.VfioClose) and self.current is not None:
            self.current.closed_device(event.fd, event.at_ns)
        wanted = isinstance(event, events.VfioState) and event.asks_for(events.VfioState.RESUMING)
        if wanted and not self.has_run:
            self._arrive(event.at_ns)

    def _vfio_dirty(self, event: events.VfioDirty) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        if self.current is None or event.ret != 0:
            return
        whole = (
            event.walked_bytes == event.bitmap_bytes
            and event.read_errors == 0
            and len(pieces) == event.pieces
        )
        pages = dirty.count(bitmap_of(pieces)) if whole else None
        self.current.got_dma_pages(event.by == events.VfioDirtyTracking.DEVICE, pages)

    # -- channels -------------------------------------------------------------------------------

    def _channel(self, event: events.Channel) -> None:
        before = self.channels.get(event.fd)
        if before is not None and event.bytes < before.bytes:
            return
        self.channels[event.fd] = event
        # what is reported late was sent while an earlier attempt ran
        began = [s for s in self.outgoing if s.started_at_ns < event.last_ns]
        if began:
            began[-1].sent(event)
        for later in self.outgoing[len(began) :]:
            if event.fd not in later.channels:
                later.baseline[event.fd] = event.bytes

    def _burst(self, event: events.Burst) -> None:
        if self.current is not None:
            self.current.burst(event)

    def _userfault(self, event: events.Userfault) -> None:
        if event.op in (events.Userfault.API, events.Userfault.REGISTER):
            return
        if event.op == events.Userfault.UNREGISTER:
            incoming = self.incoming
            if incoming is not None and incoming.postcopy_first_ns is not None:
                incoming.postcopy_done_ns = event.at_ns
            return
        self._arrive(event.at_ns)
        assert self.incoming is not None
        if self.incoming.postcopy_first_ns is None:
            self.incoming.postcopy_first_ns = event.at_ns
        self.incoming.postcopy_last_ns = event.at_ns
        self.incoming.postcopy_bytes = max(self.incoming.postcopy_bytes, event.bytes)


_TAKES: dict[type[Event], Callable[[Process, Any], None]] = {
    events.Piece: Process._piece,
    events.GetDirtyLog: Process._get_dirty_log,
    events.ClearDirtyLog: Process._clear_dirty_log,
    events.ResetDirtyRings: Process._reset_rings,
    events.Region: Process._region,
    events.Capability: Process._capability,
    events.Run: Process._run,
    events.Clock: Process._clock,
    events.VcpuState: Process._vcpu_state,
    events.Channel: Process._channel,
    events.Burst: Process._burst,
    events.Userfault: Process._userfault,
    events.VmCreated: Process._vm_created,
    events.VcpuCreated: Process._vcpu_created,
    events.VfioDirty: Process._vfio_dirty,
    events.Exit: Process._exit,
    **dict.fromkeys(get_args(VfioEvent), Process._vfio),
}
"""What takes an event, by its type: one look-up, because every event comes through here."""
