# SPDX-License-Identifier: MIT
"""From samples of vCPUs to the guest's speed: what the sums are, worked out by hand."""

from typing import Any

import pytest

from vftrace import events
from vftrace.analysis.vcpus import brownout
from vftrace.analysis.vcpus.brownout import Running, brownout_of
from vftrace.analysis.vcpus.log import MAX_SAMPLES, VcpuLog
from vftrace.events import layout
from vftrace.model.brownout import STATES, Brownout, FaultWaits, VcpuState, all_waits
from vftrace.outputs.text.brownout import lost_words, speed_line, waits_words

S = 1_000_000_000
PID, VCPU = 100, 101
_ZERO = dict.fromkeys(events.VcpuTime.__struct_fields__, 0)


def sample(
    until_ns: int, *, thread: int = VCPU, begun_ns: int = 0, **fields: Any
) -> events.VcpuTime:
    values: dict[str, Any] = _ZERO | {
        "wait": (0,) * layout.VCPU_WAITS,
        "pid": PID,
        "thread": thread,
    }
    return events.VcpuTime(**values | {"begun_ns": begun_ns, "until_ns": until_ns} | fields)


def baseline(**fields: int) -> events.VcpuBaseline:
    values = {"pid": PID, "thread": VCPU, "vcpu": 0, "from_ns": -10 * S, "until_ns": 0}
    nothing = {"guest_ns": 0, "user_ns": 0, "system_ns": 0, "queue_ns": 0}
    return events.VcpuBaseline(0, 0, 0, 0, **values | nothing | fields)


def log_of(*found: events.VcpuTime | events.VcpuBaseline) -> VcpuLog:
    log = VcpuLog()
    for event in found:
        log.feed(event)
    return log


def made(
    log: VcpuLog,
    end_ns: int,
    rounds: tuple[int, ...] = (),
    stop: tuple[int, int] | None = None,
) -> Brownout:
    found = brownout_of([Running("source", log, 0, end_ns)], rounds, stop)
    assert found is not None
    return found


def test_speed_is_the_time_in_which_the_guest_could_run() -> None:
    log = log_of(
        sample(
            10 * S, guest_ns=3 * S, exit_ns=S, idle_ns=S, fault_ns=2 * S, queue_ns=2 * S, user_ns=S
        )
    )
    assert made(log, 10 * S).speed == pytest.approx(0.5)


def test_speed_is_a_part_of_before() -> None:
    log = log_of(baseline(queue_ns=4 * S, user_ns=S), sample(10 * S, guest_ns=S, queue_ns=9 * S))
    found = made(log, 10 * S)
    assert found.baseline is not None
    assert found.baseline.could_run == pytest.approx(0.5)
    assert found.speed == pytest.approx(0.2)
    assert "waiting for a CPU 90 % (before 40 %)" in lost_words(found)


def test_a_baseline_of_nothing_is_not_believed() -> None:
    log = log_of(baseline(queue_ns=10 * S), sample(S, guest_ns=S))
    assert made(log, S).baseline is None


def test_a_throttle_is_named_with_its_share_and_round() -> None:
    log = log_of(
        sample(4 * S, guest_ns=4 * S),
        sample(8 * S, guest_ns=4 * S + S // 25, throttle_ns=4 * S - S // 25),
    )
    found = made(log, 8 * S, rounds=(0, 2 * S, 4 * S, 6 * S))
    (hold,) = found.holds
    assert hold.words == "auto-converge held the vCPUs 99 % of the time from round 3 on"
    assert found.rounds == pytest.approx((1.0, 1.0, 0.01, 0.01))
    assert found.slow_ns == 4 * S
    assert speed_line(found).endswith("brownout 4.00 s at 1 %")


def test_a_short_round_has_no_speed() -> None:
    log = log_of(sample(S, guest_ns=S))
    assert made(log, S, rounds=(0, 950_000_000)).rounds == (1.0, None)


def test_two_vcpus_count_alike() -> None:
    log = log_of(sample(S, guest_ns=S), sample(S, thread=VCPU + 1, stopped_ns=S))
    found = made(log, S)
    assert found.speed == pytest.approx(0.5)
    assert [use.total.share(VcpuState.STOPPED) for use in found.vcpus] == [0.0, 1.0]


def test_times_between_samples_are_in_proportion() -> None:
    log = log_of(sample(S, guest_ns=S), sample(2 * S, guest_ns=S, queue_ns=S))
    span = log.vcpus[VCPU].between(S // 2, 3 * S // 2)
    assert (span.of(VcpuState.GUEST), span.of(VcpuState.QUEUE)) == (S // 2, S // 2)


def test_a_thread_that_is_followed_anew_continues_counting() -> None:
    log = log_of(sample(S, guest_ns=S), sample(5 * S, begun_ns=4 * S, queue_ns=S))
    span = log.vcpus[VCPU].between(0, 5 * S)
    assert (span.of(VcpuState.GUEST), span.of(VcpuState.QUEUE)) == (S, S)


@pytest.mark.parametrize(
    "odd",
    [
        sample(S // 2, guest_ns=S),
        sample(2 * S, guest_ns=S // 2),
        sample(2 * S, guest_ns=1 << 63),
    ],
    ids=["older", "fewer", "too-many"],
)
def test_a_sample_that_makes_no_sense_is_ignored(odd: events.VcpuTime) -> None:
    log = log_of(sample(S, guest_ns=S), odd)
    assert log.vcpus[VCPU].between(0, S).total_ns == S


def test_a_sample_that_counted_a_state_for_too_long_does_not_silence_the_next() -> None:
    log = log_of(
        sample(2 * S, stopped_ns=2 * S),
        sample(3 * S, stopped_ns=S, fault_ns=2 * S),
        sample(4 * S, stopped_ns=S, fault_ns=2 * S, guest_ns=S),
    )
    span = log.vcpus[VCPU].between(0, 4 * S)
    assert [span.of(s) for s in (VcpuState.STOPPED, VcpuState.FAULT, VcpuState.GUEST)] == [
        S,
        2 * S,
        S,
    ]


def test_of_many_samples_some_are_forgotten_and_no_time() -> None:
    log = VcpuLog()
    for at in range(1, MAX_SAMPLES + 10):
        log.feed(sample(at * 1000, guest_ns=at * 1000))
    samples = log.vcpus[VCPU]
    assert len(samples.at_ns) < MAX_SAMPLES
    end = (MAX_SAMPLES + 9) * 1000
    assert samples.between(0, end).of(VcpuState.GUEST) == end


def test_a_stop_of_a_held_vcpu_began_with_the_hold() -> None:
    held = {"held_from_ns": S, "held_until_ns": S + 900, "held_state": layout.VCPU_THROTTLE}
    log = log_of(sample(2 * S, guest_ns=S, throttle_ns=S, **held))
    stop = made(log, S, stop=(S - 10, S + 1000)).stop
    assert stop is not None
    assert (stop.by, stop.ns) == (VcpuState.THROTTLE, 910)


def test_a_hold_that_ended_before_is_not_the_stops() -> None:
    held = {"held_from_ns": S - 900, "held_until_ns": S - 100, "held_state": layout.VCPU_THROTTLE}
    log = log_of(sample(2 * S, guest_ns=S, throttle_ns=S, **held))
    assert made(log, S, stop=(S, S + 1000)).stop is None


def test_waits_for_pages_are_a_distribution() -> None:
    buckets = [0] * layout.VCPU_WAITS
    buckets[10], buckets[14] = 90, 10
    wait = {"waits": 100, "wait_ns": 200_000_000, "longest_wait_ns": 9_000_000}
    log = log_of(sample(S, fault_ns=S, wait=tuple(buckets), **wait))
    found = made(log, S)
    assert found.waits == FaultWaits(100, 200_000_000, 9_000_000, tuple(buckets))
    assert waits_words(found) == (
        "100 page faults waited 200 ms in all: half of them at most 1.02 ms, 99 % at most 9.00 ms, "
        "the longest 9.00 ms"
    )


def test_waits_of_several_vcpus_add_up() -> None:
    both = all_waits([FaultWaits(1, 5, 5, (1, 0)), FaultWaits(2, 8, 6, (0, 2))])
    assert both == FaultWaits(3, 13, 6, (1, 2))


def test_a_brief_brownout_has_the_totals_and_the_speed_of_the_last_two_seconds() -> None:
    # 8 s at full speed, then 2 s of which a quarter is left.
    log = log_of(
        *(sample(n * S, guest_ns=n * S) for n in range(1, 9)),
        *(
            sample(n * S, guest_ns=8 * S + (n - 8) * S // 4, throttle_ns=(n - 8) * S * 3 // 4)
            for n in (9, 10)
        ),
    )
    full = made(log, 10 * S, rounds=(0, 5 * S))
    found = brownout_of([Running("source", log, 0, 10 * S)], (0, 5 * S), None, brief=True)
    assert found is not None
    assert found.total is not None
    assert found.total == full.total
    assert found.total.ns[STATES.index(VcpuState.THROTTLE)] == 15 * S // 10
    assert found.speed == full.speed == 0.85
    assert [(span.vcpus.start_ns, span.speed) for span in found.timeline] == [
        (0, 1.0),
        (8 * S, 0.25),
    ]
    assert len(full.timeline) > 50


def test_nothing_is_reported_of_a_guest_that_was_not_followed() -> None:
    assert brownout_of([Running("source", VcpuLog(), 0, S)], (), None) is None


def test_the_halves_of_two_hosts_are_one() -> None:
    source = made(log_of(baseline(queue_ns=5 * S), sample(S, guest_ns=S // 2, queue_ns=S // 2)), S)
    there = brownout_of([Running("destination", log_of(sample(S, fault_ns=S)), 0, S)], (), None)
    both = brownout.joined(source, there)
    assert both is not None
    assert both.speed == pytest.approx(0.5)
    assert [span.side for span in (both.timeline[0], both.timeline[-1])] == [
        "source",
        "destination",
    ]
