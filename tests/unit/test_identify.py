# SPDX-License-Identifier: MIT
"""Processes and fds are looked up when an event shows that they may have changed, and not for every record."""

import pytest

from vftrace import events
from vftrace.collect.batch import Intake
from vftrace.collect.clock import boottime_ns
from vftrace.collect.identify import Identifier
from vftrace.events import wire
from vftrace.host import descriptors, devices
from vftrace.host.descriptors import Descriptor

PF = "0000:01:00.0"


def _message(seq: int, vf: int = 0) -> events.Mailbox:
    return events.Mailbox(seq, seq, 0, 0, PF, 1, vf, 0, 1, 1, 0, (1,))


def _reset(seq: int) -> events.VfReset:
    return events.VfReset(seq, seq, 0, 0, PF, 1, 0)


def test_a_functions_address_is_read_once_and_again_after_its_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address: str | None = None
    looks: list[int] = []

    def look(_pf: str, number: int) -> str | None:
        looks.append(number)
        return address

    monkeypatch.setattr(devices, "vf_address", look)
    intake = Intake()
    identifier = Identifier(intake)
    for seq in range(1000):
        identifier.take(_message(seq))
    assert (looks, intake.drain().events) == ([0], [])
    address = "0000:01:10.0"
    identifier.retry_functions()
    for seq in range(1000):
        identifier.take(_message(seq))
    assert looks == [0, 0]
    assert [e.address for e in intake.drain().events if isinstance(e, events.VfAddress)] == [
        address
    ]
    identifier.take(_reset(1001))
    assert (looks, intake.drain().events) == ([0, 0, 0], [])
    address = "0000:01:12.0"
    identifier.take(_reset(1002))
    assert [e.address for e in intake.drain().events if isinstance(e, events.VfAddress)] == [
        address
    ]


def test_an_fd_is_described_once_in_a_process_life(monkeypatch: pytest.MonkeyPatch) -> None:
    found = descriptors.UNKNOWN
    monkeypatch.setattr(descriptors, "describe", lambda _pid, _fd: found)
    intake = Intake()
    identifier = Identifier(intake)
    channel = events.Channel(1, 0, 42, 42, 4096, 1, 1, 1, 0, 7, 0, 42, 0)
    identifier.take(channel)
    assert intake.drain().events == []
    found = Descriptor("tcp", "192.0.2.1:49152")
    identifier.take(channel)
    identifier.take(channel)
    (told,) = intake.drain().events
    assert isinstance(told, events.FileDescriptor)
    assert (told.pid, told.fd, told.peer) == (42, 7, "192.0.2.1:49152")
    identifier.take(events.Exit(2, 1, 42, 42, 0))
    identifier.take(channel)
    assert len(intake.drain().events) == 1


def test_what_is_drained_has_each_record_beside_its_event() -> None:
    intake = Intake()
    intake.write(events.Tick)
    intake.write(events.Gone, pid=7)
    batch = intake.drain()
    assert len(batch.records) == len(batch.events) == 2
    assert [event.seq for event in batch.events] == [0, 1]
    assert intake.drain().events == []


def test_the_collectors_records_are_of_the_time_up_to_which_it_has_read() -> None:
    """A late reader's own records do not overtake those of the kernel side that wait behind them."""
    intake = Intake()
    begun = boottime_ns()
    late = begun + 5
    intake.take_in(wire.encode(events.VmCreated(late, 0, 7, 7, 3)), decode=True)
    intake.write(events.Gone, pid=7)
    intake.take_in(wire.encode(events.VmCreated(late - 2, 0, 8, 8, 3)), decode=True)
    intake.write(events.Gone, pid=8)
    intake.reach(late + 10)
    intake.write(events.Tick)
    assert [e.at_ns - late for e in intake.drain().events] == [0, 0, -2, 0, 10]
