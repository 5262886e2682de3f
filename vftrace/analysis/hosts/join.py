# SPDX-License-Identifier: MIT
"""Joins the halves of migrations that were seen on two hosts."""

from collections.abc import Sequence

from msgspec.structs import replace

from vftrace.analysis.hosts.causality import offset_of, orders_of
from vftrace.analysis.hosts.clocks import tightest_orders, with_clock_error, with_error
from vftrace.analysis.hosts.failed import join_failed
from vftrace.analysis.hosts.halves import join_pair
from vftrace.analysis.hosts.match import match
from vftrace.analysis.hosts.round_trips import with_round_trips
from vftrace.analysis.hosts.service import with_service
from vftrace.model.report import HostReport, MigrationReport, PingRecording, Report


def join_hosts(report: Report, clock_error_ns: int | None = None) -> Report:
    """Return the report with its migrations joined across hosts, as far as their clocks allow.

    `clock_error_ns` is the assumed wall-clock error for hosts whose kernel reports none; None: such a clock is not
    used. If clocks contradict each other, or nothing bounds their difference, both halves stay, each with a warning.
    """
    hosts, pings = report.hosts, report.pings
    if clock_error_ns is not None:
        hosts = tuple(with_clock_error(host, clock_error_ns) for host in hosts)
        pings = tuple(replace(p, clock=with_error(p.clock, clock_error_ns)) for p in pings)
    joined = join_failed(with_service(_join_halves(hosts, pings), hosts, pings), hosts)
    joined = with_round_trips(joined, hosts, pings)
    # The assumption is for joining only: the report shows each host's clock as recorded.
    recorded = {host.boot_id: host for host in report.hosts}
    return replace(
        report,
        migrations=tuple(
            replace(
                found,
                host=recorded[found.host.boot_id],
                peer=None if found.peer is None else recorded[found.peer.boot_id],
            )
            for found in joined
        ),
    )


def _join_halves(
    hosts: Sequence[HostReport], pings: Sequence[PingRecording]
) -> list[MigrationReport]:
    """Return every pair of halves as one migration, and every other migration as it is, in order."""
    pairs, warnings = match(hosts)
    shared = tightest_orders([order for pair in pairs for order in orders_of(pair)])
    joined: list[MigrationReport] = []
    used: set[int] = set()
    for pair in pairs:
        source, destination = pair.source.migration, pair.destination.migration
        found = offset_of(pair, hosts, [*orders_of(pair), *shared], pings)
        if isinstance(found, str):
            warnings.setdefault(id(source), (found,))
            warnings.setdefault(id(destination), (found,))
        else:
            used |= {id(source), id(destination)}
            joined.append(join_pair(pair, found))
    joined += [
        MigrationReport.of_one_host(host, migration, warnings.get(id(migration), ()))
        for host in hosts
        for migration in host.snapshot.migrations
        if id(migration) not in used
    ]
    place = {id(host): index for index, host in enumerate(hosts)}
    joined.sort(key=lambda j: (place[id(j.host)], j.migration.started_at_ns, j.migration.pid))
    return joined
