"""The report of several hosts: halves of one migration that two of them saw become one migration."""

from dataclasses import replace

from vftrace.analysis.hosts.failed import join_given_up
from vftrace.analysis.hosts.join import stitch, with_error
from vftrace.model.report import Report


def join_hosts(report: Report, clock_error_ns: int | None = None) -> Report:
    """The same report with its migrations joined across hosts, as far as their clocks allow.

    `clock_error_ns` is the assumed wall-clock error for hosts whose kernel reports none; None: such a clock
    says nothing.
    """
    joined = stitch(report.hosts, report.pings, clock_error_ns)
    hosts = report.hosts
    if clock_error_ns is not None:
        hosts = tuple(with_error(host, clock_error_ns) for host in hosts)
    # The assumption serves joining only: what is reported of a host's clock is what was recorded.
    recorded = {host.boot_id: host for host in report.hosts}
    return replace(
        report,
        migrations=tuple(
            replace(
                found,
                host=recorded[found.host.boot_id],
                peer=None if found.peer is None else recorded[found.peer.boot_id],
            )
            for found in join_given_up(joined, hosts)
        ),
    )
