# SPDX-License-Identifier: MIT
"""Computes the cost of each migration strategy from the forecast rounds."""

import msgspec
from msgspec.structs import replace

from vftrace.analysis.forecast.channel import Channel
from vftrace.analysis.forecast.rounds import Run
from vftrace.analysis.forecast.working_set import Shape
from vftrace.model.migration import StrategyCost

FIXED_DOWNTIME_NS = 7_000_000
"""The blackout without pages to send: stop, final sync, save and load of vCPUs and devices, start. Measured on one
machine with plain QEMU devices; other devices add theirs."""


class Fitted(msgspec.Struct, frozen=True):
    """Constants that were fitted on real migrations (benchmarks/forecast_grid.py)."""

    shape: Shape = msgspec.field(default_factory=Shape)
    fixed_downtime_ns: int = FIXED_DOWNTIME_NS
    sustained: float = 1.0
    """How many times faster an unlimited channel is than a limited one in its bursts: at the beginning of each burst
    the receiver has to wake up."""
    last_bytes_per_second: float | None = None
    """The rate of the last pages, if it was measured."""


FITTED = Fitted(Shape(full=1.5), sustained=1.25)


SMALL_STOP_BYTES = 4 << 20
"""Fewer bytes than these take a time that is short compared with the fixed part."""


class Stop(msgspec.Struct, frozen=True):
    """The bytes sent while the guest was stopped, and the length of the stop."""

    bytes: int
    ns: int
    fixed: bool = False
    """Whether devices that transferred their state took most of the time."""

    def applied(self, measured: Channel, channel: Channel, fitted: Fitted) -> Fitted:
        """Return the constants that this stop shows on the measured channel, applied to the assumed channel: many bytes
        show the speed of the last pages, few show the fixed part."""
        wire_ns = self.ns - fitted.fixed_downtime_ns
        if self.fixed or self.bytes < SMALL_STOP_BYTES or wire_ns <= 0:
            fixed = max(0, round(self.ns - self.bytes * 1e9 / measured.link))
            return replace(fitted, fixed_downtime_ns=fixed)
        speed = self.bytes * 1e9 / wire_ns * channel.link / measured.link
        return replace(fitted, last_bytes_per_second=speed)


def strategy_costs(
    run: Run,
    left: float,
    passed_ns: float,
    channel: Channel,
    device_state_bytes: int | None,
    fitted: Fitted,
) -> tuple[StrategyCost, ...]:
    """Return the cost of every strategy, plain precopy first. `left` bytes are unsent `passed_ns` after the
    beginning."""
    down = round(_downtime_ns(run, channel, fitted)) if run.converges else None
    total = None if down is None else round(passed_ns + run.ns + down)
    late = None if down is None else round(run.last_round_ns + down)
    # The guest is stopped now and runs at once on the destination; the rest follows while it runs.
    fixed = fitted.fixed_downtime_ns
    postcopy = round(passed_ns + fixed + left * 1e9 / channel.rate)
    device_ns = None if device_state_bytes is None else device_state_bytes * 1e9 / channel.link
    return (
        StrategyCost("plain", run.converges, total, down, None),
        StrategyCost("postcopy", True, postcopy, fixed, None),
        StrategyCost("unplug", run.converges, total, down, total),
        StrategyCost("late-unplug", run.converges, total, down, late),
        StrategyCost("failover", run.converges, total, down, total),
        _vfio(run, total, down, None if device_ns is None else round(device_ns)),
    )


def _downtime_ns(run: Run, channel: Channel, fitted: Fitted) -> float:
    """Return the downtime: the fixed part and the last pages, which QEMU sends without max-bandwidth."""
    again = run.last_bytes - run.last_fresh
    if fitted.last_bytes_per_second is not None:
        return fitted.fixed_downtime_ns + run.last_bytes * 1e9 / fitted.last_bytes_per_second
    wire = 1e9 * (again / channel.link + run.last_fresh / channel.fresh)
    return fitted.fixed_downtime_ns + (wire / fitted.sustained if channel.held_back else wire)


def _vfio(run: Run, total: int | None, down: int | None, device_ns: int | None) -> StrategyCost:
    """Return the cost of plain precopy plus the device's data while the guest is stopped."""
    if total is None or down is None or device_ns is None:
        return StrategyCost("vfio", run.converges, None, None, None)
    return StrategyCost(
        "vfio", run.converges, total + device_ns, down + device_ns, down + device_ns
    )
