# SPDX-License-Identifier: MIT
"""Shows the passed-through devices of a migration: states, bytes, and the downtime of each."""

from rich.console import RenderableType
from rich.text import Text

from vftrace.model.migration import DeviceUse, Migration, Phase, VfUse
from vftrace.outputs.text.glyphs import Glyphs, clean, span
from vftrace.outputs.text.tables import (
    BLACKOUT_STYLE,
    STYLES,
    UNKNOWN,
    milliseconds,
    offset,
    plain_table,
    seconds,
    size,
)

AWAY = ("unplugged", "reset", "absent", "probing", "configuring")


def devices_part(m: Migration, now_ns: int, width: int, g: Glyphs) -> list[RenderableType]:
    """Return the devices of a migration; empty without devices."""
    part: list[RenderableType] = []
    if m.devices or m.downtime.devices:
        part += [Text(), Text("Devices", "bold"), *_devices(m, g)]
    if m.vfs:
        part += [Text(), Text("Virtual functions", "bold")]
        part += [_vf_table(m, vf, now_ns, width, g) for vf in m.vfs]
    return part


def _devices(m: Migration, g: Glyphs) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if m.downtime.devices:
        table = plain_table(
            ("device", "left"), ("id", "left"), ("left", "right"), ("away", "right")
        )
        for device in m.downtime.devices:
            left = None if device.from_ns is None else device.from_ns - m.started_at_ns
            slowest = device.address == m.downtime.slowest_device
            table.add_row(
                clean(device.address, g),
                clean(device.id or UNKNOWN, g),
                seconds(left),
                milliseconds(device.ns),
                style="bold" if slowest else "",
            )
        lines.append(table)
    lines += [line for use in m.devices for line in _use(m, use, g)]
    return lines


def _use(m: Migration, use: DeviceUse, g: Glyphs) -> list[Text]:
    """Show a device, then its states with the time at which each was reached."""
    name = clean(use.address, g) + (f" ({clean(use.id, g)})" if use.id else "")
    peer = f", peer {clean(use.peer_address, g)}" if use.peer_address else ""
    driver = f", driver {clean(use.driver, g)}" if use.driver else ""
    states = f" {g.arrow} ".join(
        f"{clean(state.state, g)} {offset(state.at_ns - m.started_at_ns)}" for state in use.states
    )
    spent = ", ".join(f"{clean(state, g)} {milliseconds(ns)}" for state, ns in use.state_ns)
    lines = [Text(f"{use.role}: {name}{driver}{peer}, state {size(use.bytes)}")]
    if states:
        lines.append(Text(f"  {states}"))
    if spent:
        lines.append(Text(f"  time in: {spent}", "dim"))
    return lines


def _vf_title(vf: VfUse, g: Glyphs) -> str:
    address = f", {clean(vf.address, g)}" if vf.address else ""
    return f"{vf.role}: VF {vf.vf} of {clean(vf.pf, g)}{address}"


def _vf_table(m: Migration, vf: VfUse, now_ns: int, width: int, g: Glyphs) -> RenderableType:
    """The phases of one VF on a time line of their own."""
    table = plain_table(
        (_vf_title(vf, g), "left"),
        ("from", "right"),
        ("lasted", "right"),
        ("", "left"),
    )
    if not vf.phases:
        return table
    start = vf.phases[0].start_at_ns
    end = max((phase.end_at_ns or now_ns) for phase in vf.phases)
    whole = max(1, end - start)
    bar = max(10, width - 72)
    for phase in vf.phases:
        until = phase.end_at_ns or now_ns
        lasted = None if phase.end_at_ns is None else phase.end_at_ns - phase.start_at_ns
        drawn = span((phase.start_at_ns - start) / whole, (until - start) / whole, bar, g)
        style = BLACKOUT_STYLE if phase.name in AWAY else STYLES[Phase.RUNNING]
        table.add_row(
            clean(phase.name, g),
            seconds(phase.start_at_ns - m.started_at_ns),
            "still" if lasted is None else milliseconds(lasted),
            Text(drawn, style),
        )
    return table
