# SPDX-License-Identifier: MIT
"""Events of `vftrace ping`."""

from vftrace.events.base import Event
from vftrace.events.layout import Kind


class PingSettings(Event, frozen=True):
    """How `vftrace ping` was started; the first record of its stream.

    `protocol` is icmp, udp or tcp, `port` 0 for icmp; `policy` is the scheduling policy that the
    sending process got: `fifo` or `other`.
    """

    KIND = Kind.PING_SETTINGS

    target: str
    address: str
    protocol: str
    port: int
    interval_ns: int
    timeout_ns: int
    policy: str


class PingGap(Event, frozen=True):
    """A time without replies; the pinger writes it when it is settled (a timeout after its last probe).

    `kind` is `lost` (consecutive probes without a reply) or `held` (consecutive probes without a reply or with a
    late one, up to the first reply). `ns` counts from the first such probe. If there was one interruption,
    its true length is between `least_ns` and `most_ns` (null: no answered probe on one side).
    `lost`, `late` and `missed` count probes: without a reply, with a late reply, and not sent because the
    pinger itself was late. The last four fields are the times at which the last answered probe before the gap
    and the first one after it were sent, and at which their replies came; null without such a probe.
    """

    KIND = Kind.PING_GAP

    kind: str
    start_at_ns: int
    ns: int
    least_ns: int
    most_ns: int | None
    lost: int
    late: int
    missed: int
    before_sent_ns: int | None
    before_reply_ns: int | None
    after_sent_ns: int | None
    after_reply_ns: int | None


class PingRoundTrips(Event, frozen=True):
    """The round trips of the probes sent in a short time; the pinger writes them when all are settled.

    The first was sent at `from_ns`, the last at `until_ns`; `lost` of the probes had no reply in time. `trips`
    counts the round trips by their length: `BUCKET:COUNT`, with spaces between (vftrace/ping/histogram.py has
    the lengths). It is a text to save memory, because a report holds all of these events.
    """

    KIND = Kind.PING_ROUND_TRIPS

    from_ns: int
    until_ns: int
    lost: int
    least_ns: int
    most_ns: int
    sum_ns: int
    trips: str


class PingSummary(Event, frozen=True):
    """Totals of a ping so far; the pinger writes them every second and at its end.

    Every probe sent from `since_ns` to `settled_ns` got its reply or timed out. `late_*_ns`:
    how long after its time a probe was sent (the pinger's own jitter); `rtt_*_ns`: round trips.
    """

    KIND = Kind.PING_SUMMARY

    since_ns: int
    settled_ns: int
    sent: int
    received: int
    lost: int
    missed_slots: int
    duplicates: int
    reordered: int
    after_timeout: int
    longest_gap_ns: int
    late_p50_ns: int
    late_p99_ns: int
    late_p999_ns: int
    late_max_ns: int
    rtt_min_ns: int
    rtt_p50_ns: int
    rtt_p99_ns: int
    rtt_max_ns: int
