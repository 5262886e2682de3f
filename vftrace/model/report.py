# SPDX-License-Identifier: MIT
"""The report: hosts, their migrations and pings, live or from recordings; every output is made from it.

A host here is one boot of a machine: all its times are CLOCK_BOOTTIME nanoseconds of that boot.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from vftrace.events import Event
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration, Role, Snapshot


class Side(StrEnum):
    """The side that saw the reason of a part of an outage."""

    SOURCE = "source"
    DESTINATION = "destination"
    PINGER = "pinger"


class WaitingVm(msgspec.Struct, frozen=True):
    """A VM that waited for a migration and never ran: from `ready_at_ns` until `ended_at_ns`, None if it lives."""

    pid: int
    uuid: str | None
    ready_at_ns: int
    ended_at_ns: int | None
    registers_set_ns: int | None = None
    """When its vCPUs' registers were last set: by its boot, or by loading a state."""


class HostReport(msgspec.Struct, frozen=True):
    """One host between two boots: its identity, and everything that was seen on it.

    `ready_at_ns` has for each pid the time when the process's last vCPU was created: a destination listens only after
    it. `waiting` lists the VMs that waited for a migration and never ran.
    """

    info: HostInfo
    snapshot: Snapshot
    ready_at_ns: Mapping[int, int] = msgspec.field(default_factory=dict)
    waiting: tuple[WaitingVm, ...] = ()

    @property
    def name(self) -> str:
        """The host's name."""
        return self.info.name

    @property
    def boot_id(self) -> str:
        """The kernel's boot id: recordings with the same one share a clock."""
        return self.info.boot_id


class PingRecording(msgspec.Struct, frozen=True):
    """The recording of a ping: the boot whose clock it uses, its clock samples, and its events."""

    boot_id: str
    clock: tuple[tuple[int, int, int], ...]
    events: tuple[Event, ...]


class ClockOffset(msgspec.Struct, frozen=True):
    """The source's clock minus the destination's, ns: between `low` and `high`.

    `low_why` and `high_why` name the events that bound it.
    """

    low: int
    high: int
    low_why: str
    high_why: str

    @property
    def middle(self) -> int:
        """The offset that maps times from one clock to the other."""
        return (self.low + self.high) // 2

    @property
    def uncertainty_ns(self) -> int:
        """The true offset is at most this far from `middle`."""
        return self.high - self.middle


class OutageSpan(msgspec.Struct, frozen=True):
    """A part of an outage: `side` is the host that saw it, or the pinger; None if no one saw the reason."""

    name: str
    side: Side | None
    start_at_ns: int
    end_at_ns: int

    @property
    def ns(self) -> int:
        """The length of the span."""
        return self.end_at_ns - self.start_at_ns


class Outage(msgspec.Struct, frozen=True):
    """The longest gap of a ping around a migration, on the clock of the migration's times.

    `spans` follow each other without holes. `least_ns` and `most_ns` bound the true length, as PingGap has them.
    `uncertainty_ns`: the whole outage may have been earlier or later by this time.
    """

    start_at_ns: int
    ns: int
    least_ns: int
    most_ns: int | None
    uncertainty_ns: int
    spans: tuple[OutageSpan, ...]

    @property
    def explained_ns(self) -> int:
        """The length of the spans whose reason the hosts saw."""
        return sum(span.ns for span in self.spans if span.side in (Side.SOURCE, Side.DESTINATION))

    @property
    def pinger_ns(self) -> int:
        """The length of the spans whose reason the pinger saw."""
        return sum(span.ns for span in self.spans if span.side == Side.PINGER)


class RoundTrips(msgspec.Struct, frozen=True):
    """The round trips of a ping in one part of the time; `lost` probes had no reply.

    `half_ns`, `p90_ns` and `p99_ns` are the median and the 90 % and 99 % quantiles (error:
    `vftrace.ping.histogram.ERROR`); `least_ns` and `longest_ns` are exact. All are None without a reply.
    """

    answered: int
    lost: int
    least_ns: int | None
    half_ns: int | None
    p90_ns: int | None
    p99_ns: int | None
    longest_ns: int | None


class ServiceRoundTrips(msgspec.Struct, frozen=True):
    """The round trips of a ping before, during and after a migration; None if the ping certainly sent no probe then."""

    before: RoundTrips | None
    during: RoundTrips | None
    after: RoundTrips | None

    def parts(self) -> tuple[tuple[str, RoundTrips | None], ...]:
        """The parts, each with its name, in order of time."""
        return ("before", self.before), ("during", self.during), ("after", self.after)


class MigrationReport(msgspec.Struct, frozen=True):
    """A migration and the host that saw it. Its times are on the clock of `host`; `peer` is the other side's host.

    `uncertainty_ns` bounds the error of `downtime.vcpu_ns`: 0 on one host, None if only one side is known.
    """

    migration: Migration
    host: HostReport
    peer: HostReport | None
    uncertainty_ns: int | None
    offset: ClockOffset | None = None
    """None if both sides are on one clock, or if only one side is known."""
    service_ns: int | None = None
    """The longest gap of a ping that overlaps the blackout."""
    warnings: tuple[str, ...] = ()
    outage: Outage | None = None
    """The longest time without answers around the migration, in spans by reason."""
    round_trips: ServiceRoundTrips | None = None
    """The round trips of a ping before, during and after the migration."""

    @classmethod
    def of_one_host(
        cls, host: HostReport, migration: Migration, warnings: tuple[str, ...] = ()
    ) -> "MigrationReport":
        """Return a migration as one host saw it, with one or both of its sides."""
        both = migration.role == Role.STITCHED
        return cls(migration, host, host if both else None, 0 if both else None, warnings=warnings)


class Report(msgspec.Struct, frozen=True):
    """The contents of several recordings, or of a live trace, by host.

    `damage` has one line for each incomplete file: its path, and where or why it ends early.
    """

    hosts: tuple[HostReport, ...]
    migrations: tuple[MigrationReport, ...]
    pings: tuple[PingRecording, ...] = ()
    damage: tuple[str, ...] = ()

    @classmethod
    def of_hosts(
        cls,
        hosts: Iterable[HostReport],
        pings: Iterable[PingRecording] = (),
        damage: Iterable[str] = (),
    ) -> "Report":
        """Return every migration as its own host saw it; `analysis.hosts.join` joins those of several hosts."""
        each = tuple(hosts)
        migrations = tuple(
            MigrationReport.of_one_host(host, migration)
            for host in each
            for migration in host.snapshot.migrations
        )
        return cls(each, migrations, tuple(pings), tuple(damage))

    def with_hosts_of(self, other: "Report") -> "Report":
        """Return a report with the hosts of both reports, not joined."""
        return Report.of_hosts(
            (*self.hosts, *other.hosts),
            (*self.pings, *other.pings),
            (*self.damage, *other.damage),
        )


def live_report(info: HostInfo, snapshot: Snapshot) -> Report:
    """Return the report of one host from a snapshot."""
    return Report.of_hosts([HostReport(info, snapshot)])
