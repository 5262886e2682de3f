# SPDX-License-Identifier: MIT
"""Destinations of VMMs other than QEMU, whose command line does not show that they wait."""

import pytest

from vftrace import events
from vftrace.analysis.process import Process
from vftrace.events import Event

PID, TID = 70, 71
S = 1_000_000_000
MADE = 100 * S
RUNNING, RESUMING = 2, 4


def process_after(*happened: Event) -> Process:
    process = Process(PID, MADE)
    process.feed(events.VmCreated(MADE, 0, PID, TID, 5))
    for event in happened:
        process.feed(event)
    return process


def clock_set(at_ns: int, clock_ns: int, ret: int = 0) -> Event:
    return events.Clock(at_ns, 1, PID, TID, at_ns - 1000, 0, events.Clock.SET, ret, clock_ns)


def state_asked(at_ns: int, state: int) -> Event:
    return events.VfioState(at_ns, 1, PID, TID, at_ns - 1, 9, events.VfioState.SET, state, -1, 0)


def test_a_clock_that_shows_more_than_its_vm_has_lived() -> None:
    process = process_after(clock_set(MADE + 2 * S, 3600 * S))
    assert process.incoming is not None
    assert process.incoming.clock_set_at_ns == MADE + 2 * S
    assert process.incoming.guest_clock_ns == 3600 * S


@pytest.mark.parametrize(
    "happened",
    [
        # QEMU's first start sets what it read when it was made.
        [clock_set(MADE + 2 * S, 1 * S)],
        [clock_set(MADE + 2 * S, 2 * S)],
        # A guest that has run continues with its own clock.
        [events.Run(MADE + S, 1, PID, TID, 0), clock_set(MADE + 2 * S, 3600 * S)],
        [clock_set(MADE + 2 * S, 3600 * S, ret=-22)],
    ],
    ids=["boot", "as old as its VM", "has run", "refused"],
)
def test_a_clock_that_is_its_own(happened: list[Event]) -> None:
    assert process_after(*happened).incoming is None


def test_where_the_vms_beginning_was_not_seen_its_clock_shows_nothing() -> None:
    process = Process(PID, MADE)
    process.feed(clock_set(MADE + 2 * S, 3600 * S))
    assert process.incoming is None


def test_a_state_to_load_is_asked_for_before_the_guest_ever_ran() -> None:
    process = process_after(state_asked(MADE + S, RESUMING))
    assert process.incoming is not None
    assert process.incoming.first_act_ns == MADE + S


@pytest.mark.parametrize(
    "happened",
    [
        [state_asked(MADE + S, RUNNING)],
        [events.Run(MADE + S, 1, PID, TID, 0), state_asked(MADE + 2 * S, RESUMING)],
    ],
    ids=["another state", "has run"],
)
def test_no_state_is_loaded(happened: list[Event]) -> None:
    assert process_after(*happened).incoming is None
