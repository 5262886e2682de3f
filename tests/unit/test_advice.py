# SPDX-License-Identifier: MIT
"""Each rule of advice on migrations made by hand: at its threshold, and just below it."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from vftrace.analysis.advice import blackout
from vftrace.analysis.advice.advise import advise
from vftrace.analysis.advice.precopy import MARGIN, SWEEPS
from vftrace.analysis.forecast.channel import PAGE_ON_WIRE
from vftrace.analysis.forecast.precopy import of_migration
from vftrace.model.advice import Advice, Rule
from vftrace.model.brownout import (
    STATES,
    Brownout,
    FaultWaits,
    Hold,
    VcpuSpan,
    VcpuState,
    VcpuUse,
)
from vftrace.model.calls import BlackoutCalls, CallSpan, Cause, CauseKind, StepCauses
from vftrace.model.checkpoint import Checkpoint
from vftrace.model.host import HostInfo
from vftrace.model.migration import (
    CheckpointTime,
    Downtime,
    Kind,
    Migration,
    Outcome,
    Phase,
    PhaseSpan,
    Role,
    Round,
    Snapshot,
    Strategy,
    VfPhase,
    VfUse,
    bare_migration,
)
from vftrace.model.report import HostReport, MigrationReport, Outage, OutageSpan, Side

MS = 1_000_000
MIB = 1 << 20
REST_MS = 30
"""Of each blackout: what is left when its cause is gone."""


def migration(outcome: Outcome = Outcome.COMPLETED) -> Migration:
    bare = bare_migration(
        key="k",
        attempt=0,
        pid=1,
        peer_pid=2,
        uuid=None,
        name="vm",
        role=Role.STITCHED,
        outcome=outcome,
        cause=None,
        started_at_ns=0,
        ended_at_ns=10_000 * MS,
        page_size=4096,
        internal_error="",
    )
    return replace(bare, incomplete=False, internal_error=None)


def given(m: Migration, outage: Outage | None = None) -> dict[Rule, Advice]:
    host = HostReport(HostInfo("h", "b", "6.12", "0", 0, ()), Snapshot(0, (), (), 0, 0, 0, ()))
    found = MigrationReport(m, host, host, 0, outage=outage)
    return {advice.rule: advice for advice in advise(found)}


def cause(
    kind: CauseKind,
    ns: int,
    call: str | None = None,
    *,
    side: str = "source",
    thread: str | None = "migration thread",
    count: int = 1,
) -> Cause:
    return Cause(kind, side, call, "/disk.img", thread, ns, count, ns)  # type: ignore[arg-type]


def stopped(step: Checkpoint, what: Cause, *spans: CallSpan) -> Migration:
    """A blackout of this cause in this step, and REST_MS of something else."""
    rest = cause(CauseKind.ON_CPU, REST_MS * MS, side="destination", thread="main thread")
    steps = (
        StepCauses(step, what.ns, (what,)),
        StepCauses(Checkpoint.VCPUS_RUNNING, rest.ns, (rest,)),
    )
    down = what.ns + rest.ns
    critical = frozenset({("source", 10), ("destination", 20)})
    calls = BlackoutCalls(steps, (), spans, True, critical, (), 0, None)  # type: ignore[arg-type]
    points = (CheckpointTime(step, what.ns, what.ns), CheckpointTime(step, down, rest.ns))
    return replace(migration(), calls=calls, downtime=Downtime(down, step, points), stopped_at_ns=0)


CAUSES: dict[Rule, tuple[Checkpoint, int, Callable[[int], Cause]]] = {
    Rule.PRE_SWITCHOVER: (
        Checkpoint.FINAL_SYNC_DONE,
        blackout.MANAGEMENT_NS,
        lambda ns: cause(CauseKind.WAIT, ns, "futex"),
    ),
    Rule.HELD: (
        Checkpoint.HELD,
        blackout.MANAGEMENT_NS,
        lambda ns: cause(CauseKind.WAIT, ns, "ppoll", side="destination", thread="main thread"),
    ),
    Rule.SLOW_FLUSH: (
        Checkpoint.FINAL_SYNC_DONE,
        blackout.LEAST_NS,
        lambda ns: cause(CauseKind.CALL, ns, "fdatasync", thread="worker"),
    ),
    Rule.CPU_WAIT: (
        Checkpoint.DEVICES_LOADED,
        blackout.LEAST_NS,
        lambda ns: cause(CauseKind.RUN_QUEUE, ns, side="destination", thread="main thread"),
    ),
    Rule.KVM_SETUP: (
        Checkpoint.VCPUS_RUNNING,
        blackout.SETUP_NS,
        lambda ns: cause(CauseKind.CALL, ns, "KVM_IRQFD", side="destination", count=64),
    ),
}


@pytest.mark.parametrize("rule", CAUSES)
def test_a_cause_of_the_blackout(rule: Rule) -> None:
    step, least, made = CAUSES[rule]
    found = given(stopped(step, made(least)))
    assert set(found) == {rule}
    (effect,) = found[rule].effects
    assert effect.figure == "downtime"
    assert effect.was_ns == least + REST_MS * MS
    without = REST_MS * MS
    assert (effect.expected_ns or effect.least_ns) == without
    assert not given(stopped(step, made(least - 1)))


@pytest.mark.parametrize("rule", CAUSES)
def test_a_cause_that_is_a_small_part_of_it(rule: Rule) -> None:
    step, least, made = CAUSES[rule]
    one = stopped(step, made(least))
    longer = Downtime(least * 10, step, one.downtime.checkpoints)
    assert not given(replace(one, downtime=longer))


@pytest.mark.parametrize("rule", CAUSES)
def test_no_advice_from_what_is_incomplete_or_no_move(rule: Rule) -> None:
    step, least, made = CAUSES[rule]
    one = stopped(step, made(least))
    for unfit in (
        replace(one, incomplete=True),
        replace(one, kind=Kind.SAVE),
        replace(one, outcome=None),
        replace(one, internal_error="x:1"),
    ):
        assert not given(unfit)


def test_a_few_interrupts_are_not_many() -> None:
    few = cause(CauseKind.CALL, 500 * MS, "KVM_IRQFD", side="destination", count=63)
    assert not given(stopped(Checkpoint.VCPUS_RUNNING, few))


def test_held_without_traced_calls() -> None:
    """An older recording has the checkpoint alone."""
    ns = blackout.MANAGEMENT_NS
    one = stopped(Checkpoint.HELD, cause(CauseKind.WAIT, ns))
    assert set(given(replace(one, calls=None))) == {Rule.HELD}


def sending(kind: CauseKind, *spans: CallSpan) -> Migration:
    one = stopped(Checkpoint.STATE_SAVED, cause(kind, 200 * MS, "sendmsg"), *spans)
    return replace(one, rounds=(Round(0, 0, 0, 0, 0, 400 * MIB, ()),))


def test_one_busy_sender() -> None:
    assert set(given(sending(CauseKind.CALL))) == {Rule.MULTIFD}
    assert set(given(sending(CauseKind.ON_CPU))) == {Rule.MULTIFD}


def test_a_sender_that_waits_for_the_channel_is_not_busy() -> None:
    assert not given(sending(CauseKind.CHANNEL))


def test_several_senders_are_there_already() -> None:
    other = CallSpan(
        "source", 11, "multifdsend_0", CauseKind.CALL, "sendmsg", "migration channel", 0, 1, 1, 1, 1
    )
    assert not given(sending(CauseKind.CALL, other))


# -- precopy ------------------------------------------------------------------------------------

RATE = 16 * MIB
HOT_PAGES = 2048
"""8 MiB that are written over and over: half a second at 16 MiB/s, more than 300 ms."""


def endless(
    sweeps: int, *, link: int = RATE * 40, outcome: Outcome = Outcome.CANCELLED
) -> Migration:
    """A first round of 64 MiB, then rounds that send the same pages again."""
    at, rounds = 0, []
    for number in range(sweeps):
        sent = 64 * MIB if number == 0 else HOT_PAGES * PAGE_ON_WIRE
        pages = 16384 if number == 0 else HOT_PAGES
        redirtied = 0 if number < 2 else HOT_PAGES
        burst_ns = sent * 1000 * MS // link
        rounds.append(Round(at, 0, pages, redirtied, pages, sent, (), sent, burst_ns))
        at += sent * 1000 * MS // RATE
    forecast = of_migration(rounds, 0, None)
    return replace(migration(outcome), rounds=tuple(rounds), forecast=forecast)


def test_precopy_that_does_not_converge() -> None:
    found = given(endless(12))
    assert set(found) == {Rule.BANDWIDTH, Rule.DOWNTIME_LIMIT, Rule.POSTCOPY}
    # By hand: all 8 MiB fit 300 ms at 27 MiB/s, and 500 ms at 16 MiB/s, so that more is not needed.
    bandwidth = found[Rule.BANDWIDTH].parameters["max-bandwidth"]
    assert isinstance(bandwidth, int)
    assert RATE < bandwidth <= 27 * MIB * MARGIN
    limit = found[Rule.DOWNTIME_LIMIT].parameters["downtime-limit"]
    assert isinstance(limit, int)
    assert 300 < limit <= 500 * MARGIN
    # The first round takes 4 s, then 2048 pages go one by one.
    total = found[Rule.POSTCOPY].effects[0].expected_ns
    assert total == pytest.approx(4000 * MS + HOT_PAGES * 25_000, rel=0.02)


def test_precopy_that_was_ended_early_or_by_somebody_else() -> None:
    assert not given(endless(SWEEPS - 1))
    assert not given(endless(12, outcome=Outcome.FAILED))
    assert not given(endless(12, outcome=Outcome.COMPLETED))
    assert not given(replace(endless(12), missed_beginning=True))


def test_bandwidth_that_nothing_holds_back_is_not_asked_for() -> None:
    assert Rule.BANDWIDTH not in given(endless(12, link=RATE))


def throttled(held_ms: int, vcpus: int = 2) -> Migration:
    """Each vCPU was held for so long, of 60 s, and precopy converged then."""

    def use(number: int) -> VcpuUse:
        ns = tuple(held_ms * MS if state is VcpuState.THROTTLE else 0 for state in STATES)
        span = VcpuSpan(0, 60_000 * MS, ns)
        return VcpuUse("source", 100 + number, number, span, (), 0, 0, 0, FaultWaits(0, 0, 0, ()))

    hold = Hold(VcpuState.THROTTLE, 4000 * MS, 4, held_ms / 60_000)
    uses = tuple(use(number) for number in range(vcpus))
    brownout = Brownout(None, (), uses, (), 0.5, 0, None, None, (hold,), None)
    return replace(endless(12, outcome=Outcome.COMPLETED), brownout=brownout)


def test_auto_converge_that_cost_more_than_postcopy_would() -> None:
    """After the first round, 8 MiB at 16 MiB/s are half a second: twice that is less than the least of a second."""
    found = given(throttled(1100))
    assert set(found) == {Rule.AUTO_CONVERGE}
    held, total = found[Rule.AUTO_CONVERGE].effects
    assert (held.figure, held.was_ns) == ("held", 1100 * MS)
    assert held.most_ns < 1000 * MS
    assert total.was_ns == 10_000 * MS
    assert total.expected_ns == pytest.approx(4000 * MS + HOT_PAGES * 25_000, rel=0.02)
    assert not given(throttled(990))
    assert not given(replace(throttled(1100), postcopy=True))


def after_postcopy(rate: int) -> Migration:
    """16 MiB, 4096 pages of 25 us, follow the guest at this rate; before that bursts went at 160 MiB/s."""
    moved = 16 * MIB
    took = moved * 1000 * MS // rate
    rounds = (
        Round(0, 0, 1, 0, 1, 64 * MIB, (), 64 * MIB, 400 * MS),
        Round(1000 * MS, 0, 1, 0, 1, moved, (), moved, 100 * MS),
    )
    phase = PhaseSpan(Phase.POSTCOPY, Role.SOURCE, 1000 * MS, 1000 * MS + took)
    return replace(
        migration(), postcopy=True, rounds=rounds, phases=(phase,), stopped_at_ns=1000 * MS
    )


def test_postcopy_that_is_held_back() -> None:
    found = given(after_postcopy(16 * MIB))
    assert set(found) == {Rule.POSTCOPY_BANDWIDTH}
    (effect,) = found[Rule.POSTCOPY_BANDWIDTH].effects
    assert (effect.was_ns, effect.expected_ns) == (1000 * MS, 4096 * 25_000)
    assert not given(after_postcopy(81 * MIB))
    assert not given(replace(after_postcopy(16 * MIB), postcopy=False))


# -- virtual functions --------------------------------------------------------------------------


def plugged(mapping_ms: int) -> Migration:
    phase = VfPhase("probing", 5000 * MS, None)
    vf = VfUse("p", 0, "0000:01:10.0", Role.DESTINATION, (phase,), (5000 - mapping_ms) * MS)
    return replace(migration(), vfs=(vf,))


def gap(**spans: int) -> Outage:
    parts, at = [], 0
    for name, ms in spans.items():
        parts.append(OutageSpan(NAMES[name], Side.DESTINATION, at, at + ms * MS))
        at += ms * MS
    return Outage(0, at, at, at, 0, tuple(parts))


NAMES = {"mapping": "VF attached", "link": "VF's link", "other": "blackout"}


def test_a_destination_that_pins_memory() -> None:
    assert set(given(plugged(200))) == {Rule.MAP_DMA}
    assert not given(plugged(199))
    found = given(plugged(1000), gap(mapping=1000, other=500))
    (effect,) = found[Rule.MAP_DMA].effects
    assert (effect.was_ns, effect.least_ns) == (1500 * MS, 500 * MS)


def test_mapping_that_no_ping_noticed() -> None:
    assert not given(plugged(1000), gap(other=1500))
    assert not given(plugged(1000), gap(mapping=300, other=1500))


def test_a_link_that_comes_late() -> None:
    found = given(migration(), gap(link=500, other=100))
    assert set(found) == {Rule.VF_LINK}
    assert not given(migration(), gap(link=499, other=100))
    standby = replace(migration(), strategy=Strategy.FAILOVER)
    assert "standby" in given(standby, gap(link=500))[Rule.VF_LINK].setting
