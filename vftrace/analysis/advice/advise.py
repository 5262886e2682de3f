# SPDX-License-Identifier: MIT
"""Collects the advice on a migration from all rules."""

from collections.abc import Callable, Iterable

from vftrace.analysis.advice import blackout, devices, precopy
from vftrace.model.advice import Advice
from vftrace.model.migration import Kind
from vftrace.model.report import MigrationReport

Ask = Callable[[MigrationReport], Advice | None]

RULES: tuple[Ask, ...] = (
    precopy.bandwidth,
    precopy.downtime_limit,
    precopy.postcopy,
    precopy.auto_converge,
    precopy.postcopy_bandwidth,
    blackout.pre_switchover,
    blackout.slow_flush,
    blackout.multifd,
    blackout.cpu_wait,
    blackout.held,
    blackout.kvm_setup,
    devices.map_dma,
    devices.vf_link,
)


def advise(found: MigrationReport) -> tuple[Advice, ...]:
    """Return the advice on a finished migration; empty if its records are incomplete, because figures may be wrong."""
    m = found.migration
    if m.kind is not Kind.MOVE or m.outcome is None or m.incomplete or m.internal_error:
        return ()
    return tuple(_given(rule(found) for rule in RULES))


def _given(answers: Iterable[Advice | None]) -> Iterable[Advice]:
    return (answer for answer in answers if answer is not None)
