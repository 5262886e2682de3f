# SPDX-License-Identifier: MIT
"""Makes the events of a ping's recording: settings, gaps, round trips, totals, ticks and clock samples."""

from vftrace import events
from vftrace.events import COLLECTOR, Event
from vftrace.ping.gaps import Gap
from vftrace.ping.intervals import Interval
from vftrace.ping.ledger import Ledger
from vftrace.ping.session import Session


class Journal:
    """Numbers the events of one ping; `tid` is the pinger's pid."""

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._seq = 0

    def settings(self, at_ns: int, session: Session) -> Event:
        """Write how the ping was started."""
        return events.PingSettings(
            *self._head(at_ns),
            target=session.target.name,
            address=session.target.address,
            protocol=session.protocol,
            port=session.port,
            interval_ns=session.schedule.interval_ns,
            timeout_ns=session.ledger.timeout_ns,
            policy="fifo" if session.fifo else "other",
        )

    def gap(self, at_ns: int, gap: Gap) -> Event:
        """Return the event of a gap that was settled at `at_ns`."""
        return events.PingGap(
            *self._head(at_ns),
            kind=gap.kind,
            start_at_ns=gap.start_ns,
            ns=gap.ns,
            least_ns=gap.least_ns,
            most_ns=gap.most_ns,
            lost=gap.lost,
            late=gap.late,
            missed=gap.missed,
            before_sent_ns=gap.before.sent_ns if gap.before else None,
            before_reply_ns=gap.before.reply_ns if gap.before else None,
            after_sent_ns=gap.after.sent_ns if gap.after else None,
            after_reply_ns=gap.after.reply_ns if gap.after else None,
        )

    def round_trips(self, at_ns: int, interval: Interval) -> Event:
        """Return the event of an interval's round trips that were settled at `at_ns`."""
        trips = interval.trips
        return events.PingRoundTrips(
            *self._head(at_ns),
            from_ns=interval.from_ns,
            until_ns=interval.until_ns,
            lost=interval.lost,
            least_ns=trips.least_ns,
            most_ns=trips.most_ns,
            sum_ns=trips.sum_ns,
            trips=trips.text,
        )

    def summary(self, at_ns: int, ledger: Ledger) -> Event:
        """Return the event of the totals so far."""
        return events.PingSummary(
            *self._head(at_ns),
            since_ns=ledger.since_ns or 0,
            settled_ns=ledger.settled_ns,
            sent=ledger.sent_count,
            received=ledger.received,
            lost=ledger.lost,
            missed_slots=ledger.missed_slots,
            duplicates=ledger.duplicates,
            reordered=ledger.reordered,
            after_timeout=ledger.after_timeout,
            longest_gap_ns=ledger.longest.ns if ledger.longest else 0,
            late_p50_ns=ledger.late.quantile_ns(0.5),
            late_p99_ns=ledger.late.quantile_ns(0.99),
            late_p999_ns=ledger.late.quantile_ns(0.999),
            late_max_ns=ledger.late.most_ns,
            rtt_min_ns=ledger.round_trips.least_ns,
            rtt_p50_ns=ledger.round_trips.quantile_ns(0.5),
            rtt_p99_ns=ledger.round_trips.quantile_ns(0.99),
            rtt_max_ns=ledger.round_trips.most_ns,
        )

    def tick(self, at_ns: int) -> Event:
        """Return a tick."""
        return events.Tick(*self._head(at_ns))

    def clock(self, at_ns: int, realtime_offset_ns: int, error_ns: int) -> Event:
        """Return a clock sample."""
        return events.ClockSample(*self._head(at_ns), realtime_offset_ns, error_ns)

    def end(self, at_ns: int) -> Event:
        """Return the event that ends the recording."""
        return events.End(*self._head(at_ns), streams={})

    def _head(self, at_ns: int) -> tuple[int, int, int, int]:
        self._seq += 1
        return at_ns, self._seq - 1, COLLECTOR, self._tid
