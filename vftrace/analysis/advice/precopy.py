# SPDX-License-Identifier: MIT
"""Rules about the rounds: the forecast's replay shows the effect of another setting.

Errors are those that replays of real migrations had (docs/results/forecast.md).
"""

import math
from collections.abc import Callable

from vftrace.analysis.forecast.answer import Assumptions
from vftrace.analysis.forecast.precopy import forecast
from vftrace.analysis.forecast.replay import Recorded, of_replay
from vftrace.model import figures
from vftrace.model.advice import Advice, Effect, Rule
from vftrace.model.brownout import VcpuState
from vftrace.model.migration import Forecast, Migration, Outcome, Phase, Round
from vftrace.model.report import MigrationReport
from vftrace.units import format_bytes, format_ns, format_rate

SWEEPS = 5
"""The least number of sweeps: a precopy that ended earlier may have had other reasons."""

MARGIN = 1.5
"""The margin of an advised value: near the limit, convergence depends on which pages the guest writes next
(docs/explanation/forecast.md)."""

MOST_LIMIT_NS = 2_000_000_000
"""The highest limit that is advised: users of live migration do not want a longer stop."""

_STEP = 1.1
_TRIES = 80
"""Enough steps of `_STEP` to go down to a two-thousandth of the highest value."""
_TOTAL_PART = 0.35
_TOTAL_NS = 100_000_000
_DOWN_FACTOR = 4
_TOTAL_ERROR = (
    "19 of 25 replays were within 20 % of the real run, nearly all within 35 % and 100 ms"
)
_DOWN_NS = 20_000_000
_DOWN_ERROR = "the speed of the last pages varies by a factor of four; a busy host adds 20 ms"

HELD_NS = 1_000_000_000
HELD_LONGER = 2.0
"""How many times longer than post-copy's worst wait the vCPUs must have been held."""

POSTCOPY_NS = 500_000_000
POSTCOPY_BYTES = 4 << 20
POSTCOPY_FASTER = 2.0
POSTCOPY_PAGE_NS = 25_000
"""What a page costs in post-copy however fast the channel is: it is sent by itself, and placed by a call of its own
(QEMU migration/postcopy-ram.c, postcopy_place_page). Measured on one machine (docs/results/advice.md)."""


def bandwidth(found: MigrationReport) -> Advice | None:
    """Advise a higher max-bandwidth: it limited the channel, and precopy did not converge."""
    m = found.migration
    now = _not_converging(m)
    if now is None or now.bandwidth_bytes_per_second is None:
        return None
    rate, link = now.bandwidth_bytes_per_second, now.link_bytes_per_second or 0.0

    def assumed(value: float) -> Assumptions:
        return Assumptions(bandwidth_bytes_per_second=value)

    least = _least(m, rate, link / MARGIN, assumed)
    if least is None:
        return None
    wanted = math.ceil(least * MARGIN / (1 << 20)) << 20
    replayed = of_replay(Recorded.of(m), assumed(wanted))
    return _converging(
        m,
        now,
        replayed,
        Rule.BANDWIDTH,
        "the bandwidth was too low for what the guest writes",
        f"the channel carried {format_rate(link)} while it sent, {format_rate(rate)} on average: max-bandwidth"
        " limited it",
        f"set max-bandwidth to {format_bytes(wanted)} per second or more",
        {"max-bandwidth": wanted},
    )


def downtime_limit(found: MigrationReport) -> Advice | None:
    """Advise a higher downtime limit: the pages left after a round were always too many for it."""
    m = found.migration
    now = _not_converging(m)
    if now is None:
        return None

    def assumed(value: float) -> Assumptions:
        return Assumptions(downtime_limit_ns=round(value))

    least = _least(m, float(now.downtime_limit_ns) / 2, MOST_LIMIT_NS / MARGIN, assumed)
    if least is None:
        return None
    wanted = math.ceil(least * MARGIN / 10_000_000) * 10
    replayed = of_replay(Recorded.of(m), assumed(wanted * 1e6))
    return _converging(
        m,
        now,
        replayed,
        Rule.DOWNTIME_LIMIT,
        "the downtime limit was too low for what the guest writes",
        f"the pages left after each round needed more time than a limit of about {format_ns(now.downtime_limit_ns)}",
        f"set downtime-limit to {wanted} ms or more",
        {"downtime-limit": wanted},
    )


def postcopy(found: MigrationReport) -> Advice | None:
    """Advise post-copy, which ends however fast the guest writes."""
    m = found.migration
    now = _not_converging(m)
    early = None if now is None else forecast(m.rounds[:2], m.started_at_ns)
    cost = None if early is None else _postcopy_cost(m, early)
    if now is None or cost is None:
        return None
    total, down = cost
    return Advice(
        Rule.POSTCOPY,
        "precopy did not converge",
        _why(m, now),
        "allow post-copy (postcopy-ram) and start it after the first round (migrate-start-postcopy): it ends however"
        " fast the guest writes, but the guest is lost if a host or the channel fails meanwhile",
        (_total(None, total), _down(None, down)),
        {"postcopy-ram": True, "max-postcopy-bandwidth": 0},
    )


def auto_converge(found: MigrationReport) -> Advice | None:
    """Advise post-copy: auto-converge held the vCPUs longer than the worst wait of post-copy, which is for all
    remaining pages."""
    m = found.migration
    held_ns, words = _throttled(m)
    early = forecast(m.rounds[:2], m.started_at_ns)
    slow = None if early is None else _cost(early, "postcopy")
    cost = None if early is None else _postcopy_cost(m, early)
    total = figures.total_ns(m)
    if early is None or slow is None or cost is None or total is None:
        return None
    if m.postcopy or m.missed_beginning:
        return None
    # The worst: at the bandwidth of precopy, although post-copy has none by default.
    wait_ns = max(0, slow[0] - (early.at_ns - m.started_at_ns))
    if held_ns < max(HELD_NS, HELD_LONGER * wait_ns):
        return None
    was = total if m.outcome is Outcome.COMPLETED else None
    return Advice(
        Rule.AUTO_CONVERGE,
        "auto-converge cost the guest more than post-copy would have",
        (
            f"{words}: each vCPU was held for {format_ns(held_ns)} in total",
            f"the channel carries all pages left after the first round in {format_ns(wait_ns)}",
        ),
        "switch auto-converge off, allow post-copy (postcopy-ram) and start it after the first round"
        " (migrate-start-postcopy); the guest is lost if a host or the channel fails meanwhile",
        (
            Effect(
                "held",
                held_ns,
                None,
                0,
                wait_ns + round(wait_ns * _TOTAL_PART),
                "at worst every vCPU waits until the last page has arrived",
            ),
            _total(was, cost[0]),
        ),
        {"auto-converge": False, "postcopy-ram": True, "max-postcopy-bandwidth": 0},
    )


def _throttled(m: Migration) -> tuple[int, str]:
    """Return how long auto-converge held each vCPU of the source, and the words of the report."""
    brownout = m.brownout
    hold = (
        next((h for h in brownout.holds if h.by is VcpuState.THROTTLE), None) if brownout else None
    )
    if brownout is None or hold is None:
        return 0, ""
    uses = [use for use in brownout.vcpus if use.side == "source"]
    ns = sum(use.total.of(VcpuState.THROTTLE) for use in uses)
    return (ns // len(uses) if uses else 0), hold.words


def postcopy_bandwidth(found: MigrationReport) -> Advice | None:
    """Advise no max-postcopy-bandwidth: it limited the channel while the guest waited for its pages."""
    m = found.migration
    phase = next((p for p in m.phases if p.name is Phase.POSTCOPY and p.end_at_ns), None)
    if not m.postcopy or phase is None or m.outcome is not Outcome.COMPLETED:
        return None
    took = (phase.end_at_ns or 0) - phase.start_at_ns
    late = [r for r in m.rounds if m.stopped_at_ns is not None and r.at_ns >= m.stopped_at_ns]
    sent = sum(r.sent_bytes or 0 for r in late)
    before = [r for r in m.rounds if r not in late]
    link = _burst_rate(before)
    rate = figures.byte_rate(sent, took)
    if (
        link is None
        or rate is None
        or took < POSTCOPY_NS
        or sent < POSTCOPY_BYTES
        or link < POSTCOPY_FASTER * rate
    ):
        return None
    expected = _postcopy_ns(m, sent, link)
    return Advice(
        Rule.POSTCOPY_BANDWIDTH,
        "max-postcopy-bandwidth was low, and the guest waited for its pages",
        (
            f"{format_bytes(sent)} were sent in {format_ns(took)} of post-copy, at {format_rate(rate)}",
            f"before that the channel carried {format_rate(link)} while it sent",
        ),
        "set max-postcopy-bandwidth to 0 (no limit)",
        (
            Effect(
                "postcopy",
                took,
                expected,
                expected // _DOWN_FACTOR,
                expected * _DOWN_FACTOR,
                "the time to place a page varies by a factor of four",
            ),
        ),
        {"max-postcopy-bandwidth": 0},
    )


def _postcopy_ns(m: Migration, left: int, link: float) -> int:
    """Return how long post-copy takes for `left` bytes if nothing limits the channel."""
    pages = left // m.dirty.page_size
    return max(round(left * 1e9 / link), pages * POSTCOPY_PAGE_NS)


def _postcopy_cost(m: Migration, early: Forecast) -> tuple[int, int] | None:
    """Return total time and downtime with post-copy from `early` on."""
    cost, left, link = (
        _cost(early, "postcopy"),
        early.remaining_bytes,
        early.link_bytes_per_second,
    )
    if cost is None or left is None or not link:
        return None
    passed = early.at_ns - m.started_at_ns
    return passed + cost[1] + _postcopy_ns(m, left, link), cost[1]


def _not_converging(m: Migration) -> Forecast | None:
    """Return the forecast of a precopy that ended without a stop of the guest and would never have converged."""
    now = m.forecast
    ended = m.outcome in (Outcome.CANCELLED, Outcome.UNKNOWN) and m.stopped_at_ns is None
    if now is None or not ended or m.missed_beginning or now.after_sweeps < SWEEPS:
        return None
    return now if now.converges is False and now.undecided is None else None


def _least(
    m: Migration, low: float, high: float, assumed: Callable[[float], Assumptions]
) -> float | None:
    """Return the least value above `low` from which on a replay converges; None if not even `high` does."""
    recorded = Recorded.of(m)
    least: float | None = None
    for number in range(_TRIES):
        value = high / _STEP**number
        if value <= low:
            break
        replayed = of_replay(recorded, assumed(value))
        if replayed is None or not replayed.converges:
            return least
        least = value
    return least


def _converging(
    m: Migration,
    now: Forecast,
    replayed: Forecast | None,
    rule: Rule,
    cause: str,
    evidence: str,
    setting: str,
    parameters: dict[str, int],
) -> Advice | None:
    """Return the advice to change a setting, if the replay converges with it."""
    cost = None if replayed is None or not replayed.converges else _cost(replayed, "plain")
    if cost is None:
        return None
    effects = (_total(None, cost[0]), _down(None, cost[1]))
    return Advice(rule, cause, (*_why(m, now), evidence), setting, effects, dict(parameters))


def _why(m: Migration, now: Forecast) -> tuple[str, ...]:
    dirty = figures.last_dirty_rate(m)
    said = f"after {now.after_sweeps} sweeps, precopy does not converge according to the forecast"
    if dirty is not None and now.bandwidth_bytes_per_second is not None:
        said += (
            f": the guest writes {format_rate(dirty)} of new pages, the channel carries"
            f" {format_rate(now.bandwidth_bytes_per_second)}"
        )
    return (said,)


def _cost(answer: Forecast, strategy: str) -> tuple[int, int] | None:
    """Return total time and downtime of a strategy; None if they are not known."""
    found = next((cost for cost in answer.strategies if cost.strategy == strategy), None)
    if found is None or found.total_ns is None or found.downtime_ns is None:
        return None
    return found.total_ns, found.downtime_ns


def _burst_rate(rounds: list[Round]) -> float | None:
    """Return the rate of the channel while nothing limited it."""
    known = [(r.burst_bytes, r.burst_ns) for r in rounds if r.burst_bytes and r.burst_ns]
    return (
        figures.byte_rate(sum(b for b, _ in known), sum(ns for _, ns in known)) if known else None
    )


def _total(was_ns: int | None, ns: int) -> Effect:
    least = max(0, round(ns * (1 - _TOTAL_PART)) - _TOTAL_NS)
    most = round(ns * (1 + _TOTAL_PART)) + _TOTAL_NS
    return Effect("total", was_ns, ns, least, most, _TOTAL_ERROR)


def _down(was_ns: int | None, ns: int) -> Effect:
    most = ns * _DOWN_FACTOR + _DOWN_NS
    return Effect("downtime", was_ns, ns, ns // _DOWN_FACTOR, most, _DOWN_ERROR)
