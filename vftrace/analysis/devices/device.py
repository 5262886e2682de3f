"""The passed-through devices of one VMM: what state each was in, what it moved, how long it was away.

State names are those of enum vfio_device_mig_state (include/uapi/linux/vfio.h).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from vftrace import events
from vftrace.model.migration import DeviceDowntime, DeviceState, DeviceUse, Role, VmDevice
from vftrace.uapi import VFIO_DEVICE_STATES

RUNS = frozenset({"RUNNING", "PRE_COPY"})
"""A device works in these as if nothing was going on; with P2P it may not talk to other devices."""

TRANSFER = frozenset({"PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "RESUMING"})
"""Nothing but a transfer of the device's state needs these."""

STOPPED = frozenset({"STOP", "STOP_COPY"})

MAX_REQUESTS = 1024
"""Of one device, the latest: every pause of a VM makes some."""

MAX_TRANSITIONS = 4096
OTHER = "other"
"""So many kinds of transitions are counted by device, those of further devices together."""

MAX_DEVICES = 256
"""Of one process, those that are gone counted too; the oldest are forgotten first."""

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
)


_CHANGES = (events.VfioState, events.VfioReset)


def state_name(state: int) -> str:
    """The uAPI's name of a state; its number if it has none."""
    known = 0 <= state < len(VFIO_DEVICE_STATES)
    return VFIO_DEVICE_STATES[state] if known else str(state)


@dataclass(frozen=True, slots=True)
class Request:
    """A change of state that was asked for (`enter_ns`) and answered (`at_ns`): `ret` 0 or a negative errno."""

    enter_ns: int
    at_ns: int
    state: str
    ret: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a device refused or failed at: `ret` is a negative errno."""

    at_ns: int
    what: str
    ret: int
    refused: bool


@dataclass
class PassedDevice:
    """One device from its opening to its closing."""

    fd: int
    opened_at_ns: int | None
    """None: vftrace came later."""
    mapping_ns: int | None = None
    """When the process began to map memory for it, its first device."""
    address: str | None = None
    id: str | None = None
    driver: str | None = None
    pf: str | None = None
    vf: int | None = None
    flags: int | None = None
    requests: list[Request] = field(default_factory=list)
    resets: list[events.VfioReset] = field(default_factory=list)
    data: dict[int, events.VfioData] = field(default_factory=dict)
    """Latest totals, by the time when the data fd was given out."""
    data_given_ns: int = 0
    stop_copy_bytes: int | None = None
    """What it last said that it has to transfer while stopped."""
    closed_at_ns: int | None = None

    @property
    def label(self) -> str:
        """QEMU's id, else the address, else the fd."""
        return self.id or self.address or f"fd {self.fd}"

    @property
    def state(self) -> str | None:
        """The state it is in, as far as that was seen."""
        states = self.states()
        return states[-1].state if states else None

    def states(self) -> tuple[DeviceState, ...]:
        """The states it has been in, each with the time when it was reached.

        A device begins in RUNNING and a reset leads back there. One that refuses a state, and then the one to
        fall back on, is in ERROR.
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
        """Bytes of device state saved or loaded since; None if no data fd was seen."""
        found = [d.bytes for given, d in self.data.items() if d.op == op and given >= since_ns]
        return sum(found) if found else None

    def data_ended_ns(self, op: int, since_ns: int) -> int | None:
        """When the last byte was moved, or a read said that there is no more."""
        times = [d.last_ns for given, d in self.data.items() if d.op == op and given >= since_ns]
        return max(times, default=0) or None

    def troubles(self, since_ns: int, until_ns: int) -> list[Trouble]:
        """What it refused or failed at meanwhile, the earliest first."""
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
        """Whether it was reset since."""
        return any(reset.at_ns >= at_ns for reset in self.resets)

    def left_running_ns(self, since_ns: int) -> int | None:
        """When it was first asked to leave the states it works in."""
        for request in self.requests:
            if request.ret == 0 and request.at_ns >= since_ns and request.state not in RUNS:
                return request.enter_ns
        return None

    def runs_again_ns(self, since_ns: int) -> int | None:
        """When it was first RUNNING after that."""
        for state in self.states():
            if state.state == "RUNNING" and state.at_ns > since_ns:
                return state.at_ns
        return None

    def stopped_ns(self, since_ns: int) -> int | None:
        """When it first came to a stop after that."""
        for state in self.states():
            if state.state in STOPPED and state.at_ns >= since_ns:
                return state.at_ns
        return None


@dataclass
class Devices:
    """All devices of one process, fed with its VFIO events in order of time."""

    all: list[PassedDevice] = field(default_factory=list)
    by_fd: dict[int, PassedDevice] = field(default_factory=dict)
    transitions: Counter[Transition] = field(default_factory=Counter)
    """Those of many processes together: a device that was closed keeps its number."""

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
        """The collector says which device an fd is."""
        device = self._device(event.fd)
        device.address = event.address
        device.id = event.id or device.id
        device.driver, device.pf, device.vf = event.driver, event.pf, event.vf

    def _open(self, event: events.VfioOpen) -> None:
        known = self.by_fd.get(event.fd)
        if event.how != events.VfioOpen.SEEN or known is None:
            seen = event.how == events.VfioOpen.SEEN
            known = self._add(event.fd, None if seen else event.at_ns)
            known.mapping_ns = event.mapping_ns or None
        if event.name:
            known.address = known.address or event.name.split()[0].lower()

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
        """Whether a change of a device that was there may be missing: nothing was heard of it between."""
        return any(
            not any(last_loss_ns < request.at_ns <= until_ns for request in device.requests)
            for device in self.present(last_loss_ns, until_ns)
            if (device.opened_at_ns or 0) <= last_loss_ns
        )

    def shown(self) -> tuple[VmDevice, ...]:
        """The devices that are there now."""
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
        """Devices the process had at some time between."""
        for device in self.all:
            gone = device.closed_at_ns
            if (gone is None or gone >= since_ns) and (device.opened_at_ns or 0) <= until_ns:
                yield device

    def transferring(self, since_ns: int, until_ns: int) -> list[PassedDevice]:
        """Devices whose state was to be transferred meanwhile, and those that refused a state."""
        return [
            device
            for device in self.present(since_ns, until_ns)
            if any(
                since_ns <= r.at_ns <= until_ns and (r.state in TRANSFER or r.ret < 0)
                for r in device.requests
            )
        ]


def pairs(
    sources: list[PassedDevice], destinations: list[PassedDevice]
) -> list[tuple[PassedDevice, PassedDevice | None]]:
    """Each source's device with its successor: of the same id, else in the same place."""
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


@dataclass(frozen=True)
class Away:
    """A source's device with its successor, and when it was lost and was back."""

    device: PassedDevice
    successor: PassedDevice | None
    from_ns: int | None
    until_ns: int | None

    def downtime(self) -> DeviceDowntime:
        """As the report says it."""
        known = self.from_ns is not None and self.until_ns is not None
        return DeviceDowntime(
            address=self.device.address or self.device.label,
            id=self.device.id,
            from_ns=self.from_ns,
            ns=self.until_ns - self.from_ns if known and self.until_ns and self.from_ns else None,
        )


def moved_away(
    sources: list[PassedDevice], destinations: list[PassedDevice], since_ns: int
) -> list[Away]:
    """How long each device that transfers its state was away: it leaves RUNNING, its successor reaches it."""
    found = []
    for device, successor in pairs(sources, destinations):
        left = device.left_running_ns(since_ns)
        back = None
        if left is not None:
            # RUNNING again on the source: the migration came to nothing.
            own = device.runs_again_ns(left)
            other = successor.runs_again_ns(left) if successor is not None else None
            back = own if own is not None else other
        found.append(Away(device, successor, left, back))
    return found


def device_use(
    device: PassedDevice,
    role: Role,
    peer: PassedDevice | None,
    since_ns: int,
    until_ns: int | None,
    over_ns: int | None,
) -> DeviceUse:
    """One device's part in a migration; `until_ns` None: it goes on.

    A device that runs at `over_ns` or later has done its part; None: it has not, whatever it does.
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
    )


def _until_it_runs(states: list[DeviceState], over_ns: int) -> list[DeviceState]:
    """The states up to the first RUNNING that lasts at `over_ns`, or comes later."""
    for index, state in enumerate(states):
        later = states[index + 1].at_ns if index + 1 < len(states) else None
        if state.state == "RUNNING" and (later is None or later > over_ns):
            return states[: index + 1]
    return states


def _time_in_states(
    states: tuple[DeviceState, ...], since_ns: int, until_ns: int | None
) -> tuple[tuple[str, int], ...]:
    """Nanoseconds in each state, in order of first appearance; the last one counts only if it has an end."""
    ends = [state.at_ns for state in states[1:]] + ([until_ns] if until_ns is not None else [])
    total: dict[str, int] = {}
    for state, end in zip(states, ends, strict=False):
        total[state.state] = total.get(state.state, 0) + max(0, end - max(state.at_ns, since_ns))
    return tuple(total.items())
