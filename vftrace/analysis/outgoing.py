# SPDX-License-Identifier: MIT
"""A migration as seen on its source: a thread that makes dirty syncs and sends.

An attempt opens when a thread that is neither a vCPU's nor the main thread switches dirty logging on, or reads a
dirty log that is on already. Dirty-rate measurements and dirty limits do that too; an attempt is a migration when the
same thread also sends (docs/reference/phases.md). An attempt is closed when logging is switched off, when its thread or
its process ends, or when the next attempt begins; later events do not change it.
"""

import errno
from collections import deque

import msgspec

from vftrace.analysis import dirty
from vftrace.analysis.devices.strategy import SETUP_BYTES
from vftrace.analysis.dirty import Bitmap, SlotLog
from vftrace.events import (
    Burst,
    Channel,
    Clock,
    GetDirtyLog,
    ResetDirtyRings,
    VfioDirty,
    VfioDirtyTracking,
)
from vftrace.model.migration import Forecast, NotCounted, Round, SlotRound

_MAX_OTHER_SYNCS = 64
"""How many dirty syncs are kept for a thread that has not sent: QEMU's dirty limit reads the logs as long as the VM
runs."""

MAX_SYNCS = 512
"""How many dirty syncs are kept one by one, besides the first two; older ones are merged into one with exact counts."""

_FEWEST_SYNCS = 16

_MAX_UNPLACED = 1024
"""How many reports of DMA wait for the next dirty sync; the oldest beyond that belong to the sync before."""

_MAX_KEPT = 64
"""How many page tables have their uncleared pages remembered; pages of others may be counted twice."""

MAX_SLOT_ROUNDS = 16_384
"""How many slots all kept dirty syncs may have together: a VM with thousands of slots keeps fewer syncs. QEMU has some
ten."""

STOPPED_FOR_IT_NS = 1_000_000_000
"""A stop of the guest this shortly before its migration may belong to it: libvirt's migration without
--live stops the CPUs first (src/qemu/qemu_migration.c, qemuMigrationSrcRun)."""

THROTTLE_PAUSES = 10
THROTTLE_SHARE = 0.2
"""A vCPU was throttled if it was outside the guest this often in a row, for at least this share of the time: QEMU's
auto-converge begins with 20 % (migration/options.c, cpu-throttle-initial) and sleeps outside KVM_RUN
(softmmu/cpu-throttle.c)."""

WRITE = 2
"""`op` of a write(2), VFT_WRITE (bpf/wire.h)."""


class DirtySync(msgspec.Struct):
    """One dirty sync: a pass over the logged slots by the migration thread. Times in ns; bytes by fd at its start."""

    start_ns: int
    end_ns: int
    sent: dict[int, int]
    bursts: dict[int, tuple[int, int]]
    slots: dict[int, SlotRound] = msgspec.field(default_factory=dict)
    redirtied: int | None = 0
    initial: bool = False
    syncs: int = 1
    """How many dirty syncs this entry stands for."""
    dma_pages: dict[bool, int | None] = msgspec.field(default_factory=dict)
    """Pages that DMA wrote, as `OutgoingMigration.dma_pages`."""


class OutgoingMigration(msgspec.Struct):
    """One attempt. `tid` is the thread that makes the dirty syncs."""

    pid: int
    tid: int
    number: int
    started_at_ns: int
    baseline: dict[int, int]
    """The bytes that each fd had sent before the attempt."""
    baseline_errors: dict[int, int]
    paused_before: bool | None
    """Whether the guest was stopped when the attempt began; None if that was not seen."""
    uncertain: frozenset[int] | None = None
    """The fds in `baseline` that may have sent more before, where records are missing (else None)."""
    missed_beginning: bool = False
    switched_on: bool = True
    """Whether its thread switched logging on; if not, logging was on already."""
    reads_clock_twice: bool = True
    """Whether this VMM reads the clock again when it saves the state, as QEMU does."""
    memory_passed: bool = False
    """Whether the destination got the memory itself, as a file descriptor: the source logs nothing and sends no
    page."""
    dirty_syncs: list[DirtySync] = msgspec.field(default_factory=list)
    open_sync: DirtySync | None = None
    ever: dict[int, Bitmap] = msgspec.field(default_factory=dict)
    distinct: int | None = 0
    """Pages in `ever`; None if a part is not known."""
    channels: dict[int, Channel] = msgspec.field(default_factory=dict)
    """The latest totals of each fd since the attempt began."""
    bursts: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """For each fd: bytes sent without pauses, and the ns they took."""
    by_thread: dict[int, int] = msgspec.field(default_factory=dict)
    """The latest bytes of the fds on which the migration thread sent."""
    by_main: set[int] = msgspec.field(default_factory=set)
    stop: Clock | None = None
    """The clock read of the guest's stop, by the migration thread or by a monitor's `stop`."""
    stopped_before: Clock | None = None
    """The clock read of a stop shortly before the migration of a paused guest, which may belong to the migration."""
    saved: Clock | None = None
    """The second clock read of the migration thread, after the final dirty sync: the state has been read."""
    sent_at_save: dict[int, int] | None = None
    saves: int = 0
    """How often the state was read."""
    resumed_at_ns: int | None = None
    last_exit_ns: int = 0
    last_run_ns: int | None = None
    ran_on_ns: int | None = None
    """The first vCPU entry since the attempt began, even if it was over then."""
    longest_pause_ns: int = 0
    """The longest time that a vCPU was outside KVM_RUN before the stop: a throttled vCPU sleeps there."""
    pauses: deque[tuple[int, int]] = msgspec.field(
        default_factory=lambda: deque(maxlen=THROTTLE_PAUSES)
    )
    """The latest times that a vCPU was outside KVM_RUN before the stop."""
    closed_fd_ns: int | None = None
    """When a send of the migration thread first failed with EBADF: it had closed its channel after a failure."""
    logging_off_at_ns: int | None = None
    thread_ended_at_ns: int | None = None
    replaced_at_ns: int | None = None
    """When another migration of the same process began."""
    process_ended_at_ns: int | None = None
    sent_at_close: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """For each fd of a passed-through device: when it was closed, and the bytes sent until then, as far as they
    were reported (bpf/channel.h, REPORT_NS)."""
    sent_much_ns: int | None = None
    """When a report first showed more sent bytes than a migration's head has."""
    slot_rounds: int = 0
    """Slots in all dirty syncs but the latest."""
    ring: bool = False
    reader: int = 0
    """Its number as a reader of the slots' logs."""
    losses: int = 0
    """The losses of its process before it began (`Process.losses`)."""
    look_again_ns: int = 0
    """When the tracker next checks whether it has settled."""
    unsynced: dict[int, Bitmap] = msgspec.field(default_factory=dict)
    """For each slot: pages of the dirty ring that other threads collected since the last dirty sync."""
    unsynced_known: bool = True
    collected_ns: int | None = None
    """When any thread last collected the dirty ring."""
    dma_pages: dict[bool, int | None] = msgspec.field(default_factory=dict)
    """Pages that DMA wrote, reported by devices (True) and by the IOMMU driver; None: a part is missing."""
    dma_unplaced: list[tuple[int, bool, int | None]] = msgspec.field(default_factory=list)
    """Reports since the latest dirty sync began: time, reporter, pages. They may belong to the next dirty sync."""
    dma_kept: dict[tuple[int, int, int], Bitmap] = msgspec.field(default_factory=dict)
    """For each iommufd, page table and page size: pages that were reported and not cleared, so they are reported
    again."""
    forecast: tuple[object, Forecast | None] | None = None
    """The latest forecast, with what it was made from."""
    _rounds: tuple[frozenset[int], list[Round]] | None = None

    @property
    def over_at_ns(self) -> int | None:
        """When the attempt ended while its process continued."""
        off, thread, replaced = (
            self.logging_off_at_ns,
            self.thread_ended_at_ns,
            self.replaced_at_ns,
        )
        if off is None and thread is None and replaced is None:
            return None
        return min(end for end in (off, thread, replaced) if end is not None)

    @property
    def ended(self) -> bool:
        """Whether later events cannot change this attempt."""
        return self.over_at_ns is not None or self.process_ended_at_ns is not None

    @property
    def is_migration(self) -> bool:
        """Whether the migration thread has sent anything, or a destination has taken the guest over."""
        return self.memory_passed or bool(self.by_thread)

    @property
    def may_have_rings(self) -> bool:
        """Whether the VM has dirty rings, or no dirty log was read yet: KVM refuses to read one of a VM that has rings
        (virt/kvm/kvm_main.c, kvm_get_dirty_log_protect). With a log beside the rings (arm64) their resets show them."""
        return self.ring or not self.dirty_syncs

    @property
    def throttled(self) -> bool:
        """Whether the VMM throttled the guest's vCPUs when it stopped them."""
        if len(self.pauses) < THROTTLE_PAUSES:
            return False
        lasted = self.pauses[-1][1] - self.pauses[0][0]
        out = sum(max(0, at - exit_ns) for exit_ns, at in self.pauses)
        return lasted > 0 and THROTTLE_SHARE * lasted <= out <= lasted

    # -- dirty syncs ----------------------------------------------------------------------------

    def got_dirty_log(self, event: GetDirtyLog, log: SlotLog | None, logged: Bitmap | None) -> None:
        """Take a GET_DIRTY_LOG of the migration thread. `logged` None: its bits are not known."""
        self.last_exit_ns = max(self.last_exit_ns, event.last_exit_ns)
        sync = self.open_sync
        if sync is None or event.slot in sync.slots:
            sync = self._begin_sync(event.enter_ns, event.at_ns)
        fresh, initial = (None, False) if log is None else log.take(self.reader)
        # Under INITIALLY_SET the first sync is all ones: the pages are logged, but which are new is not known.
        if initial and len(self.dirty_syncs) == 1:
            fresh = None
            sync.initial = True
        sync.end_ns = max(sync.end_ns, event.at_ns)
        sync.slots[event.slot] = SlotRound(
            slot=event.slot,
            new_pages=None if fresh is None else dirty.count(fresh),
            logged_pages=None if logged is None else dirty.count(logged),
            pages=None if log is None else log.pages,
            heat=None if fresh is None or log is None else dirty.heat(fresh, log.pages),
            not_counted=_why(event) if logged is None else None,
        )
        self._count_again(sync, event.slot, fresh)

    def collected_rings(self, at_ns: int, fresh: dict[int, Bitmap] | None) -> None:
        """Take a KVM_RESET_DIRTY_RINGS of any thread: QEMU's reaper and vCPUs with a full ring make it too
        (accel/kvm/kvm-all.c, kvm_dirty_ring_reap)."""
        self.ring = True
        self.collected_ns = at_ns
        if fresh is None:
            self.unsynced_known = False
            return
        for slot, bitmap in fresh.items():
            self.unsynced[slot] = dirty.union(self.unsynced.get(slot, {}), bitmap)

    def reset_rings(self, event: ResetDirtyRings) -> None:
        """Take a KVM_RESET_DIRTY_RINGS of the migration thread: with dirty rings each is a dirty sync."""
        self.last_exit_ns = max(self.last_exit_ns, event.last_exit_ns)
        sync = self._begin_sync(event.enter_ns, event.at_ns)
        known, unsynced = self.unsynced_known, self.unsynced
        self.unsynced_known, self.unsynced = True, {}
        if not known:
            sync.redirtied = None
            self.distinct = None
            sync.slots[-1] = SlotRound(-1, None, None)
            return
        for slot, bitmap in unsynced.items():
            pages = dirty.count(bitmap)
            sync.slots[slot] = SlotRound(slot, pages, pages)
            self._count_again(sync, slot, bitmap)

    def pages_not_synced(self) -> int | None:
        """Return the pages of the dirty ring that were collected after the last dirty sync; None if a part is
        missing."""
        if not self.unsynced_known:
            return None
        return sum(dirty.count(bitmap) for bitmap in self.unsynced.values())

    def closed_device(self, fd: int, at_ns: int) -> None:
        """Note that the process closed a passed-through device."""
        self.sent_at_close[fd] = at_ns, self._sent()

    def _sent(self) -> int:
        """Return the bytes that the migration thread has sent, as far as they were reported."""
        return sum(
            max(0, total - self.baseline.get(channel, 0))
            for channel, total in self.by_thread.items()
        )

    def got_dma_pages(self, event: VfioDirty, bitmap: Bitmap | None) -> None:
        """Take a bitmap of pages that DMA wrote, counted from `event.iova`. None: a part is missing."""
        by_device = event.by == VfioDirtyTracking.DEVICE
        pages = None if bitmap is None else self._not_counted_yet(event, bitmap)
        _add_pages(self.dma_pages, by_device, pages)
        self.dma_unplaced.append((event.enter_ns, by_device, pages))
        if len(self.dma_unplaced) > _MAX_UNPLACED:
            self._place_dma(self.dma_unplaced[:1], self.open_sync)
            del self.dma_unplaced[0]

    def _not_counted_yet(self, event: VfioDirty, bitmap: Bitmap) -> int:
        """Return how many of the pages were not in an earlier bitmap that did not clear them (NO_CLEAR)."""
        key = event.fd, event.page_table, event.page_size
        kept = self.dma_kept.get(key, {})
        if not (kept or event.kept) or event.page_size <= 0:
            return dirty.count(bitmap)
        first = event.iova // event.page_size
        pages = dirty.shifted(bitmap, first)
        if event.kept:
            if key in self.dma_kept or len(self.dma_kept) < _MAX_KEPT:
                self.dma_kept[key] = dirty.union(kept, pages)
        else:
            self.dma_kept[key] = dirty.outside(kept, first, event.length // event.page_size)
        return dirty.count(dirty.minus(pages, kept))

    def _place_dma(
        self, reports: list[tuple[int, bool, int | None]], sync: DirtySync | None
    ) -> None:
        for _, by_device, pages in reports:
            if sync is not None:
                _add_pages(sync.dma_pages, by_device, pages)

    def _begin_sync(self, start_ns: int, end_ns: int) -> DirtySync:
        before = self.open_sync
        reports, self.dma_unplaced = self.dma_unplaced, []
        # A VMM reads the logs of KVM and of DMA one right after the other, in either order.
        earlier = [
            report
            for report in reports
            if before is not None and report[0] - before.end_ns <= start_ns - report[0]
        ]
        self._place_dma(earlier, before)
        sync = self._add_sync(start_ns, end_ns)
        self._place_dma([report for report in reports if report not in earlier], sync)
        return sync

    def _add_sync(self, start_ns: int, end_ns: int) -> DirtySync:
        sent = {fd: channel.bytes for fd, channel in self.channels.items()}
        if self.open_sync is not None:
            self.slot_rounds += len(self.open_sync.slots)
        self.open_sync = DirtySync(start_ns, end_ns, sent, dict(self.bursts))
        self.dirty_syncs.append(self.open_sync)
        kept = len(self.dirty_syncs)
        many_slots = self.slot_rounds > MAX_SLOT_ROUNDS
        if not self.is_migration and (kept > _MAX_OTHER_SYNCS or (many_slots and kept > 2)):
            self.slot_rounds -= len(self.dirty_syncs.pop(0).slots)
        elif kept > 2 + 2 * MAX_SYNCS:
            self._merge_older(MAX_SYNCS)
        elif many_slots and kept > _FEWEST_SYNCS:
            self._merge_older(kept // 4)
        return self.open_sync

    def _merge_older(self, latest: int) -> None:
        """Merge all dirty syncs except the first two and the latest ones."""
        self.dirty_syncs[2:-latest] = [_merged(self.dirty_syncs[2:-latest])]
        self.slot_rounds = sum(len(sync.slots) for sync in self.dirty_syncs[:-1])
        self._rounds = None

    def _count_again(self, sync: DirtySync, slot: int, fresh: Bitmap | None) -> None:
        # The first sync's pages were dirty before, except with dirty rings, which begin empty.
        counts = self.ring or len(self.dirty_syncs) > 1
        if fresh is None:
            if not sync.initial:
                sync.redirtied = None
            if counts:
                self.distinct = None
            return
        if not fresh:
            return
        seen = self.ever.get(slot, {})
        again = dirty.count(dirty.common(fresh, seen))
        if sync.redirtied is not None:
            sync.redirtied += again
        if counts:
            self.ever[slot] = dirty.union(seen, fresh)
            if self.distinct is not None:
                self.distinct += dirty.count(fresh) - again

    # -- what it sends --------------------------------------------------------------------------

    def sent(self, fd: int, event: Channel) -> None:
        """Take the totals of an fd of the process; `fd` differs each time that a number is used again."""
        if fd < 0:
            self._failed_send(event)
            return
        before = self.channels.get(fd)
        if before is not None and event.bytes < before.bytes:
            return
        if event.bytes <= self.baseline.get(fd, 0) and event.error_ns <= self.started_at_ns:
            return
        self.channels[fd] = event
        if event.sender_tid == self.tid:
            if not _is_wakeup(event):
                self.by_thread[fd] = event.bytes
                if self.sent_much_ns is None and self._sent() > SETUP_BYTES:
                    self.sent_much_ns = event.at_ns
        elif event.sender_tid == self.pid:
            self.by_main.add(fd)

    def _failed_send(self, event: Channel) -> None:
        """Note a send on fd -1: QEMU closes the socket when the return path breaks, and the migration thread's next
        send fails (migration/migration.c, source_return_path_thread; io/channel-socket.c)."""
        if (
            event.sender_tid == self.tid
            and event.error == -errno.EBADF
            and self.closed_fd_ns is None
        ):
            self.closed_fd_ns = event.error_ns

    def burst(self, fd: int, event: Burst) -> None:
        """Take the totals of an fd without its pauses."""
        if not self.bursts:
            self._rounds = None
        self.bursts[fd] = (event.bytes, event.ns)

    # -- the guest's stop -----------------------------------------------------------------------

    def clock_read(self, event: Clock) -> None:
        """Take a KVM_GET_CLOCK: the first is the stop; the migration thread's second is made when the state is read
        (QEMU hw/i386/kvm/clock.c: kvmclock_vm_state_change, kvmclock_pre_save)."""
        self.last_exit_ns = max(self.last_exit_ns, event.last_exit_ns)
        own = event.tid == self.tid
        if self.stop is None or self.resumed_at_ns is not None:
            if own or not self.paused_before or self.last_run_ns is not None:
                self.stop, self.saved, self.resumed_at_ns = event, None, None
        elif own:
            self.saved = event
            self.saves += 1
            self.sent_at_save = {fd: channel.bytes for fd, channel in self.channels.items()}

    def adopt_stop(self, loaded_ns: int | None, ran_ns: int | None) -> None:
        """Count a stop just before the migration as its stop, if the destination ran as soon as it had loaded (libvirt
        without --live)."""
        at_once = loaded_ns and ran_ns and ran_ns - loaded_ns <= STOPPED_FOR_IT_NS
        if self.stop is None and at_once:
            self.stop = self.stopped_before

    def adopt_pause(self) -> None:
        """Count a stop just before a save as its stop, if the guest runs again as soon as the save is over
        (libvirt's dump: src/qemu/qemu_driver.c, qemuDomainCoreDumpWithFormat)."""
        over, ran_on = self.over_at_ns, self.ran_on_ns
        if self.stop is None and over and ran_on and ran_on - over <= STOPPED_FOR_IT_NS:
            self.stop = self.stopped_before
            self.resumed_at_ns = ran_on if self.stop is not None else None

    def ran(self, at_ns: int, exit_ns: int = 0) -> None:
        """Note that a vCPU entered the guest again, after leaving it at `exit_ns`."""
        over = self.over_at_ns
        if self.ran_on_ns is None and at_ns > self.started_at_ns:
            self.ran_on_ns = at_ns
        if over is None or at_ns <= over:
            self.last_run_ns = at_ns
            if self.stop is None and exit_ns >= self.started_at_ns:
                self.longest_pause_ns = max(self.longest_pause_ns, at_ns - exit_ns)
                self.pauses.append((exit_ns, at_ns))
        if self.replaced_at_ns is not None and at_ns > self.replaced_at_ns:
            return
        if self.stop is not None and self.resumed_at_ns is None and at_ns > self.stop.at_ns:
            self.resumed_at_ns = at_ns

    def final_sync(self) -> DirtySync | None:
        """Return the last dirty sync after the stop."""
        if self.stop is None or not self.dirty_syncs:
            return None
        last = self.dirty_syncs[-1]
        return last if last.start_ns >= self.stop.at_ns else None

    # -- the channel ----------------------------------------------------------------------------

    def channel_fds(self, peers: dict[int, str | None]) -> set[int]:
        """Return the fds of the migration channel: the migration thread's fd, and those to the same peer.

        The thread also writes QMP events and wakes other threads by eventfd, so its fd is the one with most bytes, and
        not one on which the main thread answers.
        """
        candidates = {fd: n for fd, n in self.by_thread.items() if fd not in self.by_main}
        candidates = candidates or self.by_thread
        if not candidates:
            return set()
        sent = {fd: total - self.baseline.get(fd, 0) for fd, total in candidates.items()}
        refused = [fd for fd in sent if self.channels[fd].error]
        if refused and max(sent.values()) <= SETUP_BYTES:
            # the channel got no bytes: those that were sent went to the monitor
            sent = {fd: sent[fd] for fd in refused}
        main = max(sent, key=lambda fd: sent[fd])
        fds = {main}
        peer = peers.get(main)
        for fd, channel in self.channels.items():
            # multifd's channels have threads of their own and the same address and port
            # (QEMU migration/multifd.c, multifd_send_thread); storage on that host has another port
            own_thread = channel.sender_tid not in (self.pid, self.tid)
            alike = peer is not None or channel.op == self.channels[main].op
            if own_thread and fd not in self.by_main and peers.get(fd) == peer and alike:
                fds.add(fd)
        return fds

    def sent_bytes(self, fds: set[int]) -> int:
        """Return the bytes sent on these fds since the attempt began."""
        return sum(
            channel.bytes - self.baseline.get(fd, 0)
            for fd, channel in self.channels.items()
            if fd in fds
        )

    def last_sent_ns(self, fds: set[int]) -> int | None:
        """Return the time of the last send on these fds."""
        return max((self.channels[fd].last_ns for fd in fds if fd in self.channels), default=None)

    def miscounts(self, fds: set[int]) -> bool:
        """Whether the bytes of these fds may include some that were sent before the attempt began."""
        if self.uncertain is None:
            return False
        new = {fd for fd in fds if fd in self.channels and fd not in self.baseline}
        return bool(fds & self.uncertain) or any(
            self.channels[fd].first_ns < self.started_at_ns for fd in new
        )

    def state_bytes(self, fds: set[int]) -> int | None:
        """Return the bytes sent after the state was read: the state of vCPUs and devices. None until they are reported:
        the last bytes of a source that continues are reported when its thread ends."""
        if self.saved is None or self.sent_at_save is None:
            return None
        last = self.last_sent_ns(fds)
        if last is None or last <= self.saved.enter_ns:
            return None
        return self.sent_bytes(fds) - sum(
            n - self.baseline.get(fd, 0) for fd, n in self.sent_at_save.items() if fd in fds
        )

    def error(self, fds: set[int]) -> tuple[int, int] | None:
        """Return the first error on these fds since the attempt began: (time, negative errno), or None."""
        errors = [
            (channel.error_ns, channel.error)
            for fd, channel in self.channels.items()
            if fd in fds and channel.error and channel.error_ns > self.baseline_errors.get(fd, 0)
        ]
        if self.closed_fd_ns is not None:
            errors.append((self.closed_fd_ns, -errno.EBADF))
        return min(errors) if errors else None

    # -- rounds ---------------------------------------------------------------------------------

    def rounds(self, fds: set[int]) -> tuple[Round, ...]:
        """Return the dirty syncs as rounds; the bytes of each round were sent until the next.

        Only the last two may still change; the others are kept between calls.
        """
        key = frozenset(fds)
        kept = self._rounds[1] if self._rounds is not None and self._rounds[0] == key else []
        del kept[-2:]
        for index in range(len(kept), len(self.dirty_syncs)):
            kept.append(self._round(index, fds))
        self._rounds = key, kept
        return tuple(kept)

    def _round(self, index: int, fds: set[int]) -> Round:
        sync = self.dirty_syncs[index]
        later = self.dirty_syncs[index + 1] if index + 1 < len(self.dirty_syncs) else None
        until = self.sent_bytes(fds) if later is None else self._total(later, fds)
        before = _burst(sync.bursts, fds)
        after = _burst(self.bursts if later is None else later.bursts, fds)
        every = sync.slots.values()
        reported = dict(sync.dma_pages)
        if later is None:
            for _, by_device, pages in self.dma_unplaced:
                _add_pages(reported, by_device, pages)
        return Round(
            at_ns=sync.start_ns,
            duration_ns=max(0, sync.end_ns - sync.start_ns),
            new_pages=_sum([slot.new_pages for slot in every]),
            redirtied_pages=sync.redirtied if index > 0 else None,
            logged_pages=_sum([slot.logged_pages for slot in every]),
            sent_bytes=until - self._total(sync, fds),
            slots=tuple(sync.slots[slot] for slot in sorted(sync.slots) if slot >= 0),
            burst_bytes=after[0] - before[0] if self.bursts else None,
            burst_ns=after[1] - before[1] if self.bursts else None,
            syncs=sync.syncs,
            vfio_pages=reported.get(True),
            iommu_pages=reported.get(False),
        )

    def _total(self, sync: DirtySync, fds: set[int]) -> int:
        """Return the bytes that these fds had sent when a dirty sync began."""
        return sum(n - self.baseline.get(fd, 0) for fd, n in sync.sent.items() if fd in fds)

    def distinct_pages(self) -> int | None:
        """Return the pages that became dirty during the attempt, each counted once; None if a part is not known."""
        if not self.unsynced:
            return self.distinct if self.unsynced_known else None
        left = [
            dirty.count(dirty.minus(bitmap, self.ever.get(slot, {})))
            for slot, bitmap in self.unsynced.items()
        ]
        known = self.distinct is not None and self.unsynced_known
        return (self.distinct or 0) + sum(left) if known else None


def _is_wakeup(event: Channel) -> bool:
    """Whether all writes to an fd had eight bytes, as those to an eventfd, by which threads wake each other."""
    return event.op == WRITE and event.calls > 0 and event.bytes == 8 * event.calls


def _merged(syncs: list[DirtySync]) -> DirtySync:
    """Merge several dirty syncs into one with the first one's time, the sum of counts, and the time that all of them
    took."""
    first = syncs[0]
    slots: dict[int, SlotRound] = {}
    for sync in syncs:
        for number, slot in sync.slots.items():
            before = slots.get(number)
            slots[number] = SlotRound(
                slot=number,
                new_pages=_sum([before.new_pages if before else 0, slot.new_pages]),
                logged_pages=_sum([before.logged_pages if before else 0, slot.logged_pages]),
                pages=slot.pages,
                not_counted=slot.not_counted or (before.not_counted if before else None),
            )
    reported: dict[bool, int | None] = {}
    for sync in syncs:
        for by_device, pages in sync.dma_pages.items():
            _add_pages(reported, by_device, pages)
    return DirtySync(
        start_ns=first.start_ns,
        end_ns=first.start_ns + sum(max(0, sync.end_ns - sync.start_ns) for sync in syncs),
        sent=first.sent,
        bursts=first.bursts,
        slots=slots,
        redirtied=_sum([sync.redirtied for sync in syncs]),
        syncs=sum(sync.syncs for sync in syncs),
        dma_pages=reported,
    )


def _add_pages(totals: dict[bool, int | None], by_device: bool, pages: int | None) -> None:
    total = totals.get(by_device, 0)
    totals[by_device] = None if total is None or pages is None else total + pages


def _burst(bursts: dict[int, tuple[int, int]], fds: set[int]) -> tuple[int, int]:
    """Return bytes and the time they took; for channels that send at the same time, the mean over those that send."""
    sent = [bursts[fd] for fd in fds if fd in bursts]
    return sum(n for n, _ in sent), sum(ns for _, ns in sent) // max(1, len(sent))


def _why(event: GetDirtyLog) -> NotCounted:
    """Return why the bits of a log are not known."""
    if event.bitmap_bytes == 0:
        return "size-unknown"
    if event.walked_bytes < event.bitmap_bytes:
        return "too-large"
    return "unreadable" if event.read_errors else "records-missing"


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
