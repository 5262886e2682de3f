# SPDX-License-Identifier: MIT
"""The live source: the kernel side's records and the collector's own, in one sequence.

The collector's records are ticks (so that time passes in a recording too), clock samples, losses,
and the identities of processes, fds and devices. Their `tgid` is `events.COLLECTOR`.
"""

import platform
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from vftrace import __version__, events
from vftrace.collect import calls, vcpus
from vftrace.collect.batch import Batch, Intake
from vftrace.collect.clock import boottime_ns, clock_sample, realtime_offset_ns
from vftrace.collect.identify import LOOKED_AT, Identifier
from vftrace.collect.network import NetworkWatch
from vftrace.errors import VftraceError
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.faults import FAULTS, Where
from vftrace.host import devices, namespaces, processes
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo
from vftrace.probes.loader import Probes
from vftrace.probes.tables import VMS

TICK_NS = 100_000_000
SECOND_NS = 1_000_000_000
CLOCK_SET_NS = 10_000_000
"""A wall clock that has moved by this much within a second was set: it is slewed by half a millisecond at most."""
MISSED_EVERY_NS = 500_000_000
"""How often the kernel's counters of skipped runs are read while no VM migrates: sooner than a migration that ended is
counted (settled.py in analysis). Meanwhile each tick reads them, because every migration that was under way between two
readings is marked."""
POLL_MS = 20
_LOOKED_AT = LOOKED_AT | calls.LOOKED_AT | vcpus.LOOKED_AT | {Kind.VFIO_MIGRATION}
"""Kinds of records that are decoded on arrival, because a process has to be found or watched then."""
READ_S = 0.05
"""How long one `read` continues if records arrive faster than it takes them. Together with the main process's reads
(remote.py) this bounds how old a record is when it reaches the recording."""


def host_info(probes: Probes, profiles: tuple[str, ...]) -> HostInfo:
    """Return this host, for a recording's first line."""
    return HostInfo(
        name=socket.gethostname(),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        kernel=platform.release(),
        vftrace=__version__,
        started_at_ns=boottime_ns(),
        probes=probes.status,
        profiles=profiles,
    )


class LiveSource:
    """Attached probes and a clock. `read()` returns the records since the last call."""

    ended = False
    """A live source never ends by itself."""

    def __init__(
        self,
        way: str | None = None,
        profiles: Sequence[str] = (),
        guest_memory: int | None = None,
    ) -> None:
        """Attach the probes. Raises MachineError if this machine cannot be traced, ProfileError for a wrong profile.

        `way` and `guest_memory` are as for `Probes`; `profiles` are texts of mailbox profiles.
        """
        namespaces.require_host_namespaces()
        self._intake = Intake()
        self._identifier = Identifier(self._intake)
        self._network = NetworkWatch(self._intake, lambda: self._identifier.pids)
        self._lost = 0
        self._dropped = 0
        self._dropped_of: Counter[int] = Counter()
        self._vm_lost: dict[int, tuple[int, int, int]] = {}
        self._uncounted: dict[int, int] = {}
        self._full: Counter[str] = Counter()
        self._untraced: Counter[int] = Counter()
        self._missed: dict[tuple[str, str], int] = {}
        self._missed_read_ns = boottime_ns()
        self._offset_ns = 0
        """The wall clock minus CLOCK_BOOTTIME at the latest sample."""
        self._next_tick_ns = 0
        self._next_second_ns = 0
        self._next_missed_ns = 0
        profiles = tuple(profiles)
        self.probes = Probes(self._on_kernel_record, way, drivers_of(profiles), guest_memory)
        self._vcpus = vcpus.VcpuWatch(self._intake, self.probes.vcpus)
        self._calls = calls.CallWatch(
            self._intake,
            self.probes.calls,
            lambda pid, destination: self._vcpus.migrates(pid, destination=destination),
            self._identifier.is_incoming,
        )
        self.host = host_info(self.probes, profiles)
        # Attach the probes first, then look for running VMs, so that none is missed.
        self._meet_running()

    def now_ns(self) -> int:
        """Return CLOCK_BOOTTIME."""
        return boottime_ns()

    def count_dropped(self, dropped: Counter[int]) -> None:
        """Count more parts of bitmaps as lost, by process: they were dropped after this source had returned them."""
        self._dropped += dropped.total()
        self._dropped_of.update(dropped)

    def read(self, timeout_ms: int = POLL_MS) -> Batch:
        """Wait a moment, then return the records that arrived, in order of arrival."""
        emptied = self.probes.poll(timeout_ms, READ_S)
        try:
            self._look_around(emptied=emptied)
        except VftraceError:
            raise
        except Exception as error:
            FAULTS.contained(Where.READER, error, "a tick reports a part only")
        return self._intake.drain()

    def close(self) -> Batch:
        """Detach; returns the last records, including the End record."""
        self.probes.poll(0)
        streams = self.probes.streams()
        # A process that ended in between is no longer in `streams`: its last records have to come before End.
        self.probes.poll(0)
        self._network.read()
        self._network.close()
        self._report_lost()
        self._report_uncounted()
        self._report_missed_runs()
        self._report_floods()
        self._calls.close()
        self._vcpus.close()
        self._intake.write(events.End, streams=streams)
        self._identifier.close()
        self.probes.close()
        return self._intake.drain()

    def _look_around(self, *, emptied: bool) -> None:
        """Write the collector's own records; `emptied`: no record of the kernel side waits to be read."""
        # A tick means that all records before it are known, even if the reader is late.
        self._intake.reach(self.probes.known_ns)
        self._keep_time(emptied=emptied)
        if emptied:
            # Changes of the network have the time at which they were read.
            self._intake.reach(boottime_ns())
            self._network.read()

    def _on_kernel_record(self, record: bytes) -> None:
        try:
            self._take(record)
        except VftraceError:
            raise
        except Exception as error:
            pid = wire.tgid_of(record)
            what = f"a record of pid {pid} is not identified"
            FAULTS.contained(Where.READER, error, what, (pid,))

    def _take(self, record: bytes) -> None:
        if wire.kind_of(record) in calls.KINDS:
            self._calls.take(record)
            return
        event = self._intake.take_in(record, decode=wire.kind_of(record) in _LOOKED_AT)
        if event is None:
            pid, at_ns = wire.tgid_of(record), wire.time_of(record)
            self._calls.sign(pid, at_ns)
            self._vcpus.sign(pid, at_ns)
            return
        self._identifier.take(event)
        self._vcpus.see(event)
        self._calls.see(event)
        if type(event) is events.VfioMigration:
            self.probes.vfio.saw_migratable()

    def _meet_running(self) -> None:
        for pid in processes.vmm_pids():
            in_kvm_run = list(processes.threads_in_kvm_run(pid))
            self.probes.watch(pid, in_kvm_run)
            self._vcpus.meet(pid, in_kvm_run)
            self._identifier.meet(pid, late=True, running=bool(in_kvm_run))
            if not in_kvm_run:
                self._calls.meet(pid)
            held = devices.device_fds(pid)
            self.probes.vfio.watch(pid, list(held))
            for fd in held:
                self._identifier.find_device(pid, fd, "", late=True)

    def _keep_time(self, *, emptied: bool) -> None:
        """Write ticks and samples that are due; `emptied`: no record of the kernel side waits to be read."""
        now = boottime_ns()
        if now >= self._next_second_ns:
            self._next_second_ns = now + SECOND_NS
            self._sample_clock()
            self._network.begin_second()
            self._identifier.retry_functions()
            self._report_uncounted()
        if now >= self._next_tick_ns:
            self._next_tick_ns = now + TICK_NS
            self._notice_set_clock()
            if self._calls.any_migrates or now >= self._next_missed_ns:
                self._next_missed_ns = now + MISSED_EVERY_NS
                self._report_missed_runs()
            self._report_lost()
            self._network.report_missed()
            for pid in self._identifier.report_gone() if emptied else ():
                self.probes.forget(pid)
                self._calls.forget(pid)
                self._vcpus.forget(pid)
            self._calls.tick()
            self._vcpus.tick()
            if self.probes.follow():
                self._meet_running()
            self.host = replace(self.host, probes=self.probes.status)
            self._report_floods()
            self._intake.write(events.Tick)

    def _notice_set_clock(self) -> None:
        """Take a sample if the wall clock was set: until the next one, times of day would be wrong by that much."""
        if abs(realtime_offset_ns() - self._offset_ns) > CLOCK_SET_NS:
            self._sample_clock()

    def _sample_clock(self) -> None:
        self._offset_ns, error = clock_sample()
        self._intake.write(events.ClockSample, realtime_offset_ns=self._offset_ns, error_ns=error)

    def _report_uncounted(self) -> None:
        uncounted = self.probes.uncounted()
        for pid, count in uncounted.items():
            if self._uncounted.get(pid) != count:
                self._intake.write(events.Uncounted, pid=pid, count=count)
        self._uncounted = uncounted
        for table, count in self.probes.full().items():
            if count > self._full[table]:
                self._full[table] = count
                self._intake.write(events.TableFull, table=table, count=count)
                if table == VMS:
                    self._report_untraced()

    def _report_untraced(self) -> None:
        for uid, count in self.probes.untraced().items():
            if count > self._untraced[uid]:
                self._untraced[uid] = count
                self._intake.write(events.Untraced, uid=uid, count=count)

    def _report_missed_runs(self) -> None:
        since, self._missed_read_ns = self._missed_read_ns, boottime_ns()
        missed = self.probes.missed_runs()
        until = boottime_ns()
        for (probe, reason), count in missed.items():
            if count > self._missed.get((probe, reason), 0):
                self._intake.write(
                    events.MissedRuns,
                    probe=probe,
                    reason=reason,
                    count=count,
                    since_ns=since,
                    until_ns=until,
                )
        self._missed = missed

    def _report_lost(self) -> None:
        events_lost, bulk_lost = self.probes.lost()
        lost = events_lost + bulk_lost + self._dropped
        if lost == self._lost:
            return
        self._lost = lost
        self._intake.write(events.Lost, count=lost, bulk=bulk_lost + self._dropped)
        in_kernel = self.probes.lost_by_vm()
        by_vm = {
            pid: (*in_kernel.get(pid, (0, 0)), self._dropped_of[pid])
            for pid in in_kernel.keys() | self._dropped_of.keys()
        }
        for pid, (records, bulk, dropped) in by_vm.items():
            if self._vm_lost.get(pid) != (records, bulk, dropped):
                self._intake.write(
                    events.VmLost, pid=pid, records=records, bulk=bulk, dropped=dropped
                )
        self._vm_lost = by_vm
        live = set(self._identifier.pids)
        for pid in [pid for pid in self._dropped_of if pid not in live]:
            del self._dropped_of[pid]

    def _report_floods(self) -> None:
        for unsent in self.probes.mailbox.unsent():
            self._intake.write(
                events.MailboxFlood,
                pf=unsent.pf,
                driver=unsent.driver,
                vf=unsent.vf,
                from_vf=unsent.from_vf,
                to_vf=unsent.to_vf,
                resets=unsent.resets,
            )
