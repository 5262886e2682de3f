# SPDX-License-Identifier: MIT
"""Identifies the processes, fds, devices and virtual functions in the events of the kernel side."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vftrace import events
from vftrace.collect.batch import Intake
from vftrace.events import Event
from vftrace.faults import FAULTS, Where
from vftrace.host import descriptors, devices, orchestrator, processes
from vftrace.host.process_watch import ProcessWatch


class Identifier:
    """Writes a record for each process, fd, device and function that appears in the events.

    Reading /proc and /sys costs more than all else, so nothing is looked up twice unless an event shows that it
    may have changed.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._watch = ProcessWatch()
        self._ended: set[int] = set()
        self._images: dict[int, tuple[str, ...] | None] = {}
        """For each process: its image when its record was written (`processes.image_of`)."""
        self._incoming: set[int] = set()
        self._described: dict[int, dict[int, int]] = {}
        """For each process: the fds that records have named."""
        self._devices: dict[int, dict[int, devices.Device]] = {}
        self._vfs: dict[tuple[str, int], str | None] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        """The pids of the VMMs that are known and have not ended."""
        return self._watch.pids

    def take(self, event: Event) -> None:
        """Look at an event of the kernel side."""
        look = _LOOKS.get(type(event))
        if look is not None:
            with _contained(event.tgid):
                look(self, event)

    def meet(self, pid: int, *, late: bool, running: bool = False) -> None:
        """Write the identity of a process; `late` and `running` as in `events.Process`."""
        with _contained(pid):
            self._meet(pid, late=late, running=running)

    def is_incoming(self, pid: int) -> bool:
        """Whether a known VMM waits for a migration, by its command line."""
        return pid in self._incoming

    def _meet(self, pid: int, *, late: bool, running: bool) -> None:
        image = processes.image_of(pid)
        if image is not None and self._images.get(pid) == image:
            # The process makes VM after VM, as a test suite does, or a user who wants to keep the tracer busy.
            return
        self._images[pid] = image
        self._incoming.discard(pid)
        argv = processes.command_line(pid)
        identity = processes.identity_of(argv)
        load = descriptors.load_of(pid, argv)
        placement = orchestrator.find(pid, argv, identity.name)
        self._watch.watch(pid)
        if identity.incoming:
            self._incoming.add(pid)
        self._intake.write(
            events.Process,
            pid=pid,
            start_time=processes.start_time(pid) or 0,
            uuid=identity.uuid,
            name=identity.name,
            vmm=identity.vmm,
            incoming=identity.incoming,
            started_paused=identity.started_paused,
            late=late,
            running=running,
            load_channel=load.channel if load else None,
            load_path=load.path if load else None,
            load_program=load.program if load else None,
            namespace=placement.namespace,
            vmi=placement.vmi,
            pod_uid=placement.pod_uid,
            vmid=placement.vmid,
        )

    def find_device(self, pid: int, fd: int, name: str, *, late: bool) -> None:
        """Write a record about the device behind a VFIO device fd."""
        with _contained(pid):
            self._find_device(pid, fd, name, late=late)

    def _find_device(self, pid: int, fd: int, name: str, *, late: bool) -> None:
        found = devices.find(pid, fd, name, processes.command_line(pid))
        known = self._devices.setdefault(pid, {})
        if found is not None and known.get(fd) != found:
            known[fd] = found
            self._intake.write(
                events.Device,
                pid=pid,
                fd=fd,
                address=found.address,
                id=found.id,
                driver=found.driver,
                pf=found.pf,
                vf=found.vf,
                late=late,
            )

    def report_gone(self) -> set[int]:
        """Write a record for each process that ended without an Exit record, and return these processes."""
        # Only at the second look: at the first, the record of the end may still be in the ring buffer.
        ended = self._watch.ended()
        gone = ended & self._ended
        for pid in gone:
            self._forget(pid)
            self._intake.write(events.Gone, pid=pid)
        self._ended = ended
        return gone

    def retry_functions(self) -> None:
        """Forget that a virtual function had no address: it may be in /sys by the next message."""
        self._vfs = {key: address for key, address in self._vfs.items() if address is not None}

    def close(self) -> None:
        """Close all files."""
        self._watch.close()

    def _forget(self, pid: int) -> None:
        self._watch.forget(pid)
        self._images.pop(pid, None)
        self._incoming.discard(pid)
        self._devices.pop(pid, None)
        self._described.pop(pid, None)

    def _vm_created(self, event: events.VmCreated) -> None:
        self.meet(event.tgid, late=False)

    def _exit(self, event: events.Exit) -> None:
        self._forget(event.tgid)

    def _channel(self, event: events.Channel) -> None:
        # A reused fd number is another channel, which sent first at another time.
        if self._described.get(event.tgid, {}).get(event.fd) == event.first_ns:
            return
        found = descriptors.describe(event.tgid, event.fd)
        if found is not descriptors.UNKNOWN:
            self._described.setdefault(event.tgid, {})[event.fd] = event.first_ns
            self._intake.write(
                events.FileDescriptor,
                pid=event.tgid,
                fd=event.fd,
                kind=found.kind,
                peer=found.peer,
                path=found.path,
                program=found.program,
            )

    def _vfio_open(self, event: events.VfioOpen) -> None:
        self.find_device(event.tgid, event.fd, event.name, late=False)

    def _vfio_close(self, event: events.VfioClose) -> None:
        self._devices.get(event.tgid, {}).pop(event.fd, None)

    def _mailbox(self, event: events.Mailbox | events.Virtchnl) -> None:
        if (event.pf, event.vf) not in self._vfs:
            self._find_function(event.pf, event.vf)

    def _vf_reset(self, event: events.VfReset) -> None:
        # A function with another address was reset when it was made.
        self._find_function(event.pf, event.vf)

    def _find_function(self, pf: str, vf: int) -> None:
        address = devices.vf_address(pf, vf)
        if address is not None and self._vfs.get((pf, vf)) != address:
            self._intake.write(events.VfAddress, pf=pf, vf=vf, address=address)
        self._vfs[pf, vf] = address


@contextmanager
def _contained(pid: int) -> Iterator[None]:
    """Contain an error on one process, whose own texts may cause it; the other processes are still looked up."""
    try:
        yield
    except Exception as error:
        FAULTS.contained(Where.IDENTIFY, error, f"details of pid {pid} are missing", (pid,))


_LOOKS: dict[type[Event], Callable[[Identifier, Any], None]] = {
    events.VmCreated: Identifier._vm_created,
    events.Channel: Identifier._channel,
    events.Exit: Identifier._exit,
    events.VfioOpen: Identifier._vfio_open,
    events.VfioClose: Identifier._vfio_close,
    events.Mailbox: Identifier._mailbox,
    events.Virtchnl: Identifier._mailbox,
    events.VfReset: Identifier._vf_reset,
}

LOOKED_AT = frozenset(event.KIND for event in _LOOKS if event.KIND is not None)
"""The kinds of records that `Identifier.take` needs."""
