# SPDX-License-Identifier: MIT
"""The passed-through devices of one VMM: their states, the state bytes they moved, and their absence.

State names are those of enum vfio_device_mig_state (include/uapi/linux/vfio.h).
"""

from collections import Counter
from collections.abc import Iterator

import msgspec

from vftrace import events
from vftrace.model.migration import (
    DeviceDowntime,
    DeviceState,
    DeviceUse,
    Mapping,
    Role,
    VmDevice,
)
from vftrace.uapi import VFIO_DEVICE_STATES

RUNS = frozenset({"RUNNING", "PRE_COPY"})
"""States in which a device works normally. In the P2P states it may not send DMA to other devices."""

TRANSFER = frozenset({"PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "RESUMING"})
"""States that only a transfer of the device's state needs."""

STOPPED = frozenset({"STOP", "STOP_COPY"})

MAX_REQUESTS = 1024
"""The latest requests kept for each device. Every pause of a VM adds some."""

MAX_TRANSITIONS = 4096
OTHER = "other"
"""Transitions are counted by device up to this many kinds, and together beyond."""

MAX_DEVICES = 256
"""Devices kept for each process, closed ones included; the oldest are dropped first."""

MAX_PAGE_TABLES = 1024
"""Page tables remembered for each process."""

Transition = tuple[str, str, str]
"""A device's address, the state it left, the one it reached."""

VfioEvent = (
    events.VfioOpen
    | events.VfioClose
    | events.VfioState
    | events.VfioMigration
    | events.VfioDataSize
    | events.VfioPrecopyInfo
    | events.VfioReset
    | events.VfioDirtyTracking
    | events.VfioData
    | events.VfioMapped
    | events.VfioPageTable
)


_CHANGES = (events.VfioState, events.VfioReset)


def state_name(state: int) -> str:
    """Return the uAPI's name of a state, or its number if it has no name."""
    known = 0 <= state < len(VFIO_DEVICE_STATES)
    return VFIO_DEVICE_STATES[state] if known else str(state)


class Request(msgspec.Struct, frozen=True):
    """A request to change a device's state, from `enter_ns` to `at_ns`. `ret` is 0 or a negative errno."""

    enter_ns: int
    at_ns: int
    state: str
    ret: int


class Trouble(msgspec.Struct, frozen=True):
    """A request that a device refused, or a transfer that failed. `ret` is a negative errno."""

    at_ns: int
    what: str
    ret: int
    refused: bool


class PassedDevice(msgspec.Struct):
    """One device from its opening to its closing."""

    fd: int
    opened_at_ns: int | None
    """None: the device was open before tracing began."""
    mapping_ns: int | None = None
    """When the process began to map guest memory for this device, its first."""
    mapping: Mapping | None = None
    """All of that, where it was recorded."""
    iommu_tracks: bool | None = None
    """Whether the iommufd's page table that it uses can mark written pages; None if that was not seen."""
    bound: bool = False
    """Whether it is bound to an iommufd: memory is mapped after that, for a container before."""
    address: str | None = None
    id: str | None = None
    driver: str | None = None
    pf: str | None = None
    vf: int | None = None
    flags: int | None = None
    requests: list[Request] = msgspec.field(default_factory=list)
    resets: list[events.VfioReset] = msgspec.field(default_factory=list)
    data: dict[int, events.VfioData] = msgspec.field(default_factory=dict)
    """Latest totals, by the time when the kernel returned the data fd."""
    data_given_ns: int = 0
    stop_copy_bytes: int | None = None
    """The device's latest estimate of the bytes it transfers while stopped."""
    closed_at_ns: int | None = None

    @property
    def label(self) -> str:
        """QEMU's id, else the address, else the fd number."""
        return self.id or self.address or f"fd {self.fd}"

    @property
    def state(self) -> str | None:
        """The device's current state; None if no event showed one."""
        states = self.states()
        return states[-1].state if states else None

    def states(self) -> tuple[DeviceState, ...]:
        """The states the device has been in, each with the time when it was reached.

        A device begins in RUNNING, and a reset leads back there. If a device rejects both the requested state and
        the fallback state, it is in ERROR.
        """
        found: list[DeviceState] = []
        if self.opened_at_ns is not None:
            found.append(DeviceState("RUNNING", self.opened_at_ns))
        steps: list[tuple[int, str | None]] = [
            (request.at_ns, request.state if request.ret == 0 else None)
            for request in self.requests
        ]
        steps += [(reset.at_ns, "RUNNING") for reset in self.resets if reset.ret == 0]
        refused = 0
        for at_ns, state in sorted(steps, key=lambda step: step[0]):
            refused = refused + 1 if state is None else 0
            reached = "ERROR" if refused > 1 else state
            if reached is not None and (not found or found[-1].state != reached):
                found.append(DeviceState(reached, at_ns))
        return tuple(found)

    def bytes_moved(self, op: int, since_ns: int) -> int | None:
        """Bytes of device state saved or loaded since then; None if no data fd was seen."""
        found = [d.bytes for given, d in self.data.items() if d.op == op and given >= since_ns]
        return sum(found) if found else None

    def data_ended_ns(self, op: int, since_ns: int) -> int | None:
        """Return when the last byte was moved, or a read reported the end of the data."""
        times = [d.last_ns for given, d in self.data.items() if d.op == op and given >= since_ns]
        return max(times, default=0) or None

    def troubles(self, since_ns: int, until_ns: int) -> list[Trouble]:
        """Refused requests and failed transfers in this interval, in order of time."""
        found = [
            Trouble(r.at_ns, f"{r.state} refused", r.ret, True)
            for r in self.requests
            if r.ret < 0 and since_ns <= r.at_ns <= until_ns
        ]
        for data in self.data.values():
            if data.error and since_ns <= data.error_ns <= until_ns:
                what = "load failed" if data.op == events.VfioData.LOAD else "save failed"
                found.append(Trouble(data.error_ns, what, data.error, False))
        return sorted(found, key=lambda trouble: trouble.at_ns)

    def reset_after(self, at_ns: int) -> bool:
        """Whether the device was reset since then."""
        return any(reset.at_ns >= at_ns for reset in self.resets)

    def left_running_ns(self, since_ns: int) -> int | None:
        """Return when the VMM first requested, with success, a state in which the device does not work normally."""
        for request in self.requests:
            if request.ret == 0 and request.at_ns >= since_ns and request.state not in RUNS:
                return request.enter_ns
        return None

    def runs_again_ns(self, since_ns: int) -> int | None:
        """Return when the device first reached RUNNING after that."""
        for state in self.states():
            if state.state == "RUNNING" and state.at_ns > since_ns:
                return state.at_ns
        return None

    def stopped_ns(self, since_ns: int) -> int | None:
        """Return when the device first reached a stopped state after that."""
        for state in self.states():
            if state.state in STOPPED and state.at_ns >= since_ns:
                return state.at_ns
        return None


class Devices(msgspec.Struct):
    """All devices of one process. Takes the process's VFIO events in order of time."""

    all: list[PassedDevice] = msgspec.field(default_factory=list)
    by_fd: dict[int, PassedDevice] = msgspec.field(default_factory=dict)
    transitions: Counter[Transition] = msgspec.field(default_factory=Counter)
    """Shared by all processes, so that the counts of a closed device stay."""
    page_tables: dict[int, bool] = msgspec.field(default_factory=dict)
    """By number: whether a page table of an iommufd can mark written pages."""
    last_mapping: Mapping | None = None
    """The latest mappings that belong to no device yet."""
    tracked: bool = False
    """Whether a device or an IOMMU was asked, with success, to track pages written by DMA."""

    def feed(self, event: VfioEvent) -> None:
        """Take one event. Never raises on content."""
        device = self.by_fd.get(event.fd) if isinstance(event, _CHANGES) else None
        before = device.state if device is not None else None
        self._take(event)
        if device is None or before is None or device.state in (None, before):
            return
        key = device.address or device.label, before, device.state or ""
        if key in self.transitions or len(self.transitions) < MAX_TRANSITIONS:
            self.transitions[key] += 1
        else:
            self.transitions[OTHER, *key[1:]] += 1

    def _take(self, event: VfioEvent) -> None:
        match event:
            case events.VfioOpen():
                self._open(event)
            case events.VfioClose():
                device = self.by_fd.pop(event.fd, None)
                if device is not None:
                    device.closed_at_ns = event.at_ns
            case events.VfioState(op=events.VfioState.SET):
                device = self._device(event.fd)
                name = state_name(event.state)
                device.requests.append(Request(event.enter_ns, event.at_ns, name, event.ret))
                del device.requests[:-MAX_REQUESTS]
                if event.ret == 0 and event.data_fd >= 0:
                    device.data_given_ns = event.at_ns
            case events.VfioMigration(ret=0):
                self._device(event.fd).flags = event.flags
            case events.VfioDataSize(ret=0):
                self._device(event.fd).stop_copy_bytes = event.stop_copy_length
            case events.VfioMapped():
                self._mapped(event)
            case events.VfioPageTable(op=events.VfioPageTable.ALLOC, ret=0):
                if len(self.page_tables) < MAX_PAGE_TABLES:
                    self.page_tables[event.id] = bool(event.tracks)
            case events.VfioPageTable(op=events.VfioPageTable.ATTACH, ret=0):
                # Of an address space the kernel makes a page table by itself, without tracking.
                self._device(event.fd).iommu_tracks = self.page_tables.get(event.id, False)
            case events.VfioDirtyTracking(on=1, ret=0):
                self.tracked = True
            case events.VfioReset(op=events.VfioReset.DEVICE | events.VfioReset.HOT):
                self._device(event.fd).resets.append(event)
            case events.VfioData():
                device = self._device(event.fd)
                before = device.data.get(device.data_given_ns)
                if before is None or event.bytes >= before.bytes:
                    device.data[device.data_given_ns] = event
            case _:
                pass

    def identify(self, event: events.Device) -> None:
        """Take what the collector read from /proc and /sys about the device behind an fd."""
        device = self._device(event.fd)
        device.address = event.address
        device.id = event.id or device.id
        device.driver, device.pf, device.vf = event.driver, event.pf, event.vf

    def _open(self, event: events.VfioOpen) -> None:
        known = self.by_fd.get(event.fd)
        seen = event.how == events.VfioOpen.SEEN
        if known is not None and known.opened_at_ns is None and _binds(event, known):
            known.opened_at_ns = event.at_ns
            known.mapping_ns = event.mapping_ns or None
        elif known is None or not seen:
            known = self._add(event.fd, None if seen else event.at_ns)
            known.mapping_ns = event.mapping_ns or None
        if not seen:
            known.bound = event.how == events.VfioOpen.BIND
            if known.mapping_ns is not None:
                known.mapping, self.last_mapping = self.last_mapping, None
        words = event.name.split()
        if words:
            known.address = known.address or words[0].lower()

    def _mapped(self, event: events.VfioMapped) -> None:
        if event.maps == 0:
            return
        end = max(event.first_ns, event.last_ns)
        made = Mapping(event.first_ns, end, event.took_ns, event.maps)
        # The newest device; one that joins others in their container or page table has all mapped already.
        last = self.all[-1] if self.all else None
        if last is not None and last.bound and (last.opened_at_ns or 0) <= event.first_ns:
            if last.mapping is None:
                last.mapping, last.mapping_ns = made, event.first_ns
        else:
            self.last_mapping = made

    def _device(self, fd: int) -> PassedDevice:
        return self.by_fd.get(fd) or self._add(fd, None)

    def _add(self, fd: int, opened_at_ns: int | None) -> PassedDevice:
        device = PassedDevice(fd, opened_at_ns)
        self.by_fd[fd] = device
        self.all.append(device)
        if len(self.all) > MAX_DEVICES:
            self.all.pop(0)
        return device

    def uncertain(self, last_loss_ns: int, until_ns: int) -> bool:
        """Whether a device's state may have changed unseen: no request of it followed the loss."""
        return any(
            not any(last_loss_ns < request.at_ns <= until_ns for request in device.requests)
            for device in self.present(last_loss_ns, until_ns)
            if (device.opened_at_ns or 0) <= last_loss_ns
        )

    def shown(self) -> tuple[VmDevice, ...]:
        """The devices that are open now."""
        if not self.by_fd:
            return ()
        return tuple(
            VmDevice(
                address=device.address or device.label,
                id=device.id,
                driver=device.driver,
                state=device.state,
            )
            for _, device in sorted(self.by_fd.items())
        )

    def present(self, since_ns: int, until_ns: int) -> Iterator[PassedDevice]:
        """Devices that the process had open at some time in this interval."""
        for device in self.all:
            gone = device.closed_at_ns
            if (gone is None or gone >= since_ns) and (device.opened_at_ns or 0) <= until_ns:
                yield device

    def transferring(self, since_ns: int, until_ns: int) -> list[PassedDevice]:
        """Devices of which the VMM requested a transfer state in this interval, and devices that refused any state."""
        return [
            device
            for device in self.present(since_ns, until_ns)
            if any(
                since_ns <= r.at_ns <= until_ns and (r.state in TRANSFER or r.ret < 0)
                for r in device.requests
            )
        ]


def _binds(event: events.VfioOpen, known: PassedDevice) -> bool:
    """Whether this is the bind request by whose entry a kprobe met the device: no other request can come before it.

    (vfio_device_fops_unl_ioctl refuses them until the device is bound, drivers/vfio/vfio_main.c.)
    """
    return event.how == events.VfioOpen.BIND and not known.requests and known.flags is None


def pairs(
    sources: list[PassedDevice], destinations: list[PassedDevice]
) -> list[tuple[PassedDevice, PassedDevice | None]]:
    """Pair each source device with its successor: the one with the same id, else the one in the same position."""
    rest = list(destinations)
    found: list[tuple[PassedDevice, PassedDevice | None]] = []
    for device in sources:
        same = next((d for d in rest if d.id is not None and d.id == device.id), None)
        if same is not None:
            rest.remove(same)
        found.append((device, same))
    return [
        (device, peer if peer is not None else rest.pop(0) if rest else None)
        for device, peer in found
    ]


class DeviceAbsence(msgspec.Struct, frozen=True):
    """A source device with its successor, and the interval in which neither worked."""

    device: PassedDevice
    successor: PassedDevice | None
    from_ns: int | None
    until_ns: int | None

    def downtime(self) -> DeviceDowntime:
        """The absence as the report shows it."""
        known = self.from_ns is not None and self.until_ns is not None
        return DeviceDowntime(
            address=self.device.address or self.device.label,
            id=self.device.id,
            from_ns=self.from_ns,
            ns=self.until_ns - self.from_ns if known and self.until_ns and self.from_ns else None,
        )


def absences(
    sources: list[PassedDevice], destinations: list[PassedDevice], since_ns: int
) -> list[DeviceAbsence]:
    """The absence of each device that transfers its state: it leaves RUNNING, its successor reaches RUNNING."""
    found = []
    for device, successor in pairs(sources, destinations):
        left = device.left_running_ns(since_ns)
        back = None
        if left is not None:
            # RUNNING again on the source: the migration failed or was cancelled.
            own = device.runs_again_ns(left)
            other = successor.runs_again_ns(left) if successor is not None else None
            back = own if own is not None else other
        found.append(DeviceAbsence(device, successor, left, back))
    return found


def device_use(
    device: PassedDevice,
    role: Role,
    peer: PassedDevice | None,
    since_ns: int,
    until_ns: int | None,
    over_ns: int | None,
) -> DeviceUse:
    """Describe one device's part in a migration; `until_ns` None: the migration is still running.

    The device's part ends when it runs at `over_ns` or later. `over_ns` None: its part has not ended.
    """
    states = device.states()
    before = [state for state in states if state.at_ns < since_ns][-1:]
    meanwhile = [state for state in states if state.at_ns >= since_ns]
    if over_ns is None:
        shown = (*before, *meanwhile)
    elif role == Role.DESTINATION:
        shown = (*before, *_until_it_runs(meanwhile, over_ns))
    else:
        shown = tuple(_until_it_runs([*before, *meanwhile], over_ns))
    op = events.VfioData.LOAD if role == Role.DESTINATION else events.VfioData.SAVE
    return DeviceUse(
        address=device.address or device.label,
        id=device.id,
        role=role,
        driver=device.driver,
        peer_address=peer.address if peer else None,
        states=shown,
        state_ns=_time_in_states(shown, since_ns, until_ns),
        bytes=device.bytes_moved(op, since_ns),
        mapping=device.mapping,
        iommu_tracks=device.iommu_tracks,
    )


def _until_it_runs(states: list[DeviceState], over_ns: int) -> list[DeviceState]:
    """The states up to the first RUNNING that lasts until `over_ns` or begins later."""
    for index, state in enumerate(states):
        later = states[index + 1].at_ns if index + 1 < len(states) else None
        if state.state == "RUNNING" and (later is None or later > over_ns):
            return states[: index + 1]
    return states


def _time_in_states(
    states: tuple[DeviceState, ...], since_ns: int, until_ns: int | None
) -> tuple[tuple[str, int], ...]:
    """Nanoseconds in each state, in order of first appearance. The last state counts only if it has ended."""
    ends = [state.at_ns for state in states[1:]] + ([until_ns] if until_ns is not None else [])
    total: dict[str, int] = {}
    for state, end in zip(states, ends, strict=False):
        total[state.state] = total.get(state.state, 0) + max(0, end - max(state.at_ns, since_ns))
    return tuple(total.items())
