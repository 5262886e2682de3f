"""What became of a migration's virtual functions: when each was lost, and when its successor was ready.

Two sources tell: VFIO, when a VMM opened and closed the function, and the mailbox of its card, what its
driver then asked for (vftrace/model/vf.py). Where no mailbox is heard, only the former is known.
"""

from collections.abc import Mapping
from itertools import pairwise

from vftrace.analysis.devices.device import PassedDevice
from vftrace.model.migration import Role, VfPhase, VfUse
from vftrace.model.vf import VfHistory

Lives = Mapping[tuple[str, int], VfHistory]
"""By card and number."""

PHASES = {
    "absent": "absent",
    "reset": "reset",
    "negotiating": "probing",
    "configuring": "configuring",
    "up": "ready",
}
"""A life's states as a migration's phases."""

_Mark = tuple[str, int]


def source_vf(
    device: PassedDevice,
    life: VfHistory | None,
    since_ns: int,
    until_ns: int | None,
    back_ns: int | None,
) -> VfUse | None:
    """The source's function: what it was from `since_ns` on, and from its closing `absent` until `back_ns`, when
    its successor was opened. None for what is no virtual function."""
    if device.pf is None or device.vf is None:
        return None
    closed = device.closed_at_ns
    if closed is None or (until_ns is not None and closed > until_ns):
        marks = _heard(life, since_ns, until_ns)
        return _use(device.pf, device.vf, device, life, Role.SOURCE, marks, until_ns)
    marks = [*_heard(life, since_ns, closed), ("absent", closed)]
    return _use(device.pf, device.vf, device, life, Role.SOURCE, marks, back_ns)


def destination_vf(
    device: PassedDevice,
    life: VfHistory | None,
    since_ns: int,
    until_ns: int | None,
    gone_ns: int | None = None,
) -> VfUse | None:
    """The destination's function: probed since it was opened, configured since its driver asked for something.

    `gone_ns`: when its process ended, and with it what the process held.

    A driver that has started and waits for its interface to be brought up counts as configuring.
    `until_ns`: what it was from then on is left out, but of a function that has not been ready.
    """
    if device.pf is None or device.vf is None:
        return None
    opened = device.opened_at_ns
    if opened is None or opened < since_ns:
        marks = _heard(life, since_ns, until_ns)
        return _use(device.pf, device.vf, device, life, Role.DESTINATION, marks, until_ns)
    marks = [("probing", opened)]
    closed = device.closed_at_ns if device.closed_at_ns is not None else gone_ns
    for name, at in _heard(life, opened, closed):
        ready = any(mark[0] == "ready" for mark in marks)
        if ready and until_ns is not None and at >= until_ns:
            break
        if ready or name == "ready" or (name == "configuring" and marks[-1][0] == "probing"):
            marks.append((name, at))
    return _use(device.pf, device.vf, device, life, Role.DESTINATION, marks, closed)


def heard_vf(life: VfHistory, role: Role, since_ns: int, until_ns: int | None) -> VfUse:
    """A function of which only its mailbox is known."""
    marks = _heard(life, since_ns, until_ns)
    return VfUse(life.pf, life.vf, life.address, role, _phases(marks, until_ns))


def ready_ns(use: VfUse) -> int | None:
    """When it was first ready."""
    return next((phase.start_at_ns for phase in use.phases if phase.name == "ready"), None)


def _heard(life: VfHistory | None, since_ns: int, until_ns: int | None) -> list[_Mark]:
    """The phases its mailbox tells of, each with its begin, the first one cut at `since_ns`."""
    marks = []
    for span in life.states if life is not None else ():
        start = max(span.start_at_ns, since_ns)
        over = span.end_at_ns is not None and span.end_at_ns <= since_ns
        if not over and (until_ns is None or start < until_ns):
            marks.append((PHASES[span.name], start))
    return marks


def _use(
    pf: str,
    number: int,
    device: PassedDevice,
    life: VfHistory | None,
    role: Role,
    marks: list[_Mark],
    end_ns: int | None,
) -> VfUse:
    address = device.address or (life.address if life is not None else None)
    mapping = device.mapping_ns if role == Role.DESTINATION else None
    return VfUse(pf, number, address, role, _phases(marks, end_ns), mapping)


def _phases(marks: list[_Mark], end_ns: int | None) -> tuple[VfPhase, ...]:
    """Phases that follow each other; marks of one name in a row are one."""
    kept = [mark for before, mark in pairwise([("", 0), *marks]) if before[0] != mark[0]]
    if not kept:
        return ()
    ends = [at for _, at in kept[1:]] + [end_ns]
    return tuple(
        VfPhase(name, at, None if end is None else max(at, end))
        for (name, at), end in zip(kept, ends, strict=True)
    )
