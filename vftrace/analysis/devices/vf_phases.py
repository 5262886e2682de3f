# SPDX-License-Identifier: MIT
"""The phases of a migration's virtual functions: when each was lost, and when its successor was ready.

Two sources show them: VFIO, when a VMM opened and closed the VF, and the mailbox of its card, which requests the VF's
driver then sent (vftrace/model/vf.py). Without a traced mailbox only the former is known.
"""

from collections.abc import Mapping
from itertools import pairwise

from vftrace.analysis.devices.device import PassedDevice
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.virtchnl import VIRTCHNL_PROTOCOL
from vftrace.model.migration import Role, VfPhase, VfUse
from vftrace.model.vf import State, VfHistory

VfHistories = Mapping[tuple[str, int], VfHistory]
"""VF histories by card and number."""

PHASES = {
    "absent": "absent",
    "reset": "reset",
    "negotiating": "probing",
    "configuring": "configuring",
    "up": "ready",
}
"""The states of a VF's history as phases of a migration."""

VIRTCHNL = frozenset(d.name for d in DRIVERS.values() if d.protocol is VIRTCHNL_PROTOCOL)
"""The cards whose VFs' driver (iavf) negotiates step by step, from a work item that comes back every few milliseconds,
or after seconds where the card does not answer (iavf/iavf_main.c, iavf_watchdog_task). It has configured nothing yet,
and need not until its interface is brought up, but it has started. igbvf and ixgbevf reset the VF and configure it
within one call of their probe function."""

_Mark = tuple[str, int]


def source_vf(
    device: PassedDevice,
    history: VfHistory | None,
    since_ns: int,
    until_ns: int | None,
    back_ns: int | None,
) -> VfUse | None:
    """The source VF's phases: after its closing it is `absent` until its successor is opened at `back_ns`.

    None for a device that is not a VF.
    """
    if device.pf is None or device.vf is None:
        return None
    closed = device.closed_at_ns
    if closed is None or (until_ns is not None and closed > until_ns):
        marks = _mailbox_marks(history, since_ns, until_ns)
        return _use(device.pf, device.vf, device, history, Role.SOURCE, marks, until_ns)
    marks = [*_mailbox_marks(history, since_ns, closed), ("absent", closed)]
    return _use(device.pf, device.vf, device, history, Role.SOURCE, marks, back_ns)


def destination_vf(
    device: PassedDevice,
    history: VfHistory | None,
    since_ns: int,
    until_ns: int | None,
    released_ns: int | None,
) -> VfUse | None:
    """The destination VF's phases: probing from its opening, configuring from its driver's first request.

    `released_ns`: when its process closed it or ended. A driver that has started and waits for its interface to be
    brought up counts as configuring. Phases from `until_ns` on are left out, unless the VF has not been ready yet.
    """
    if device.pf is None or device.vf is None:
        return None
    opened = device.opened_at_ns
    if opened is None or opened < since_ns:
        marks = _mailbox_marks(history, since_ns, until_ns)
        return _use(device.pf, device.vf, device, history, Role.DESTINATION, marks, until_ns)
    marks = [("probing", opened)]
    for name, at in _mailbox_marks(history, opened, released_ns):
        ready = any(mark[0] == "ready" for mark in marks)
        if ready and until_ns is not None and at >= until_ns:
            break
        if ready or name == "ready" or (name == "configuring" and marks[-1][0] == "probing"):
            marks.append((name, at))
    return _use(device.pf, device.vf, device, history, Role.DESTINATION, marks, released_ns)


def mailbox_vf(history: VfHistory, role: Role, since_ns: int, until_ns: int | None) -> VfUse:
    """The phases of a VF of which only the mailbox was seen."""
    marks = _mailbox_marks(history, since_ns, until_ns)
    return VfUse(history.pf, history.vf, history.address, role, _phases(marks, until_ns))


def ready_ns(use: VfUse) -> int | None:
    """Return when the VF was first ready."""
    return next((phase.start_at_ns for phase in use.phases if phase.name == "ready"), None)


def _mailbox_marks(history: VfHistory | None, since_ns: int, until_ns: int | None) -> list[_Mark]:
    """The phases that the VF's mailbox shows, each with its start; the first one is cut at `since_ns`."""
    marks: list[_Mark] = []
    if history is None:
        return marks
    for span in history.states:
        start = max(span.start_at_ns, since_ns)
        over = span.end_at_ns is not None and span.end_at_ns <= since_ns
        if not over and (until_ns is None or start < until_ns):
            marks.append((_phase(history, span.name), start))
    return marks


def _phase(history: VfHistory, state: State) -> str:
    if state == "negotiating" and history.driver in VIRTCHNL:
        return "configuring"
    return PHASES[state]


def _use(
    pf: str,
    number: int,
    device: PassedDevice,
    history: VfHistory | None,
    role: Role,
    marks: list[_Mark],
    end_ns: int | None,
) -> VfUse:
    address = device.address or (history.address if history is not None else None)
    mapping = mapped = None
    if role == Role.DESTINATION:
        mapping = device.mapping_ns
        mapped = device.mapping.end_at_ns if device.bound and device.mapping else None
    return VfUse(pf, number, address, role, _phases(marks, end_ns), mapping, mapped)


def _phases(marks: list[_Mark], end_ns: int | None) -> tuple[VfPhase, ...]:
    """Make consecutive phases; consecutive marks of one name become one phase."""
    distinct = [mark for before, mark in pairwise([("", 0), *marks]) if before[0] != mark[0]]
    if not distinct:
        return ()
    ends = [at for _, at in distinct[1:]] + [end_ns]
    return tuple(
        VfPhase(name, at, None if end is None else max(at, end))
        for (name, at), end in zip(distinct, ends, strict=True)
    )
