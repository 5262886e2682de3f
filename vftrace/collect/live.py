"""The live source: what the kernel side sends, plus the collector's own records, as one stream of bytes.

The collector's records are ticks (so that time passes in a recording too), clock samples, losses,
and who is who. They have a stream of their own (`events.COLLECTOR`).
"""

import ctypes
import os
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vftrace import __version__, events
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.host import descriptors, devices, namespaces, netlink, processes
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo
from vftrace.probes.loader import Probes

TICK_NS = 100_000_000
CLOCK_SAMPLE_NS = 1_000_000_000
POLL_MS = 20
READ_S = 0.2
"""How long one `read` goes on where records come faster than it takes them."""
MAX_NET_A_SECOND = 200
"""So many events of interfaces and bridges are recorded in a second; the others are counted."""

_VM_CREATED, _CHANNEL, _EXIT = 1, 12, 14
_MAILBOX, _VF_RESET = 40, 41
_VFIO_OPEN, _VFIO_CLOSE, _VFIO_MIGRATION = 20, 21, 23


def boottime_ns() -> int:
    """CLOCK_BOOTTIME, the clock of all events."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Timex(ctypes.Structure):
    # struct timex of <sys/timex.h>; only maxerror (microseconds) is used
    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 256),
    ]


def clock_sample() -> tuple[int, int]:
    """CLOCK_REALTIME - CLOCK_BOOTTIME and its error bound, ns: the kernel's maxerror and how long both took to read."""
    before = boottime_ns()
    realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = boottime_ns()
    timex = _Timex()
    ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    return realtime - (before + after) // 2, timex.maxerror * 1000 + (after - before)


def host_info(probes: Probes, profiles: tuple[str, ...]) -> HostInfo:
    """What a recording says of the host it was made on."""
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
    """Attached probes and a clock. `read()` gives the records that came since the last call."""

    ended = False
    """A live source never ends by itself."""

    def __init__(
        self,
        way: str | None = None,
        profiles: Sequence[str] = (),
        guest_memory: int | None = None,
    ) -> None:
        """Raises MachineError where this machine cannot do it. `way` and `guest_memory` as for `Probes`;
        `profiles`: texts of mailbox profiles (ProfileError where one is no good).
        """
        namespaces.require_host_namespaces()
        self._records: list[bytes] = []
        self._seq = 0
        self._start_times: dict[int, int | None] = {}
        self._missing: set[int] = set()
        self._described: set[tuple[int, int]] = set()
        self._vfs: dict[tuple[str, int], str] = {}
        self._devices: dict[tuple[int, int], devices.Device] = {}
        self._lost = 0
        self._uncounted: dict[int, int] = {}
        self._clock_offset: int | None = None
        self._next_tick_ns = 0
        self._next_clock_ns = 0
        self._net = netlink.Listener()
        self._links: dict[int, netlink.LinkState] = {}
        self._net_left = MAX_NET_A_SECOND
        self._net_missed = self._net_said = 0
        profiles = tuple(profiles)
        self.probes = Probes(self._on_kernel_record, way, drivers_of(profiles), guest_memory)
        self.host = host_info(self.probes, profiles)
        # Probes first, then the VMs that run already: none can slip between.
        self._meet_running()

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        return boottime_ns()

    def read(self) -> list[bytes]:
        """Wait a moment, then return what came, in order of arrival."""
        emptied = self.probes.poll(POLL_MS, READ_S)
        self._read_net()
        # A tick says that all before it is known: not while older records wait in the ring.
        if emptied:
            self._keep_time()
        records, self._records = self._records, []
        return records

    def close(self) -> list[bytes]:
        """Detach; returns the last records, the End record among them."""
        self.probes.poll(0)
        self._read_net()
        self._net.close()
        self._report_lost()
        self._report_uncounted()
        self._report_floods()
        self._add(events.End(*self._head(), streams=self.probes.streams()))
        self.probes.close()
        records, self._records = self._records, []
        return records

    def _on_kernel_record(self, record: bytes) -> None:
        _, _, _, kind, _, tgid, _ = wire.HEADER.unpack_from(record)
        self._records.append(wire.shortened(record) if kind == Kind.PIECE else record)
        if kind == _VM_CREATED:
            self._identify(tgid, late=False)
        elif kind == _CHANNEL:
            self._describe(record)
        elif kind == _VFIO_OPEN:
            event = wire.decode(record)
            if isinstance(event, events.VfioOpen):
                self._find_device(tgid, event.fd, event.name, late=False)
        elif kind == _VFIO_CLOSE:
            event = wire.decode(record)
            if isinstance(event, events.VfioClose):
                self._devices.pop((tgid, event.fd), None)
        elif kind in (_MAILBOX, _VF_RESET):
            self._find_vf(record)
        elif kind == _VFIO_MIGRATION:
            self.probes.vfio.met_migratable()
        elif kind == _EXIT:
            self._start_times.pop(tgid, None)
            self._devices = {key: d for key, d in self._devices.items() if key[0] != tgid}
            self._described = {key for key in self._described if key[0] != tgid}

    def _meet_running(self) -> None:
        for pid in processes.vmm_pids():
            in_kvm_run = list(processes.threads_in_kvm_run(pid))
            self.probes.watch(pid, in_kvm_run)
            self._identify(pid, late=True, running=bool(in_kvm_run))
            held = devices.device_fds(pid)
            self.probes.vfio.watch(pid, list(held))
            for fd in held:
                self._find_device(pid, fd, "", late=True)

    def _find_vf(self, record: bytes) -> None:
        event = wire.decode(record)
        if isinstance(event, events.Mailbox | events.VfReset):
            address = devices.vf_address(event.pf, event.vf)
            if self._vfs.get((event.pf, event.vf)) != address and address is not None:
                self._vfs[event.pf, event.vf] = address
                self._add(
                    events.VfAddress(*self._head(), pf=event.pf, vf=event.vf, address=address)
                )

    def _identify(self, pid: int, *, late: bool, running: bool = False) -> None:
        start = processes.start_time(pid)
        identity = processes.identity_of(processes.command_line(pid))
        self._start_times[pid] = start
        self._add(
            events.Process(
                *self._head(),
                pid=pid,
                start_time=start or 0,
                uuid=identity.uuid,
                name=identity.name,
                vmm=identity.vmm,
                incoming=identity.incoming,
                started_paused=identity.started_paused,
                late=late,
                running=running,
            )
        )

    def _describe(self, record: bytes) -> None:
        event = wire.decode(record)
        if isinstance(event, events.Channel) and (event.tgid, event.fd) not in self._described:
            found = descriptors.describe(event.tgid, event.fd)
            if found is not descriptors.UNKNOWN:
                self._described.add((event.tgid, event.fd))
                self._add(
                    events.FileDescriptor(
                        *self._head(), pid=event.tgid, fd=event.fd, kind=found.kind, peer=found.peer
                    )
                )

    def _find_device(self, pid: int, fd: int, name: str, *, late: bool) -> None:
        found = devices.find(pid, fd, name, processes.command_line(pid))
        if found is not None and self._devices.get((pid, fd)) != found:
            self._devices[pid, fd] = found
            self._add(
                events.Device(
                    *self._head(),
                    pid=pid,
                    fd=fd,
                    address=found.address,
                    id=found.id,
                    driver=found.driver,
                    pf=found.pf,
                    vf=found.vf,
                    late=late,
                )
            )

    def _keep_time(self) -> None:
        now = boottime_ns()
        if now >= self._next_clock_ns:
            self._sample_clock()
            self._next_clock_ns = now + CLOCK_SAMPLE_NS
            self._net_left = MAX_NET_A_SECOND
        if now >= self._next_tick_ns:
            self._report_lost()
            self._report_uncounted()
            self._report_missed()
            self._report_gone()
            if self.probes.follow():
                self._meet_running()
            self.host = replace(self.host, probes=self.probes.status)
            self._report_floods()
            self._add(events.Tick(*self._head()))
            self._next_tick_ns = now + TICK_NS

    def _sample_clock(self) -> None:
        offset, error = clock_sample()
        self._add(events.ClockSample(*self._head(), offset, error))

    def _report_uncounted(self) -> None:
        uncounted = self.probes.uncounted()
        for pid, count in uncounted.items():
            if self._uncounted.get(pid) != count:
                self._add(events.Uncounted(*self._head(), pid=pid, count=count))
        self._uncounted = uncounted

    def _report_lost(self) -> None:
        lost = self.probes.lost()
        if lost > self._lost:
            self._lost = lost
            self._add(events.Lost(*self._head(), count=lost))

    def _read_net(self) -> None:
        for found in self._net.read():
            if isinstance(found, netlink.LinkState) and not self._is_news(found):
                continue
            if self._net_left == 0:
                self._net_missed += 1
                continue
            self._net_left -= 1
            if isinstance(found, netlink.LinkState):
                self._tell_link(found)
            else:
                self._tell_address(found)

    def _is_news(self, link: netlink.LinkState) -> bool:
        """Whether anything that is recorded is another: the kernel tells of much else."""
        if self._links.get(link.index) == link:
            return False
        self._links[link.index] = link
        if link.gone:
            del self._links[link.index]
        return True

    def _tell_link(self, link: netlink.LinkState) -> None:
        self._add(
            events.NetLink(
                *self._head(),
                interface=link.name,
                mac=link.mac,
                master=netlink.name_of(link.master) if link.master else None,
                up=link.up,
                carrier=link.carrier,
                gone=link.gone,
            )
        )

    def _tell_address(self, learned: netlink.Learned) -> None:
        port = netlink.name_of(learned.port)
        self._add(
            events.NetAddress(
                *self._head(),
                mac=learned.mac,
                port=port,
                bridge=netlink.name_of(learned.bridge),
                gone=learned.gone,
                pid=netlink.tap_owner(port, tuple(self._start_times)),
            )
        )

    def _report_missed(self) -> None:
        missed = self._net_missed + self._net.lost
        if missed != self._net_said:
            self._net_said = missed
            self._add(events.NetMissed(*self._head(), count=missed))

    def _report_floods(self) -> None:
        for unsent in self.probes.mailbox.unsent():
            self._add(
                events.MailboxFlood(
                    *self._head(),
                    pf=unsent.pf,
                    driver=unsent.driver,
                    vf=unsent.vf,
                    from_vf=unsent.from_vf,
                    to_vf=unsent.to_vf,
                    resets=unsent.resets,
                )
            )

    def _report_gone(self) -> None:
        # At the second look only: the first may come before the ring's own word of the end.
        missing = {p for p, start in self._start_times.items() if processes.start_time(p) != start}
        for pid in missing & self._missing:
            del self._start_times[pid]
            self._add(events.Gone(*self._head(), pid=pid))
        self._missing = missing

    def _head(self) -> tuple[int, int, int, int]:
        self._seq += 1
        return boottime_ns(), self._seq - 1, events.COLLECTOR, os.getpid()

    def _add(self, event: events.Event) -> None:
        self._records.append(wire.encode(event))
