# SPDX-License-Identifier: MIT
"""Shows changes without a terminal: a line for each change, or a JSON document."""

from collections.abc import Iterator

from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.migration import Migration, Snapshot, Vm
from vftrace.outputs.text.clock import precise_time
from vftrace.outputs.text.glyphs import Glyphs, clean
from vftrace.outputs.text.vfs import name_of, vf_warnings
from vftrace.outputs.text.words import headline, label, losses, roles, verdict, warnings
from vftrace.units import format_bytes, format_ns, format_rate

Change = tuple[int, str]
"""The time of a change, and its text, which begins with the VM's name."""


def changes(before: Snapshot | None, after: Snapshot, g: Glyphs) -> list[str]:
    """Return the changes between two snapshots, one line each, in order of time.

    Without an earlier snapshot, everything in the present one counts as a change.
    """
    found = [*_vm_changes(before, after, g), *_vf_changes(before, after, g)]
    old = {} if before is None else {(m.pid, m.started_at_ns): m for m in before.migrations}
    for migration in after.migrations:
        earlier = old.get((migration.pid, migration.started_at_ns))
        who = label(migration, g)
        try:
            mine = list(_changes_of(earlier, migration, after, g))
        except Exception as error:
            FAULTS.contained(Where.TOP, error, f"a change of {who} is not printed")
            continue
        found += [(at_ns, f"{who}: {text}") for at_ns, text in mine]
    said = () if before is None else losses(before)
    found += [(after.at_ns, f"! {loss}") for loss in losses(after) if loss not in said]
    return [
        f"{precise_time(after, at_ns)} {text}" for at_ns, text in sorted(found, key=lambda c: c[0])
    ]


def _vm_changes(before: Snapshot | None, after: Snapshot, g: Glyphs) -> Iterator[Change]:
    old = {} if before is None else {vm.pid: vm for vm in before.vms}
    new = {vm.pid: vm for vm in after.vms}
    for pid, vm in new.items():
        earlier = old.get(pid)
        name = label(vm, g)
        if earlier is None:
            yield after.at_ns, f"{name}: a VM, pid {pid}{_running(vm)}"
        elif earlier.running != vm.running and vm.running is not None:
            yield after.at_ns, f"{name}: pid {pid}{_running(vm)}"
    for pid, vm in old.items():
        if pid not in new:
            name = label(vm, g)
            yield after.at_ns, f"{name}: pid {pid} has ended"


def _vf_changes(before: Snapshot | None, after: Snapshot, g: Glyphs) -> Iterator[Change]:
    """Yield the new states of virtual functions, and what is wrong with them."""
    old = {} if before is None else {(life.pf, life.vf): life for life in before.vfs}
    for life in after.vfs:
        earlier = old.get((life.pf, life.vf))
        name = clean(name_of(life), g)
        last = earlier.since_ns if earlier is not None else None
        for span, was in zip(life.states, (None, *life.states), strict=False):
            if last is None or span.start_at_ns > last:
                took = None if was is None else format_ns(span.start_at_ns - was.start_at_ns)
                since = f" (was {was.name} for {took})" if was is not None else ""
                yield span.start_at_ns, f"{name}: {span.name}{since}"
        said = () if earlier is None else tuple(vf_warnings(earlier))
        for warning in vf_warnings(life):
            if warning not in said:
                yield after.at_ns, f"{name}: ! {warning}"


def _running(vm: Vm) -> str:
    return {True: ", vCPUs run", False: ", vCPUs stopped", None: ""}[vm.running]


def _changes_of(
    before: Migration | None, m: Migration, after: Snapshot, g: Glyphs
) -> Iterator[Change]:
    if before is None:
        yield m.started_at_ns, f"migration begins: {roles(m, g)}"
    elif before.role != m.role:
        yield after.at_ns, f"both sides are seen: {roles(m, g)}"
    known = set() if before is None else {(p.role, p.name) for p in before.phases}
    for phase in m.phases:
        if (phase.role, phase.name) not in known:
            yield phase.start_at_ns, f"{phase.role}: {phase.name}"
    first = 0 if before is None else len(before.rounds)
    for number in range(first, len(m.rounds)):
        yield m.rounds[number].at_ns, _round(m, number)
    if m.outcome is not None and (before is None or before.outcome is None):
        ended = m.ended_at_ns or after.at_ns
        lasted = format_ns(figures.elapsed_ns(m, after.at_ns))
        yield ended, f"{verdict(m, g)}, after {lasted}; {headline(m, after.at_ns)}"
    said = () if before is None else warnings(before)
    for warning in warnings(m):
        if warning not in said:
            yield after.at_ns, f"! {warning}"


def _round(m: Migration, number: int) -> str:
    round_ = m.rounds[number]
    before = m.rounds[number - 1] if number else None
    text = f"round {number + 1}: "
    if round_.new_pages is None:
        text += f"{'-' if round_.logged_pages is None else round_.logged_pages} pages logged"
    else:
        text += f"{round_.new_pages} new pages"
    rate = figures.round_dirty_rates(m)[number]
    if rate is not None:
        text += f", dirtied {format_rate(rate)}"
    if before is not None and before.sent_bytes is not None:
        text += f", {format_bytes(before.sent_bytes)} sent since the round before"
    return text
