# SPDX-License-Identifier: MIT
"""Finds which halves of migrations, seen on different hosts, belong together."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from vftrace.analysis.hosts.causality import Half, Pair, offset_of, orders_of
from vftrace.model.migration import Checkpoint, Kind, Migration, Role
from vftrace.model.report import HostReport

SEVERAL = "not joined: several migrations on other hosts could be the other half"
OTHER_CLOCK = "not joined: the destination set another guest clock than the source read"
TOO_MANY = "not joined: this VM has more attempts than vftrace compares"

MAX_PAIRS = 4096
"""How many pairs of one VM are compared one by one; of more, only those that the guest's clock proves."""

Warnings = dict[int, tuple[str, ...]]
"""By id of a migration."""


def match(hosts: Sequence[HostReport]) -> tuple[list[Pair], Warnings]:
    """Return the pairs of halves that belong together, and for each other migration why it has no pair.

    The guest's clock proves a pair: a destination sets, to the nanosecond, what its source read. Without it halves
    belong together by UUID; without a UUID, only if no other half is possible.
    """
    warnings: Warnings = {}
    chosen: list[Pair] = []
    for candidates in _candidates(hosts, warnings):
        possible = _without_refuted(list(_possible(candidates, hosts, warnings)))
        sure = _sure(possible)
        chosen += [pair for pair in possible if _ids(pair) in sure]
        for pair in possible:
            for migration in _ids(pair):
                warnings.setdefault(migration, (SEVERAL,))
        for ids in sure:
            for migration in ids:
                warnings.pop(migration, None)
    return chosen, warnings


def _possible(
    candidates: Iterable[Pair], hosts: Sequence[HostReport], warnings: Warnings
) -> Iterator[Pair]:
    """Yield the candidates that neither the hosts' clocks nor the guest's contradict."""
    for pair in candidates:
        if _clocks_agree(pair) is False:
            warnings |= dict.fromkeys(_ids(pair), (OTHER_CLOCK,))
            continue
        found = offset_of(pair, hosts, orders_of(pair), ())
        if isinstance(found, str):
            warnings |= dict.fromkeys(_ids(pair), (found,))
        else:
            yield pair


def _clocks_agree(pair: Pair) -> bool | None:
    """Whether the destination set the guest's clock that the source had read; None if one is not known."""
    read = pair.source.migration.guest_clock_ns
    written = pair.destination.migration.guest_clock_ns
    return None if read is None or written is None else read == written


def _without_refuted(possible: list[Pair]) -> list[Pair]:
    """Return the pairs without the rivals of those that the guest's clock proves."""
    proved = {_ids(pair) for pair in possible if _clocks_agree(pair)}
    taken = {migration for ids in proved for migration in ids}
    return [p for p in possible if _ids(p) in proved or not taken.intersection(_ids(p))]


def _candidates(hosts: Sequence[HostReport], warnings: Warnings) -> Iterator[list[Pair]]:
    """Yield for each VM every source that handed over with every destination on another host."""
    sources: dict[str | None, list[Half]] = defaultdict(list)
    destinations: dict[str | None, list[Half]] = defaultdict(list)
    for host in hosts:
        for m in host.snapshot.migrations:
            if handed_over(m):
                sources[m.uuid].append(Half(host, m))
            elif m.role == Role.DESTINATION and m.kind == Kind.MOVE:
                destinations[m.uuid].append(Half(host, m))
    for uuid, here in sources.items():
        there = destinations.get(uuid, [])
        if len(here) * len(there) <= MAX_PAIRS:
            yield [Pair(s, d) for s in here for d in there if s.host is not d.host]
        else:
            for half in (*here, *there):
                warnings[id(half.migration)] = (TOO_MANY,)
            yield list(_proved(here, there))


def _proved(sources: Iterable[Half], destinations: Iterable[Half]) -> Iterator[Pair]:
    """Yield the pairs that the guest's clock proves, if no clock value occurs twice on a side."""
    by_clock: dict[int | None, list[Half]] = defaultdict(list)
    for half in destinations:
        by_clock[half.migration.guest_clock_ns].append(half)
    reads: dict[int | None, list[Half]] = defaultdict(list)
    for half in sources:
        reads[half.migration.guest_clock_ns].append(half)
    for clock, here in reads.items():
        there = by_clock.get(clock, [])
        if clock is not None and len(here) == len(there) == 1 and here[0].host is not there[0].host:
            yield Pair(here[0], there[0])


def handed_over(m: Migration) -> bool:
    """Whether this is a source whose guest is stopped and never ran again."""
    stopped = m.stopped_at_ns is not None or bool(m.was_paused)
    return (
        m.role == Role.SOURCE
        and m.kind == Kind.MOVE
        and stopped
        and Checkpoint.VCPUS_RUNNING not in m.downtime.times
    )


_Ids = tuple[int, int]


def _ids(pair: Pair) -> _Ids:
    return id(pair.source.migration), id(pair.destination.migration)


def _sure(possible: Sequence[Pair]) -> set[_Ids]:
    """Return the pairs of one VM without a competing pair.

    With a UUID, attempts between the same two hosts keep their order: if there are as many sources as destinations,
    the first belongs to the first.
    """
    partners: dict[int, list[Half]] = defaultdict(list)
    between: dict[_Ids, list[Pair]] = defaultdict(list)
    for pair in possible:
        partners[id(pair.source.migration)].append(pair.destination)
        partners[id(pair.destination.migration)].append(pair.source)
        between[id(pair.source.host), id(pair.destination.host)].append(pair)
    sure: set[_Ids] = set()
    for group in between.values():
        in_order = _in_order(group)
        for pair in group:
            rivals = [half for migration in _ids(pair) for half in partners[migration]]
            if len(rivals) == 2:
                sure.add(_ids(pair))
            elif pair.source.migration.uuid is not None and _ids(pair) in in_order:
                hosts = {id(half.host) for half in rivals}
                if hosts == {id(pair.source.host), id(pair.destination.host)}:
                    sure.add(_ids(pair))
    return sure


def _in_order(group: Sequence[Pair]) -> set[_Ids]:
    """Pair the first source with the first destination, and so on; empty if their numbers differ."""
    sources = _by_time(pair.source.migration for pair in group)
    destinations = _by_time(pair.destination.migration for pair in group)
    if len(sources) != len(destinations):
        return set()
    return set(zip(sources, destinations, strict=True))


def _by_time(migrations: Iterable[Migration]) -> list[int]:
    times = {id(m): m.started_at_ns for m in migrations}
    return sorted(times, key=lambda key: times[key])
