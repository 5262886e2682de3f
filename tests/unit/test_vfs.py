# SPDX-License-Identifier: MIT
"""Virtual functions of a migration: lost, and ready again."""

from msgspec.structs import replace

from vftrace.analysis.devices.device import PassedDevice
from vftrace.analysis.devices.downtime import MigrationDevices, Verdict, judge
from vftrace.analysis.devices.mailbox_evidence import HostContext
from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.devices.vf_phases import destination_vf, mailbox_vf, ready_ns, source_vf
from vftrace.analysis.process import Process
from vftrace.model.migration import Role, VfUse
from vftrace.model.vf import StateSpan, VfHistory

PF = "0000:01:00.0"
S = 10**9


def function(opened: int | None, closed: int | None = None) -> PassedDevice:
    return PassedDevice(
        7, opened, address="0000:01:10.0", id="vf0", pf=PF, vf=0, closed_at_ns=closed
    )


def life(*states: tuple[str, int]) -> VfHistory:
    """A life of these states, each until the next."""
    ends = [at for _, at in states[1:]] + [None]
    spans = tuple(
        StateSpan(name, at, end)  # type: ignore[arg-type]
        for (name, at), end in zip(states, ends, strict=True)
    )
    boxes = Mailboxes()
    boxes._vf(PF, 0, 2)
    (empty,) = boxes.vf_histories()
    return replace(empty, states=spans)


def phases(use: VfUse | None) -> list[tuple[str, int, int | None]]:
    assert use is not None
    return [(p.name, p.start_at_ns, p.end_at_ns) for p in use.phases]


def test_an_unplugged_function_is_absent_until_its_successor_comes() -> None:
    assert phases(source_vf(function(10, 20), None, 30, None, 50)) == [("absent", 20, 50)]


def test_without_a_successor_it_stays_absent() -> None:
    assert phases(source_vf(function(10, 20), None, 30, 90, None)) == [("absent", 20, None)]


def test_one_unplugged_during_the_migration_was_ready_before() -> None:
    heard = life(("configuring", 5), ("up", 8), ("reset", 61))
    assert phases(source_vf(function(1, 60), heard, 30, None, None)) == [
        ("ready", 30, 60),
        ("absent", 60, None),
    ]


def test_messages_after_the_closing_belong_to_another_user() -> None:
    heard = life(("up", 8), ("reset", 21), ("up", 40))
    assert phases(source_vf(function(1, 20), heard, 30, None, None)) == [("absent", 20, None)]


def test_one_that_stays_is_followed_to_the_migrations_end() -> None:
    heard = life(("up", 8), ("reset", 50), ("configuring", 55), ("up", 58), ("reset", 99))
    assert phases(source_vf(function(1), heard, 30, 70, None)) == [
        ("ready", 30, 50),
        ("reset", 50, 55),
        ("configuring", 55, 58),
        ("ready", 58, 70),
    ]
    # A process that ends after its migration closes its devices.
    assert phases(source_vf(function(1, 80), heard, 30, 70, None))[-1] == ("ready", 58, 70)


def test_a_plugged_function_is_probed_configured_ready() -> None:
    # As igbvf does it: two resets and a MAC when it is bound, then it rests until it is brought up.
    heard = life(
        ("reset", 101),
        ("negotiating", 102),
        ("reset", 103),
        ("negotiating", 104),
        ("configuring", 105),
        ("reset", 106),
        ("configuring", 120),
        ("up", 130),
    )
    use = destination_vf(function(100), heard, 50, 110, None)
    assert phases(use) == [
        ("probing", 100, 105),
        ("configuring", 105, 130),
        ("ready", 130, None),
    ]
    assert use is not None
    assert ready_ns(use) == 130


def test_what_happens_to_it_long_after_is_left_out() -> None:
    heard = life(("configuring", 105), ("up", 130), ("reset", 140), ("up", 150))
    assert phases(destination_vf(function(100), heard, 50, 110, None))[-1] == ("ready", 130, None)
    # While the migration lasts it belongs to it.
    assert [p[0] for p in phases(destination_vf(function(100), heard, 50, None, None))] == [
        "probing",
        "configuring",
        "ready",
        "reset",
        "ready",
    ]


def test_a_function_that_nobody_probes_is_never_ready() -> None:
    use = destination_vf(function(100), life(("reset", 101)), 50, 110, None)
    assert phases(use) == [("probing", 100, None)]
    assert use is not None
    assert ready_ns(use) is None


def test_the_phases_end_where_it_is_closed() -> None:
    heard = life(("configuring", 105), ("up", 130), ("reset", 141))
    assert phases(destination_vf(function(100, 140), heard, 50, None, 140))[-1] == (
        "ready",
        130,
        140,
    )


def test_one_that_was_there_before_is_followed_from_the_beginning() -> None:
    assert phases(destination_vf(function(None), life(("up", 8)), 50, 110, None)) == [
        ("ready", 50, 110)
    ]


def test_a_device_that_is_no_function_has_no_phases() -> None:
    assert source_vf(PassedDevice(7, 10), None, 30, None, None) is None
    assert destination_vf(PassedDevice(7, 10), None, 30, None, None) is None


def judged(heard: dict[tuple[str, int], VfHistory]) -> Verdict:
    """A function unplugged at 50, before a migration from 100 to 250; another plugged at 300."""
    source, destination = Process(1, 0), Process(2, 0)
    source.devices.all.append(function(1, 50))
    destination.devices.all.append(replace(function(300), address="0000:01:10.2", vf=1))
    found = MigrationDevices(source, None, destination, None, 100, 100, 10 * S)
    return judge(found, HostContext(heard), {}, 200, 250, failed=False)


def test_an_unplugged_function_is_absent_until_its_successor_is_ready() -> None:
    verdict = judged({(PF, 1): life(("reset", 301), ("configuring", 310), ("up", 350))})
    assert verdict.strategy == "unplug"
    assert [(d.address, d.from_ns, d.ns) for d in verdict.downtimes] == [("0000:01:10.0", 50, 300)]
    source, destination = verdict.vfs
    assert (source.role, phases(source)) == ("source", [("absent", 50, 300)])
    assert (destination.role, phases(destination)) == (
        "destination",
        [("probing", 300, 310), ("configuring", 310, 350), ("ready", 350, None)],
    )


def test_without_a_mailbox_it_is_absent_until_its_successor_is_opened() -> None:
    assert [d.ns for d in judged({}).downtimes] == [250]


def test_a_function_that_only_its_mailbox_shows() -> None:
    use = mailbox_vf(life(("up", 8)), Role.SOURCE, 30, 70)
    assert (use.pf, use.vf, use.role) == (PF, 0, "source")
    assert phases(use) == [("ready", 30, 70)]
