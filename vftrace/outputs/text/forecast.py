# SPDX-License-Identifier: MIT
"""Shows a forecast in one line."""

from vftrace.model.migration import Forecast, Migration, Role
from vftrace.outputs.text.tables import UNKNOWN, rate
from vftrace.units import format_ns

NOTHING = "nothing is known yet: no round has ended"
NOT_ENOUGH = "no forecast: the pages of the last round, or the bytes sent, are not known"


def forecast_of(migration: Migration) -> str | None:
    """Return the forecast line of a migration; None at its destination, and if it is over and no round ended.

    If the guest was stopped, the forecast is that at the end of the second round.
    """
    m = migration
    if m.role is Role.DESTINATION:
        return None
    if m.outcome is None and m.stopped_at_ns is None:
        return forecast_line(m.forecast)
    forecast = m.forecast
    if forecast is None or (forecast.converges is None and forecast.undecided is None):
        return None
    return f"after sweep {forecast.after_sweeps}: {forecast_line(forecast)}"


def forecast_line(forecast: Forecast | None) -> str:
    """Return whether precopy converges, when, and with which downtime."""
    if forecast is None:
        return NOTHING
    if forecast.undecided == "downtime-limit":
        return f"open: whether it converges depends on {_limit(forecast)}"
    if forecast.undecided == "dirty-rate":
        return "open: the guest dirties memory more and more slowly, as with auto-converge"
    if forecast.converges is None:
        return NOTHING if forecast.after_sweeps < 2 else NOT_ENOUGH
    at = f"at {rate(forecast.bandwidth_bytes_per_second)} and {_limit(forecast)}"
    if not forecast.converges:
        return f"does not converge {at}"
    left = forecast.rounds_left
    return (
        f"converges {at}: {left} more round{'' if left == 1 else 's'}, "
        f"{_time(forecast.total_ns)} in all, downtime {_time(forecast.downtime_ns)}"
    )


def _limit(forecast: Forecast) -> str:
    limit = format_ns(forecast.downtime_limit_ns)
    if forecast.limit_from == "rounds":
        # A replay takes the limit that explains the recording best.
        about = "about" if forecast.after_sweeps < 2 else "below"
        return f"a downtime limit {about} {limit} (the rounds refute QEMU's default)"
    return f"QEMU's default limit of {limit}" if forecast.limit_assumed else f"a limit of {limit}"


def _time(ns: int | None) -> str:
    return UNKNOWN if ns is None else format_ns(ns)
