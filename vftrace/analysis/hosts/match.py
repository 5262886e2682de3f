"""Finds which halves of migrations, seen on different hosts, belong together."""

from collections.abc import Iterable, Sequence

from vftrace.analysis.hosts.causality import Half, Pair, offset_of, orders_of
from vftrace.model.migration import Checkpoint, Kind, Migration, Role
from vftrace.model.report import HostReport

SEVERAL = "not joined: several migrations on other hosts could be the other half"
OTHER_CLOCK = "not joined: the destination set another guest clock than the source read"


def match(hosts: Sequence[HostReport]) -> tuple[list[Pair], dict[int, tuple[str, ...]]]:
    """The pairs of halves that belong together, and by id of a migration why it has none.

    The guest's clock proves a pair: a destination sets, to the nanosecond, what its source read. Without it halves
    belong together by UUID; without a UUID, only if no other half comes into question.
    """
    warnings: dict[int, tuple[str, ...]] = {}
    possible: list[Pair] = []
    for pair in _candidates(hosts):
        found = offset_of(pair, hosts, orders_of(pair), ())
        if isinstance(found, str):
            warnings |= dict.fromkeys(_ids(pair), (found,))
        elif _clocks_agree(pair) is False:
            warnings |= dict.fromkeys(_ids(pair), (OTHER_CLOCK,))
        else:
            possible.append(pair)
    possible = _without_refuted(possible)
    chosen = [pair for pair in possible if _only_one(pair, possible)]
    for pair in possible:
        for migration in _ids(pair):
            if pair in chosen:
                warnings.pop(migration, None)
            else:
                warnings.setdefault(migration, (SEVERAL,))
    return chosen, warnings


def _clocks_agree(pair: Pair) -> bool | None:
    """Whether the destination set the guest's clock that the source had read; None where one is not known."""
    read = pair.source.migration.guest_clock_ns
    written = pair.destination.migration.guest_clock_ns
    return None if read is None or written is None else read == written


def _without_refuted(possible: list[Pair]) -> list[Pair]:
    """The pairs without the rivals of those that the guest's clock proves."""
    proved = {_ids(pair) for pair in possible if _clocks_agree(pair)}
    taken = {migration for ids in proved for migration in ids}
    return [p for p in possible if _ids(p) in proved or not taken.intersection(_ids(p))]


def _candidates(hosts: Sequence[HostReport]) -> list[Pair]:
    """Every source that handed over with every destination of the same VM on another host."""
    halves = [Half(host, m) for host in hosts for m in host.snapshot.migrations]
    destinations: dict[str | None, list[Half]] = {}
    for half in halves:
        if half.migration.role == Role.DESTINATION and half.migration.kind == Kind.MOVE:
            destinations.setdefault(half.migration.uuid, []).append(half)
    return [
        Pair(source, destination)
        for source in halves
        if handed_over(source.migration)
        for destination in destinations.get(source.migration.uuid, ())
        if source.host is not destination.host
    ]


def handed_over(m: Migration) -> bool:
    """Whether this is a source whose guest is stopped and never ran again."""
    stopped = m.stopped_at_ns is not None or bool(m.was_paused)
    return (
        m.role == Role.SOURCE
        and m.kind == Kind.MOVE
        and stopped
        and Checkpoint.VCPUS_RUNNING not in m.downtime.times
    )


def _ids(pair: Pair) -> tuple[int, int]:
    return id(pair.source.migration), id(pair.destination.migration)


def _only_one(pair: Pair, possible: list[Pair]) -> bool:
    """Whether no other pair competes; with a UUID, attempts between the same hosts keep their order."""
    rivals = [p for p in possible if set(_ids(p)) & set(_ids(pair))]
    if len(rivals) == 1:
        return True
    if pair.source.migration.uuid is None:
        return False
    group = [
        p
        for p in possible
        if p.source.host is pair.source.host
        and p.destination.host is pair.destination.host
        and p.source.migration.uuid == pair.source.migration.uuid
    ]
    if any(rival not in group for rival in rivals):
        return False
    sources = _in_order(p.source.migration for p in group)
    destinations = _in_order(p.destination.migration for p in group)
    return len(sources) == len(destinations) and sources.index(
        id(pair.source.migration)
    ) == destinations.index(id(pair.destination.migration))


def _in_order(migrations: Iterable[Migration]) -> list[int]:
    times = {id(m): m.started_at_ns for m in migrations}
    return sorted(times, key=lambda key: times[key])
