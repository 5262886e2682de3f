# SPDX-License-Identifier: MIT
"""Finds events on two hosts whose order is certain, whatever the hosts' clocks show."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from vftrace.analysis.hosts.clocks import (
    Bounds,
    ContradictionError,
    Order,
    add_orders,
    add_wall_clock,
    earliest,
    latest,
    offset_between,
    tightest,
)
from vftrace.events import PingGap
from vftrace.model.migration import Checkpoint, Migration, Outcome, Phase
from vftrace.model.report import ClockOffset, HostReport, PingRecording
from vftrace.ping.gaps import OWN

CONTRADICTION = (
    "clocks contradict each other: no offset fits the order of what was seen"
    " and the wall clocks' error bounds; the halves are not joined"
)
UNBOUNDED = "nothing bounds the difference of the two hosts' clocks; the halves are not joined"


class Half(msgspec.Struct, frozen=True):
    """A migration as one host saw it."""

    host: HostReport
    migration: Migration


class Pair(msgspec.Struct, frozen=True):
    """A source and a destination on two hosts that may be one migration."""

    source: Half
    destination: Half


def orders_of(pair: Pair) -> list[Order]:
    """The orders of events that the two halves of one migration prove."""
    source, destination = pair.source.migration, pair.destination.migration
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    before, after = source.downtime.times, destination.downtime.times
    orders = []
    ran = after.get(Checkpoint.VCPUS_RUNNING, after.get(Checkpoint.CLOCK_SET))
    stopped = before.get(Checkpoint.VCPUS_STOPPED)
    if ran is not None and stopped is not None:
        orders.append(Order(here, stopped, there, ran, "it ran only after the source stopped"))
    loaded = after.get(Checkpoint.DEVICES_LOADED, ran)
    saved = before.get(Checkpoint.STATE_SAVED)
    if loaded is not None and saved is not None:
        # In postcopy too: the state goes in one package (migration/migration.c, postcopy_start).
        orders.append(Order(here, saved, there, loaded, "state is read before it is loaded"))
    elif loaded is not None and source.rounds:
        synced = source.rounds[-1].at_ns
        orders.append(Order(here, synced, there, loaded, "memory is read before all is loaded"))
    ready = pair.destination.host.ready_at_ns.get(destination.pid)
    if ready is not None and source.channel.kind in ("tcp", "unix", "socket"):
        # QEMU listens once the machine is made, and logs only once it is connected
        # (softmmu/vl.c qmp_x_exit_preconfig; migration/migration.c migrate_fd_connect).
        began = source.started_at_ns
        orders.append(Order(there, ready, here, began, "the source connects to who listens"))
    done = _last_page(destination)
    ended = source.ended_at_ns
    if done is not None and ended is not None and source.outcome == Outcome.COMPLETED:
        # Postcopy has a return path; the source waits for its end (await_return_path_close_on_source).
        orders.append(Order(there, done, here, ended, "the source waits for the last page"))
    return orders


def _last_page(destination: Migration) -> int | None:
    """Return when postcopy's last page arrived; None if it did not."""
    if destination.outcome != Outcome.COMPLETED:
        return None
    return next((p.end_at_ns for p in destination.phases if p.name == Phase.POSTCOPY), None)


def offset_of(
    pair: Pair, hosts: Sequence[HostReport], orders: Sequence[Order], pings: Sequence[PingRecording]
) -> ClockOffset | str:
    """Return the source's clock minus the destination's, or one line with the reason why it is not known."""
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    moments = _moments(pair)
    samples = clock_samples(hosts, pings)
    try:
        tight = tightest(_bounds(orders, samples, moments))
        answered = list(_orders_of_pings(pair, tight, pings))
        if answered:
            tight = tightest(_bounds([*orders, *answered], samples, moments))
    except ContradictionError:
        return CONTRADICTION
    return offset_between(tight, here, there) or UNBOUNDED


def _moments(pair: Pair) -> dict[str, int]:
    """Return the moment for which the offset is computed, on each clock: when the source stopped and the destination
    ran."""
    source, destination = pair.source.migration, pair.destination.migration
    times = destination.downtime.times
    return {
        pair.source.host.boot_id: handover_ns(source),
        pair.destination.host.boot_id: times.get(
            Checkpoint.VCPUS_RUNNING, max(times.values(), default=destination.started_at_ns)
        ),
    }


def handover_ns(source: Migration) -> int:
    """Return when the source stopped, or if it did not have to stop, when it last read memory."""
    stopped = source.downtime.times.get(Checkpoint.VCPUS_STOPPED)
    if stopped is not None:
        return stopped
    return source.rounds[-1].at_ns if source.rounds else source.started_at_ns


ClockOf = Mapping[str, tuple[tuple[int, int, int], ...]]


def clock_samples(hosts: Iterable[HostReport], pings: Iterable[PingRecording]) -> ClockOf:
    """Return the clock samples of each host; those of a ping if it is the only recording of its host."""
    samples = {host.boot_id: host.snapshot.clock for host in hosts if host.snapshot.clock}
    for ping in pings:
        samples.setdefault(ping.boot_id, ping.clock)
    return samples


def _bounds(orders: Iterable[Order], samples: ClockOf, moments: Mapping[str, int]) -> Bounds:
    bounds: Bounds = {}
    add_orders(bounds, orders, moments)
    for boot_id, clock in samples.items():
        add_wall_clock(bounds, boot_id, clock, moments.get(boot_id))
    return bounds


def _orders_of_pings(pair: Pair, tight: Bounds, pings: Iterable[PingRecording]) -> Iterator[Order]:
    """Yield the orders of events that the guest's answers to pings prove.

    Only the destination can answer a probe that was sent after the stop, and only the source can have sent an answer
    that arrived before the destination ran.
    """
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    stopped = pair.source.migration.downtime.times.get(Checkpoint.VCPUS_STOPPED)
    ran = pair.destination.migration.downtime.times.get(Checkpoint.VCPUS_RUNNING)
    if ran is None or stopped is None:
        return
    for ping in pings:
        clock = ping.boot_id
        for gap in ping.events:
            if not isinstance(gap, PingGap) or gap.kind == OWN:
                continue
            # A ping on the source's own clock gives no order with the source; likewise for the destination.
            sent = earliest(tight, clock, gap.after_sent_ns, here)
            reply = gap.after_reply_ns
            if reply is not None and sent is not None and sent > stopped and clock != there:
                yield Order(there, ran, clock, reply, "the guest answered a ping")
            replied = latest(tight, clock, gap.before_reply_ns, there)
            asked = gap.before_sent_ns
            if asked is not None and replied is not None and replied < ran and clock != here:
                yield Order(clock, asked, here, stopped, "the guest still answered a ping")
