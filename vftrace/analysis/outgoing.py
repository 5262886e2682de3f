"""A migration as its source shows it: a thread that logs dirty pages and sends.

An outgoing migration opens when a thread switches dirty logging on for the largest memslot. Display code, firmware
and dirty-rate measurements log too; what makes it a migration is that the same thread then
sends on a socket, pipe or file.
"""

from dataclasses import dataclass, field

from vftrace.analysis import dirty
from vftrace.analysis.devices.strategy import SETUP_BYTES
from vftrace.analysis.dirty import Bitmap, SlotLog
from vftrace.events import Burst, Channel, Clock, GetDirtyLog, ResetDirtyRings
from vftrace.model.migration import NotCounted, Round, SlotRound

_MAX_OTHER_SYNCS = 64
"""Dirty syncs kept for a thread that has not sent: QEMU's dirty limit reads the logs as long as the VM lives."""


@dataclass
class DirtySync:
    """One dirty sync: a pass over the logged slots by the migration thread. Times in ns; bytes by fd at its start."""

    start_ns: int
    end_ns: int
    sent: dict[int, int]
    bursts: dict[int, tuple[int, int]]
    slots: dict[int, SlotRound] = field(default_factory=dict)
    redirtied: int | None = 0
    initial: bool = False


@dataclass
class OutgoingMigration:
    """What is known of one attempt. `tid` is the thread that switched logging on."""

    pid: int
    tid: int
    number: int
    started_at_ns: int
    baseline: dict[int, int]
    """Bytes each fd had sent before."""
    baseline_errors: dict[int, int]
    paused_before: bool | None
    """Whether the guest was stopped when the attempt began; None if that was not seen."""
    uncertain: frozenset[int] | None = None
    """Of the fds in `baseline` those that may have sent more before, where records are missing (else None)."""
    missed_beginning: bool = False
    dirty_syncs: list[DirtySync] = field(default_factory=list)
    open_sync: DirtySync | None = None
    ever: dict[int, Bitmap] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    """The latest totals of each fd since the attempt began."""
    bursts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By fd: bytes sent without pauses, and the ns they took."""
    by_thread: dict[int, int] = field(default_factory=dict)
    """Latest bytes of fds that the migration thread was seen to send on."""
    by_main: set[int] = field(default_factory=set)
    stop: Clock | None = None
    """The clock read of the stop that the migration thread made itself."""
    saved: Clock | None = None
    """The second clock read, after the final sweep: the state has been read."""
    sent_at_save: dict[int, int] | None = None
    resumed_at_ns: int | None = None
    last_exit_ns: int = 0
    last_run_ns: int | None = None
    logging_off_at_ns: int | None = None
    process_ended_at_ns: int | None = None
    sent_at_close: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By fd of a passed-through device: when it was closed, and what had been sent until then, as far as that
    was reported (bpf/channel.h, REPORT_NS)."""
    sent_much_ns: int | None = None
    """When it was first reported that more had been sent than a migration's head has."""
    ring: bool = False
    look_again_ns: int = 0
    """When to see whether it has settled (`Tracker`)."""
    dma_pages: dict[bool, int | None] = field(default_factory=dict)
    """Pages that DMA wrote, reported by devices (True) and by the IOMMU driver; None: a part is missing."""

    @property
    def ended(self) -> bool:
        """Whether nothing more can come of this attempt."""
        return self.logging_off_at_ns is not None or self.process_ended_at_ns is not None

    @property
    def is_migration(self) -> bool:
        """Whether the migration thread has sent anything."""
        return bool(self.by_thread)

    def got_dirty_log(self, event: GetDirtyLog, log: SlotLog | None, logged: Bitmap | None) -> None:
        """A GET_DIRTY_LOG by the migration thread. `logged` None: its bits are not known."""
        self.last_exit_ns = max(self.last_exit_ns, event.last_exit_ns)
        sweep = self.open_sync
        if sweep is None or event.slot in sweep.slots:
            sweep = self._begin_sync(event.enter_ns, event.at_ns)
        fresh, initial = (None, False) if log is None else log.take()
        # Under INITIALLY_SET the first sweep is all ones: logged, but nobody knows what is new.
        if initial and len(self.dirty_syncs) == 1:
            fresh = None
            sweep.initial = True
        sweep.end_ns = max(sweep.end_ns, event.at_ns)
        sweep.slots[event.slot] = SlotRound(
            slot=event.slot,
            new_pages=None if fresh is None else dirty.count(fresh),
            logged_pages=None if logged is None else dirty.count(logged),
            pages=None if log is None else log.pages,
            heat=None if fresh is None or log is None else dirty.heat(fresh, log.pages),
            not_counted=_why(event) if logged is None else None,
        )
        self._count_again(sweep, event.slot, fresh)

    def reset_rings(self, event: ResetDirtyRings, fresh: dict[int, Bitmap] | None) -> None:
        """A KVM_RESET_DIRTY_RINGS by the migration thread: with rings each is a sweep."""
        self.ring = True
        self.last_exit_ns = max(self.last_exit_ns, event.last_exit_ns)
        sweep = self._begin_sync(event.enter_ns, event.at_ns)
        if fresh is None:
            sweep.redirtied = None
            sweep.slots[-1] = SlotRound(-1, None, None)
            return
        for slot, bitmap in fresh.items():
            pages = dirty.count(bitmap)
            sweep.slots[slot] = SlotRound(slot, pages, pages)
            self._count_again(sweep, slot, bitmap)

    def closed_device(self, fd: int, at_ns: int) -> None:
        """A passed-through device of the process was closed."""
        self.sent_at_close[fd] = at_ns, self._sent()

    def _sent(self) -> int:
        """What the migration thread has sent, as far as that was reported."""
        return sum(
            max(0, total - self.baseline.get(channel, 0))
            for channel, total in self.by_thread.items()
        )

    def got_dma_pages(self, by_device: bool, pages: int | None) -> None:
        """A bitmap of pages that DMA wrote."""
        total = self.dma_pages.get(by_device, 0)
        self.dma_pages[by_device] = None if total is None or pages is None else total + pages

    def _begin_sync(self, start_ns: int, end_ns: int) -> DirtySync:
        sent = {fd: channel.bytes for fd, channel in self.channels.items()}
        self.open_sync = DirtySync(start_ns, end_ns, sent, dict(self.bursts))
        self.dirty_syncs.append(self.open_sync)
        if not self.is_migration and len(self.dirty_syncs) > _MAX_OTHER_SYNCS:
            del self.dirty_syncs[0]
        return self.open_sync

    def _count_again(self, sweep: DirtySync, slot: int, fresh: Bitmap | None) -> None:
        if fresh is None:
            if not sweep.initial:
                sweep.redirtied = None
            return
        seen = self.ever.get(slot, {})
        if sweep.redirtied is not None:
            sweep.redirtied += dirty.count(dirty.common(fresh, seen))
        # A first sweep's pages are what there was before, except with rings, which begin empty.
        if self.ring or len(self.dirty_syncs) > 1:
            self.ever[slot] = dirty.union(seen, fresh)

    def sent(self, event: Channel) -> None:
        """Totals of an fd of the process."""
        before = self.channels.get(event.fd)
        if before is not None and event.bytes < before.bytes:
            return
        if event.bytes <= self.baseline.get(event.fd, 0) and event.error_ns <= self.started_at_ns:
            return
        self.channels[event.fd] = event
        if event.sender_tid == self.tid:
            self.by_thread[event.fd] = event.bytes
            if self.sent_much_ns is None and self._sent() > SETUP_BYTES:
                self.sent_much_ns = event.at_ns
        elif event.sender_tid == self.pid:
            self.by_main.add(event.fd)

    def burst(self, event: Burst) -> None:
        """Totals of an fd without its pauses."""
        self.bursts[event.fd] = (event.bytes, event.ns)

    def clock_read(self, event: Clock) -> None:
        """A KVM_GET_CLOCK by the migration thread: the first is the stop, the second is made when the state
        is read (QEMU hw/i386/kvm/clock.c: kvmclock_vm_state_change, kvmclock_pre_save)."""
        self.last_exit_ns = max(self.last_exit_ns, event.last_exit_ns)
        if self.stop is None or self.resumed_at_ns is not None:
            self.stop, self.saved, self.resumed_at_ns = event, None, None
        else:
            self.saved = event
            self.sent_at_save = {fd: channel.bytes for fd, channel in self.channels.items()}

    def ran(self, at_ns: int) -> None:
        """A vCPU of the process entered the guest again."""
        self.last_run_ns = at_ns
        if self.stop is not None and self.resumed_at_ns is None and at_ns > self.stop.at_ns:
            self.resumed_at_ns = at_ns

    def final_sync(self) -> DirtySync | None:
        """The last sweep after the stop."""
        if self.stop is None:
            return None
        after = [sweep for sweep in self.dirty_syncs if sweep.start_ns >= self.stop.at_ns]
        return after[-1] if after else None

    def channel_fds(self, peers: dict[int, str | None]) -> set[int]:
        """The fds of the migration channel: the one the thread sends on, and those to the same peer.

        The thread also writes QMP events and wakes others by eventfd, so the one with most bytes is
        taken, and not one the main thread answers on.
        """
        candidates = {fd: n for fd, n in self.by_thread.items() if fd not in self.by_main}
        candidates = candidates or self.by_thread
        if not candidates:
            return set()
        main = max(candidates, key=lambda fd: candidates[fd] - self.baseline.get(fd, 0))
        fds = {main}
        host = _host(peers.get(main))
        for fd, channel in self.channels.items():
            # multifd's channels have threads of their own and the same peer
            # (QEMU migration/multifd.c, multifd_send_thread)
            own_thread = channel.sender_tid not in (self.pid, self.tid)
            if own_thread and fd not in self.by_main and _host(peers.get(fd)) == host:
                same_kind = channel.op == self.channels[main].op
                if host is not None or same_kind:
                    fds.add(fd)
        return fds

    def sent_bytes(self, fds: set[int]) -> int:
        """Bytes on these fds since the attempt began."""
        return sum(
            channel.bytes - self.baseline.get(fd, 0)
            for fd, channel in self.channels.items()
            if fd in fds
        )

    def miscounts(self, fds: set[int]) -> bool:
        """Whether bytes sent before the attempt began may be among those of these fds."""
        if self.uncertain is None:
            return False
        new = {fd for fd in fds if fd in self.channels and fd not in self.baseline}
        return bool(fds & self.uncertain) or any(
            self.channels[fd].first_ns < self.started_at_ns for fd in new
        )

    def state_bytes(self, fds: set[int]) -> int | None:
        """Bytes sent after the state was read: what vCPUs and devices are made of."""
        if self.saved is None or self.sent_at_save is None:
            return None
        return self.sent_bytes(fds) - sum(
            n - self.baseline.get(fd, 0) for fd, n in self.sent_at_save.items() if fd in fds
        )

    def error(self, fds: set[int]) -> tuple[int, int] | None:
        """The first error on these fds since the attempt began: (time, negative errno), or None."""
        errors = [
            (channel.error_ns, channel.error)
            for fd, channel in self.channels.items()
            if fd in fds and channel.error and channel.error_ns > self.baseline_errors.get(fd, 0)
        ]
        return min(errors) if errors else None

    def rounds(self, fds: set[int]) -> tuple[Round, ...]:
        """The sweeps as rounds; the bytes of each are those sent until the next."""
        totals = [
            sum(n - self.baseline.get(fd, 0) for fd, n in sweep.sent.items() if fd in fds)
            for sweep in self.dirty_syncs
        ]
        totals.append(self.sent_bytes(fds))
        bursts = [_burst(sweep.bursts, fds) for sweep in self.dirty_syncs]
        bursts.append(_burst(self.bursts, fds))
        rounds = []
        for index, sweep in enumerate(self.dirty_syncs):
            before, after = bursts[index], bursts[index + 1]
            slots = tuple(sweep.slots[slot] for slot in sorted(sweep.slots) if slot >= 0)
            every = sweep.slots.values()
            rounds.append(
                Round(
                    at_ns=sweep.start_ns,
                    duration_ns=max(0, sweep.end_ns - sweep.start_ns),
                    new_pages=_sum([slot.new_pages for slot in every]),
                    redirtied_pages=sweep.redirtied if index > 0 else None,
                    logged_pages=_sum([slot.logged_pages for slot in every]),
                    sent_bytes=totals[index + 1] - totals[index],
                    slots=slots,
                    burst_bytes=after[0] - before[0] if self.bursts else None,
                    burst_ns=after[1] - before[1] if self.bursts else None,
                )
            )
        return tuple(rounds)

    def distinct_pages(self) -> int | None:
        """Pages that became dirty while it lasted, each counted once; None if a part is not known."""
        counted = self.dirty_syncs if self.ring else self.dirty_syncs[1:]
        if any(slot.new_pages is None for sweep in counted for slot in sweep.slots.values()):
            return None
        return sum(dirty.count(bitmap) for bitmap in self.ever.values())


def _burst(bursts: dict[int, tuple[int, int]], fds: set[int]) -> tuple[int, int]:
    """Bytes, and the time they took where channels send at the same time: the mean over those that send."""
    sent = [bursts[fd] for fd in fds if fd in bursts]
    return sum(n for n, _ in sent), sum(ns for _, ns in sent) // max(1, len(sent))


def _why(event: GetDirtyLog) -> NotCounted:
    """Why the bits of a log are not known."""
    if event.bitmap_bytes == 0:
        return "size-unknown"
    if event.walked_bytes < event.bitmap_bytes:
        return "too-large"
    return "unreadable" if event.read_errors else "records-missing"


def _host(peer: str | None) -> str | None:
    return None if peer is None else peer.rpartition(":")[0]


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
