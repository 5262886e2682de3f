# SPDX-License-Identifier: MIT
"""One VMM process: its memslots, channels and vCPUs, and the outgoing and incoming migrations found in them."""

from collections.abc import Callable
from typing import Any, get_args

import msgspec

from vftrace import events
from vftrace.analysis.calls.log import CallLog
from vftrace.analysis.devices.device import Devices, PassedDevice, VfioEvent
from vftrace.analysis.dirty import SlotLog, bitmap_of
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.largest import Largest
from vftrace.analysis.losses import LossLog
from vftrace.analysis.outgoing import STOPPED_FOR_IT_NS, OutgoingMigration
from vftrace.analysis.sequence import SequenceTracker
from vftrace.analysis.vcpus.log import VcpuLog
from vftrace.events import Event
from vftrace.events.layout import BITMAP_WORDS, PIECE_WORDS
from vftrace.model.migration import CHANNEL_KINDS, Vm
from vftrace.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, PAGE_SIZE

# A burst is one thread switching logging on slot by slot (QEMU memory_global_dirty_log_start).
BURST_NS = 1_000_000_000
_MAX_PENDING_PIECES = 65536
"""How many pieces of bitmaps, of 4 KiB, wait for the record of their call: 256 MiB, enough for a VM of 8 TiB."""
_PIECES_OF_PART = BITMAP_WORDS // PIECE_WORDS
MAX_OPEN = 64
"""The most attempts of one process at once; beyond that, the oldest one that is not a migration ends."""

MAX_ATTEMPTS = 64
"""How many attempts of one process are kept besides migrations."""

NEXT_LIFE = 1 << 32
_SENT_BY_THE_END = (events.ThreadExit, events.Exit, events.Channel, events.Burst)
"""The events that the kernel side sends when a thread or a process ends (bpf/process.h)."""

FILE_OPS = (4, 5)
SOCKET_OPS = (0, 1)
"""VFT_PWRITE, VFT_PWRITEV; VFT_SENDMSG, VFT_SENDTO (bpf/wire.h)."""


class MemorySlot(msgspec.Struct):
    """A memory slot as the last region call set it."""

    size: int
    flags: int
    log: SlotLog | None


class Process(msgspec.Struct):
    """The state of one process, fed with its events in order of time."""

    pid: int
    first_seen_ns: int
    stream: SequenceTracker = msgspec.field(default_factory=SequenceTracker)
    identity: events.Process | None = None
    created_at_ns: int | None = None
    losses: int = 0
    """The number of losses, for logs that have not been read since (`SlotLog.losses`)."""
    readers: int = 0
    """The number of attempts so far: each reads the logs under its own number."""
    logged_sizes: Largest = msgspec.field(default_factory=Largest)
    """The sizes of the logged slots."""
    slots: dict[int, MemorySlot] = msgspec.field(default_factory=dict)
    manual_protect: int | None = None
    channels: dict[int, events.Channel] = msgspec.field(default_factory=dict)
    """For each channel: the fd, plus a multiple of NEXT_LIFE if its number was used before for another file."""
    channel_of_fd: dict[int, int] = msgspec.field(default_factory=dict)
    senders: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """For each channel: the thread that sent last, and the bytes sent before it began."""
    descriptors: dict[int, events.FileDescriptor] = msgspec.field(default_factory=dict)
    pieces: dict[tuple[int, int], list[events.Part]] = msgspec.field(default_factory=dict)
    switched_on: dict[int, list[tuple[int, int]]] = msgspec.field(default_factory=dict)
    """For each thread: (time, slot) of the flags that it switched on in its last burst."""
    vcpu_threads: set[int] = msgspec.field(default_factory=set)
    ended_threads: dict[int, int] = msgspec.field(default_factory=dict)
    """For each thread that ended: the time, until an event shows whether its process ended too."""
    devices: Devices = msgspec.field(default_factory=Devices)
    calls: CallLog = msgspec.field(default_factory=CallLog)
    vcpus: VcpuLog = msgspec.field(default_factory=VcpuLog)
    outgoing: list[OutgoingMigration] = msgspec.field(default_factory=list)
    settle_above: int = 0
    """How many of `outgoing` exceed the limit (`Tracker`)."""
    attempts: int = 0
    """The number of migrations that it began before the latest attempt."""
    open: dict[int, OutgoingMigration] = msgspec.field(default_factory=dict)
    """By thread: the attempts that are not over. At most one of them is a migration."""
    incoming: IncomingMigration | None = None
    last_state_ns: int | None = None
    last_run_ns: int | None = None
    first_run_ns: int | None = None
    last_stop_ns: int | None = None
    last_stop: events.Clock | None = None
    ended_at_ns: int | None = None
    last_event_ns: int = 0
    last_loss_ns: int | None = None
    """The time of the latest loss, or of the latest record out of order."""
    lost: LossLog = msgspec.field(default_factory=LossLog)
    shown: tuple[object, Vm] | None = None
    """Its VM in the last snapshot, and the state from which that was made."""
    pieces_held: int = 0
    ring_untracked: int = 0
    internal_error: tuple[int, str] | None = None
    """The time and place of the latest failure of vftrace on one of its events."""
    internal_errors: int = 0

    @property
    def peers(self) -> dict[int, str | None]:
        """The remote address of each channel that is a TCP socket."""
        return {fd: found.peer for fd, found in self.descriptors.items()}

    def kind_of(self, fds: set[int]) -> str:
        """Return the kind of these channels. If /proc did not show it in time, the calls on them distinguish a socket
        from a file; `unknown` if the channels differ or the calls do not show it."""
        kinds = {self.descriptors[fd].kind for fd in fds if fd in self.descriptors}
        # A damaged record may hold any value.
        kinds = (kinds & CHANNEL_KINDS) - {"unknown"}
        if not kinds:
            ops = {self.channels[fd].op for fd in fds if fd in self.channels}
            kinds = {
                "socket" if op in SOCKET_OPS else "file" if op in FILE_OPS else "" for op in ops
            }
        return (kinds.pop() or "unknown") if len(kinds) == 1 else "unknown"

    def describe(self, event: events.FileDescriptor) -> None:
        """Take the collector's record about an fd."""
        self.descriptors[self.channel_of_fd.get(event.fd, event.fd)] = event

    @property
    def uuid(self) -> str | None:
        """The VM's UUID from its command line."""
        return self.identity.uuid if self.identity else None

    @property
    def migrates(self) -> bool:
        """Whether it takes part in a migration that has not settled."""
        return self.incoming is not None or any(a.is_migration for a in self.outgoing)

    @property
    def has_run(self) -> bool:
        """Whether one of its vCPUs was ever in the guest."""
        return self.first_run_ns is not None or (
            self.identity is not None and self.identity.running
        )

    def ran_at(self, at_ns: int) -> bool:
        """Whether its vCPUs certainly ran at a time."""
        since = self.last_run_ns
        if since is None and self.identity is not None and self.identity.running:
            since = self.first_seen_ns
        if since is None or since > at_ns or (self.ended_at_ns or at_ns) < at_ns:
            return False
        stopped = self.last_stop_ns
        return stopped is None or stopped < since or stopped > at_ns

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
        """Return when the process closed a device, or ended with it open; None while the device is open.

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
        elif not isinstance(event, events.Part):
            self.last_loss_ns = max(self.last_loss_ns or 0, self.last_event_ns)
        if self.ended_threads and not isinstance(event, _SENT_BY_THE_END):
            self._lives_on()
        take = _TAKES.get(type(event))
        if take is not None:
            take(self, event)

    def failed_on_event(self, at_ns: int, place: str) -> None:
        """Note that an event raised an error in vftrace: its changes are not known, as if it were lost."""
        self.internal_errors += 1
        self.internal_error = at_ns, place
        self.lost_something(at_ns)

    def lost_something(self, at_ns: int) -> None:
        """Note a missing record: forget everything that it may have changed."""
        self.last_loss_ns = max(self.last_loss_ns or 0, at_ns)
        if not self.vcpu_threads:
            # QEMU asks for it before it makes vCPUs (accel/kvm/kvm-all.c, kvm_init), and once.
            self.manual_protect = None
        # Every log is damaged. That is applied to a log when it is next read, because there may be many logs.
        self.losses += 1
        if not self.open:
            self.slots.clear()
            self.logged_sizes.clear()

    def was_replaced_by(self, event: events.Process) -> bool:
        """Whether the process now runs another program (execve), which has just made a VM of its own: the earlier
        program's VM has lost its memory (Linux virt/kvm/kvm_main.c, kvm_vm_ioctl: kvm->mm)."""
        before = self.identity
        if before is None or self.created_at_ns != event.at_ns:
            return False
        said = [(e.uuid, e.name, e.vmm, e.incoming, e.started_paused) for e in (before, event)]
        return before.start_time == event.start_time and said[0] != said[1]

    def follows(self, before: "Process") -> None:
        """Continue another process after its execve: the records' numbers continue, and open files stay open."""
        self.stream, self.last_loss_ns = before.stream, before.last_loss_ns
        self.channels, self.channel_of_fd = before.channels, before.channel_of_fd
        self.senders, self.descriptors = before.senders, before.descriptors
        self.created_at_ns, self.manual_protect = before.created_at_ns, 0

    def _vm_created(self, event: events.VmCreated) -> None:
        self.created_at_ns = event.at_ns
        self.manual_protect = 0

    def _vcpu_created(self, event: events.VcpuCreated) -> None:
        self.vcpu_threads.add(event.tid)

    def _exit(self, event: events.Exit) -> None:
        self.lost.report(event)
        self.end(event.at_ns)

    def end(self, at_ns: int) -> None:
        """Note the end of the process."""
        if self.ended_at_ns is not None:
            return
        self.ended_at_ns = at_ns
        for attempt in self.open.values():
            attempt.process_ended_at_ns = at_ns
        self.open.clear()
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
            # QEMU does not set flags that are set already (kvm_slot_update_flags): the record of switching off is lost.
            was_on = False
        if before is not None and before.log is not None:
            self.logged_sizes.remove(before.size)
        if event.size == 0:
            self.slots.pop(event.slot, None)
            return
        log = before.log if before is not None and was_on and before.size == event.size else None
        if is_on and log is None:
            log = self._new_log(event.size)
        self.slots[event.slot] = MemorySlot(event.size, event.flags, log if is_on else None)
        if is_on:
            self.logged_sizes.add(event.size)
        if is_on and not was_on:
            self._switched_on(event)
        elif (
            was_on
            and not is_on
            and (self.open or self.switched_on)
            # Smaller ones go off for a display or firmware, the largest that is logged with all of them.
            and event.size >= self.logged_sizes.largest
        ):
            self._switched_off(event)

    def _new_log(self, size: int) -> SlotLog:
        flags = self.manual_protect
        return SlotLog(
            pages=size // PAGE_SIZE,
            manual=None if flags is None else bool(flags & 1),
            initially_set=None if flags is None else bool(flags & 2),
            losses=self.losses,
        )

    def _readers(self) -> list[int]:
        return [attempt.reader for attempt in self.open.values()]

    def _current(self, log: SlotLog) -> SlotLog:
        """Return the log, after applying the losses since it was last read."""
        if log.losses != self.losses:
            log.losses = self.losses
            opened = self.open.values()
            # A reader that began after the loss has lost nothing.
            log.damaged([attempt.reader for attempt in opened if attempt.losses < self.losses])
        return log

    def _switched_on(self, event: events.Region) -> None:
        if not self._may_migrate(event.tid):
            return
        burst = self.switched_on.setdefault(event.tid, [])
        if burst and event.at_ns - burst[0][0] > BURST_NS:
            burst.clear()
        burst.append((event.at_ns, event.slot))
        mine = self.open.get(event.tid)
        if mine is not None and (mine.dirty_syncs or mine.is_migration):
            # A slot that was added during the migration; or the migration's end was lost, and this is the next one.
            if self.last_loss_ns is None or event.at_ns - mine.started_at_ns <= BURST_NS:
                return
            if len(burst) > 1:
                return
        elif mine is not None:
            return
        if self.last_loss_ns is not None:
            for other in list(self.open.values()):
                # the end of another thread's attempt is lost
                self._close(other, "logging_off_at_ns", burst[0][0])
        self._open_attempt(event.tid, burst[0][0])

    def _may_migrate(self, tid: int) -> bool:
        """Whether a thread may be a migration's: neither a vCPU nor the main thread is. The main thread logs for
        a display, and for an internal snapshot (QEMU migration/savevm.c, save_snapshot)."""
        return tid not in self.vcpu_threads and tid != self.pid

    def _open_attempt(
        self, tid: int, at_ns: int, *, missed_beginning: bool = False, switched_on: bool = True
    ) -> None:
        if self.outgoing and self.outgoing[-1].is_migration:
            self.attempts = self.outgoing[-1].number + 1
        attempt = OutgoingMigration(
            pid=self.pid,
            tid=tid,
            number=self.attempts,
            started_at_ns=at_ns,
            baseline={fd: self._sent_before(fd, tid) for fd in self.channels},
            baseline_errors={fd: channel.error_ns for fd, channel in self.channels.items()},
            paused_before=self._surely_paused(),
            uncertain=self._uncertain(),
            missed_beginning=missed_beginning,
            switched_on=switched_on,
            reads_clock_twice=self.identity is None or self.identity.vmm.startswith("qemu"),
            reader=self.readers,
            losses=self.losses,
        )
        self.readers += 1
        for fd, channel in self.channels.items():
            if channel.bytes > attempt.baseline[fd]:
                attempt.sent(fd, channel)
        stop = self.last_stop if attempt.paused_before else None
        if stop is not None and at_ns - STOPPED_FOR_IT_NS <= stop.at_ns <= at_ns:
            attempt.stopped_before = stop
        self.open[tid] = attempt
        self.outgoing.append(attempt)
        if len(self.open) > MAX_OPEN:
            self._close_oldest(at_ns)
        if len(self.outgoing) > MAX_ATTEMPTS:
            self.outgoing = [a for a in self.outgoing if a.is_migration or not a.ended]

    def _close_oldest(self, at_ns: int) -> None:
        """End the oldest open attempt that is not a migration: every request of the process looks at all open
        attempts."""
        for attempt in self.open.values():
            if not attempt.is_migration:
                self._close(attempt, "replaced_at_ns", at_ns)
                return

    def _sent_before(self, fd: int, tid: int) -> int:
        """Return the bytes sent on a channel before a thread began its migration: it sends the stream's head before the
        first dirty sync."""
        sender, before = self.senders.get(fd, (0, 0))
        return before if sender == tid else self.channels[fd].bytes

    def _close(self, attempt: OutgoingMigration, what: str, at_ns: int) -> None:
        """Close an attempt: later events do not belong to it."""
        if getattr(attempt, what) is None:
            setattr(attempt, what, at_ns)
        self.open.pop(attempt.tid, None)
        # A thread that migrates again sends its next stream's head after the bytes sent so far.
        for channel, (sender, _) in self.senders.items():
            if sender == attempt.tid:
                self.senders[channel] = sender, self.channels[channel].bytes

    def _became_migration(self, attempt: OutgoingMigration) -> None:
        """Note that a thread that makes dirty syncs has sent. A process has one migration at a time, so the earlier one
        is over, although logging may continue for a dirty limit."""
        for other in list(self.open.values()):
            if other is not attempt and other.is_migration:
                self._close(other, "replaced_at_ns", attempt.started_at_ns)

    def _lives_on(self) -> None:
        """Note that the process continues, so a thread that ended before ended by itself. If a process is killed all of
        its threads end, which shows nothing about a migration."""
        for tid, at_ns in self.ended_threads.items():
            attempt = self.open.get(tid)
            if attempt is not None:
                self._close(attempt, "thread_ended_at_ns", at_ns)
            self.vcpu_threads.discard(tid)
        self.ended_threads.clear()

    def _surely_paused(self) -> bool | None:
        """Whether its vCPUs are stopped; None if a record that contradicts it may be missing."""
        said = max(self.last_stop_ns or 0, self.last_run_ns or 0)
        return self.paused if self.last_loss_ns is None or self.last_loss_ns < said else None

    def _uncertain(self) -> frozenset[int] | None:
        """Return the fds whose totals may have grown since their last report; None: no record is missing."""
        loss = self.last_loss_ns
        if loss is None:
            return None
        return frozenset(fd for fd, channel in self.channels.items() if channel.at_ns <= loss)

    def _switched_off(self, event: events.Region) -> None:
        for attempt in list(self.open.values()):
            self._close(attempt, "logging_off_at_ns", event.at_ns)
        self.switched_on.clear()

    def _capability(self, event: events.Capability) -> None:
        if event.ret == 0 and event.cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
            self.manual_protect = event.arg0

    # -- dirty logs -----------------------------------------------------------------------------

    def _piece(self, event: events.Part) -> None:
        if self.pieces_held >= _MAX_PENDING_PIECES:
            oldest = next(iter(self.pieces))
            self.pieces_held -= _held(self.pieces.pop(oldest))
        self.pieces.setdefault((event.tid, event.call_ns), []).append(event)
        self.pieces_held += _held([event])

    def _take_pieces(self, tid: int, call_ns: int) -> list[events.Part]:
        """Remove and return the pieces of one call. Older pieces of the same thread belong to no call any more."""
        if not self.pieces:
            return []
        mine = self.pieces.pop((tid, call_ns), [])
        for key in [key for key in self.pieces if key[0] == tid and key[1] < call_ns]:
            del self.pieces[key]
        self.pieces_held = sum(map(_held, self.pieces.values()))
        return mine

    def _get_dirty_log(self, event: events.GetDirtyLog) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        if event.ret != 0:
            return
        slot = self.slots.get(event.slot)
        log = None if slot is None else slot.log
        if slot is None or log is not None:
            self._begins_by_reading(event.tid, event.enter_ns, known=slot is not None)
        whole = (
            event.bitmap_bytes > 0
            and event.walked_bytes == event.bitmap_bytes
            and event.read_errors == 0
            and len(pieces) == event.pieces
        )
        bitmap = bitmap_of(pieces) if whole else None
        if log is not None:
            self._current(log)
            if bitmap is None:
                log.damaged(self._readers())
            else:
                log.got(bitmap, self._readers())
        attempt = self.open.get(event.tid)
        if attempt is not None:
            attempt.got_dirty_log(event, log, bitmap)

    def _begins_by_reading(self, tid: int, at_ns: int, *, known: bool) -> None:
        """Open an attempt for a thread that reads dirty logs and has none: logging was on already, for a dirty-rate
        measurement or a dirty limit, or vftrace started late (then the slot is not known)."""
        if tid in self.open or not self._may_migrate(tid):
            return
        late = self.identity is not None and self.identity.late
        if not known and not late:
            return
        for other in list(self.open.values()):
            if other.missed_beginning and not other.is_migration:
                # an attempt that has sent nothing is replaced by the next
                self._close(other, "replaced_at_ns", at_ns)
        self._open_attempt(tid, at_ns, missed_beginning=not known, switched_on=False)

    def _clear_dirty_log(self, event: events.ClearDirtyLog) -> None:
        # Most clears contain no set page: QEMU clears by GiB, and the log is sparse.
        pieces = self._take_pieces(event.tid, event.enter_ns) if self.pieces else ()
        slot = self.slots.get(event.slot)
        if slot is None or slot.log is None or event.ret < 0:
            return
        whole = (
            event.walked_bytes == event.bitmap_bytes
            and event.read_errors == 0
            and len(pieces) == event.pieces
        )
        log = self._current(slot.log)
        if whole:
            log.cleared(bitmap_of(pieces))
        else:
            log.damaged(self._readers())
            log.shadow = {}

    def _reset_rings(self, event: events.ResetDirtyRings) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        untracked, self.ring_untracked = event.untracked - self.ring_untracked, event.untracked
        self._begins_by_reading(event.tid, event.enter_ns, known=bool(self.slots))
        by_slot: dict[int, list[events.Part]] = {}
        for piece in pieces:
            by_slot.setdefault(piece.slot, []).append(piece)
        whole = len(pieces) == event.pieces and untracked <= 0
        pushed = {
            number: bitmap_of(by_slot.get(number, []))
            for number, slot in self.slots.items()
            if slot.log is not None
        }
        for attempt in self.open.values():
            attempt.collected_rings(event.at_ns, pushed if whole else None)
        mine = self.open.get(event.tid)
        if mine is not None:
            mine.reset_rings(event)

    # -- vCPUs and clock ------------------------------------------------------------------------

    def _run(self, event: events.Run) -> None:
        self.vcpu_threads.add(event.tid)
        self.last_run_ns = event.at_ns
        if self.first_run_ns is None:
            self.first_run_ns = event.at_ns
        for attempt in self.outgoing:
            attempt.ran(event.at_ns, event.exit_ns)
        incoming = self.incoming
        if incoming is not None and incoming.running_at_ns is None and not incoming.ran_before:
            incoming.running_at_ns = event.at_ns

    def _clock(self, event: events.Clock) -> None:
        if event.op == events.Clock.GET and event.last_exit_ns:
            self.last_stop_ns = event.at_ns
            self.last_stop = event
            for attempt in self.open.values():
                attempt.clock_read(event)
        elif event.op == events.Clock.SET and (self.waits or self._takes_over(event)):
            self.takes_clock(event)

    def takes_clock(self, event: events.Clock) -> None:
        """Note that the clock which was set is that of another process's guest."""
        self._arrive(event.at_ns)
        assert self.incoming is not None
        self.incoming.clock_set_at_ns = event.at_ns
        self.incoming.clock_asked_at_ns = event.enter_ns
        self.incoming.guest_clock_ns = event.clock or None
        if self.incoming.loaded_at_ns is None:
            self.incoming.loaded_at_ns = self.last_state_ns

    def clock_to_hand_over(self, attempt: OutgoingMigration) -> events.Clock | None:
        """Return the clock read of this attempt whose value its destination sets; None if it was not seen.

        If the guest was paused before, it is the read of that pause; if the source ran on, the read that it saved.
        """
        if attempt.resumed_at_ns is not None:
            return attempt.saved
        before = self.last_stop if attempt.paused_before else None
        return attempt.saved or attempt.stop or attempt.stopped_before or before

    def passed_memory(self, stop: events.Clock) -> OutgoingMigration:
        """Note that another process took the guest over after this stop without logging: it got the memory itself."""
        if self.outgoing and self.outgoing[-1].is_migration:
            self.attempts = self.outgoing[-1].number + 1
        attempt = OutgoingMigration(
            pid=self.pid,
            tid=stop.tid,
            number=self.attempts,
            started_at_ns=stop.last_exit_ns,
            baseline={},
            baseline_errors={},
            paused_before=False,
            switched_on=False,
            reads_clock_twice=False,
            memory_passed=True,
            stop=stop,
            process_ended_at_ns=self.ended_at_ns,
        )
        self.outgoing.append(attempt)
        return attempt

    def _takes_over(self, event: events.Clock) -> bool:
        """Whether a guest that has not run yet gets a clock value greater than its VM's age: the clock is another
        guest's. KVM starts the clock of a VM at 0 (arch/x86/kvm/x86.c, kvm_arch_init_vm)."""
        created = self.created_at_ns
        if created is None or self.has_run or event.ret != 0:
            return False
        return event.clock > event.at_ns - created

    def _vcpu_state(self, event: events.VcpuState) -> None:
        self.last_state_ns = event.at_ns
        if self.incoming is not None and self.incoming.clock_set_at_ns is None:
            self.incoming.loaded_at_ns = event.at_ns

    def loads_state(self, at_ns: int) -> None:
        """Note that the present acts of this process belong to a running migration."""
        self._arrive(at_ns)

    def _arrive(self, at_ns: int) -> None:
        if self.incoming is None:
            paused = self.identity is not None and self.identity.started_paused
            self.incoming = IncomingMigration(self.pid, paused, at_ns, ran_before=self.has_run)

    # -- passed-through devices -----------------------------------------------------------------

    def _vfio(self, event: VfioEvent) -> None:
        self.devices.feed(event)
        if isinstance(event, events.VfioClose):
            for attempt in self.open.values():
                attempt.closed_device(event.fd, event.at_ns)
        wanted = isinstance(event, events.VfioState) and event.requests_state(
            events.VfioState.RESUMING
        )
        if wanted and not self.has_run:
            self._arrive(event.at_ns)

    def _vfio_dirty(self, event: events.VfioDirty) -> None:
        pieces = self._take_pieces(event.tid, event.enter_ns)
        if not self.open or event.ret != 0:
            return
        whole = (
            event.walked_bytes == event.bitmap_bytes
            and event.read_errors == 0
            and len(pieces) == event.pieces
        )
        bitmap = bitmap_of(pieces) if whole else None
        for attempt in self.open.values():
            attempt.got_dma_pages(event, bitmap)

    # -- channels -------------------------------------------------------------------------------

    def _channel(self, event: events.Channel) -> None:
        channel = self._channel_of(event)
        if channel is None:
            return
        before = self.channels.get(channel)
        if before is not None and event.bytes < before.bytes:
            return
        if before is None or before.sender_tid != event.sender_tid:
            self.senders[channel] = event.sender_tid, 0 if before is None else before.bytes
        self.channels[channel] = event
        for attempt in self.outgoing:
            over = attempt.over_at_ns
            if attempt.started_at_ns >= event.last_ns:
                # what is reported late was sent before
                if channel not in attempt.channels:
                    attempt.baseline[channel] = event.bytes
            elif over is None or event.last_ns <= over:
                was = attempt.is_migration
                attempt.sent(channel, event)
                if not was and attempt.is_migration:
                    self._became_migration(attempt)
                if over is not None and event.sender_tid == attempt.tid:
                    self.senders[channel] = event.sender_tid, event.bytes

    def _channel_of(self, event: events.Channel) -> int | None:
        """Return the channel that an fd is now. A number may be used again: then the kernel side counts from zero, or
        the calls are a socket's after a file's. None: a late report about the file that the fd was before."""
        channel = self.channel_of_fd.get(event.fd, event.fd)
        before = self.channels.get(channel)
        if before is None or event.fd < 0:
            return channel
        if event.first_ns < before.first_ns:
            return None
        begins_anew = event.first_ns > before.first_ns
        if begins_anew or _is_another(event, before):
            channel += NEXT_LIFE
            self.channel_of_fd[event.fd] = channel
            self.senders[channel] = event.sender_tid, 0 if begins_anew else before.bytes
            if not begins_anew:
                # its totals continue
                for attempt in self.open.values():
                    attempt.baseline[channel] = before.bytes
        return channel

    def _burst(self, event: events.Burst) -> None:
        for attempt in self.open.values():
            attempt.burst(self.channel_of_fd.get(event.fd, event.fd), event)

    def _thread_exit(self, event: events.ThreadExit) -> None:
        self.ended_threads[event.tid] = event.at_ns

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


def _held(parts: list[events.Part]) -> int:
    """Return how many pieces of 4 KiB a number of parts of one call's bitmap may have."""
    return len(parts) * (_PIECES_OF_PART if type(parts[0]) is events.BitmapPart else 1)


def _is_another(event: events.Channel, before: events.Channel) -> bool:
    """Whether an fd was used in ways that exclude one file: as a socket and as another file; or written at positions by
    one thread and in order by another."""
    if (event.op in SOCKET_OPS) != (before.op in SOCKET_OPS):
        return True
    positions = (event.op in FILE_OPS) != (before.op in FILE_OPS)
    return positions and event.sender_tid != before.sender_tid


_TAKES: dict[type[Event], Callable[[Process, Any], None]] = {
    events.Piece: Process._piece,
    events.BitmapPart: Process._piece,
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
    events.ThreadExit: Process._thread_exit,
    events.Exit: Process._exit,
    **dict.fromkeys(get_args(VfioEvent), Process._vfio),
}
"""The method that takes an event, by the event's type: one look-up, because every event passes here."""
