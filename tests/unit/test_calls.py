# SPDX-License-Identifier: MIT
"""What took each step of a blackout, from calls that are made up: by hand, and many at random."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vftrace import events
from vftrace.analysis.calls.blackout import joined, made_of
from vftrace.analysis.calls.causes import Who, steps_of
from vftrace.analysis.calls.log import MAX_RECORDS, CallLog
from vftrace.events import COLLECTOR
from vftrace.model.calls import CallSide, CallSpan, Cause, CauseKind
from vftrace.model.checkpoint import Checkpoint
from vftrace.outputs.text.calls import cause_words

MS = 1_000_000
MAIN, WORKER = 10, 11
TIMES = {
    Checkpoint.VCPUS_STOPPED: 0,
    Checkpoint.CLOCK_READ: 0,
    Checkpoint.FINAL_SYNC_DONE: 1000 * MS,
}
TRACED: dict[CallSide, tuple[tuple[int, int | None], ...]] = {"source": ((-MS, None),)}
CRITICAL: frozenset[Who] = frozenset({("source", MAIN)})
DESTINATIONS: frozenset[Who] = frozenset({("destination", 20)})


def span(
    tid: int,
    kind: CauseKind,
    call: str | None,
    start_ms: float,
    end_ms: float,
    side: CallSide = "source",
    *,
    ns: int | None = None,
    count: int = 1,
) -> CallSpan:
    start, end = int(start_ms * MS), int(end_ms * MS)
    took = end - start if ns is None else ns
    return CallSpan(side, tid, f"thread {tid}", kind, call, None, start, end, took, took, count)


def causes(*spans: CallSpan, traced: object = TRACED) -> dict[tuple[CauseKind, str | None], float]:
    """Milliseconds by kind and call, of the one step that takes time."""
    (step,) = steps_of(TIMES, spans, traced, CRITICAL, on_source=False)  # type: ignore[arg-type]
    assert sum(cause.ns for cause in step.causes) == step.ns
    return {(cause.kind, cause.call): cause.ns / MS for cause in step.causes}


def test_a_workers_flush_is_charged_and_not_the_wait_for_it() -> None:
    found = causes(
        span(MAIN, CauseKind.WAIT, "ppoll", 0, 1000),
        span(WORKER, CauseKind.CALL, "fdatasync", 50, 950),
    )
    assert found == {(CauseKind.CALL, "fdatasync"): 900, (CauseKind.WAIT, "ppoll"): 100}


def test_ten_short_flushes_are_as_good_as_a_long_one() -> None:
    flushes = [span(WORKER, CauseKind.CALL, "fdatasync", n * 100, n * 100 + 90) for n in range(10)]
    found = causes(span(MAIN, CauseKind.WAIT, "ppoll", 0, 1000), *flushes)
    assert found[CauseKind.CALL, "fdatasync"] == 900


def test_a_monitors_questions_are_no_cause_of_a_wait() -> None:
    """Answers to a monitor, a twentieth of the time, by another thread."""
    answers = [span(WORKER, CauseKind.CALL, "sendmsg", n * 20, n * 20 + 1) for n in range(50)]
    polls = [span(WORKER, CauseKind.WAIT, "poll", n * 20 + 1, n * 20 + 20) for n in range(50)]
    found = causes(span(MAIN, CauseKind.WAIT, "futex", 0, 1000), *answers, *polls)
    assert found == {(CauseKind.WAIT, "futex"): 1000}


def test_the_driving_threads_own_code_is_what_its_calls_leave() -> None:
    found = causes(
        span(MAIN, CauseKind.CALL, "KVM_GET_CLOCK", 100, 200),
        span(MAIN, CauseKind.CALL, "sendmsg", 900, 1100),
    )
    assert found == {
        (CauseKind.CALL, "KVM_GET_CLOCK"): 100,
        (CauseKind.CALL, "sendmsg"): 100,
        (CauseKind.ON_CPU, None): 800,
    }


def test_short_calls_take_their_sum_and_no_more() -> None:
    found = causes(
        span(MAIN, CauseKind.CALL, "KVM_IRQFD", 0, 10, ns=3 * MS, count=512),
        span(MAIN, CauseKind.WAIT, "ppoll", 10, 1000),
    )
    assert found == {
        (CauseKind.CALL, "KVM_IRQFD"): 3,
        (CauseKind.ON_CPU, None): 7,
        (CauseKind.WAIT, "ppoll"): 990,
    }


def test_a_stopped_destination_is_why_the_source_waits() -> None:
    found = causes(
        span(MAIN, CauseKind.CHANNEL, "sendmsg", 0, 1000),
        span(20, CauseKind.STOPPED, None, 100, 900, "destination"),
    )
    assert found == {(CauseKind.STOPPED, None): 800, (CauseKind.CHANNEL, "sendmsg"): 200}


def test_what_nobody_traced_is_reported() -> None:
    assert causes(traced={}) == {(CauseKind.NOT_TRACED, None): 1000}
    late = causes(traced={"source": ((400 * MS, None),)})
    assert late == {(CauseKind.NOT_TRACED, None): 400, (CauseKind.WAIT, None): 600}


KINDS = st.sampled_from([kind for kind in CauseKind if kind != CauseKind.NOT_TRACED])


@st.composite
def spans(draw: st.DrawFn) -> CallSpan:
    start = draw(st.integers(-50, 1050))
    end = start + draw(st.integers(0, 500))
    kind = draw(KINDS)
    call = draw(st.sampled_from(["a", "b"])) if kind in ("call", "channel", "wait") else None
    side: CallSide = draw(st.sampled_from(["source", "destination"]))
    ns = draw(st.integers(0, end - start)) * MS
    count = draw(st.integers(1, 5))
    return span(draw(st.integers(MAIN, MAIN + 3)), kind, call, start, end, side, ns=ns, count=count)


@given(st.lists(spans(), max_size=25), st.lists(st.integers(0, 1000), min_size=8, max_size=8))
def test_causes_add_up_to_each_step_whatever_was_recorded(
    recorded: list[CallSpan], cuts: list[int]
) -> None:
    times = dict(zip(Checkpoint, (0, *(cut * MS for cut in sorted(cuts))), strict=True))
    steps = steps_of(times, recorded, TRACED, CRITICAL, on_source=False)
    ordered = list(times.items())
    lengths = {name: at - ordered[i][1] for i, (name, at) in enumerate(ordered[1:])}
    assert {s.checkpoint: s.ns for s in steps} == {n: ns for n, ns in lengths.items() if ns}
    for step in steps:
        assert sum(cause.ns for cause in step.causes) == step.ns
        assert all(cause.ns > 0 for cause in step.causes)
        assert [c.ns for c in step.causes] == sorted((c.ns for c in step.causes), reverse=True)
        assert len({(c.kind, c.side, c.call, c.thread) for c in step.causes}) == len(step.causes)


def test_halves_of_two_hosts_become_one() -> None:
    """What took `devices-loaded` only both together show: it begins on one host and ends on the other."""
    source = made_of(
        {Checkpoint.VCPUS_STOPPED: 0, Checkpoint.STATE_SAVED: 100 * MS},
        [span(MAIN, CauseKind.CALL, "sendmsg", 0, 100)],
        {"source": ((-MS, None),)},
        CRITICAL,
        on_source=False,
        missed=1,
        attach_ns=None,
    )
    destination = made_of(
        {Checkpoint.DEVICES_LOADED: 400 * MS, Checkpoint.VCPUS_RUNNING: 500 * MS},
        [
            span(20, CauseKind.CALL, "KVM_SET_GSI_ROUTING", 100, 400, "destination"),
            span(20, CauseKind.CALL, "KVM_SET_CLOCK", 400, 500, "destination"),
        ],
        {"destination": ((-MS, None),)},
        DESTINATIONS,
        on_source=False,
        missed=2,
        attach_ns=5,
    )
    times = {
        Checkpoint.VCPUS_STOPPED: 0,
        Checkpoint.STATE_SAVED: 100 * MS,
        Checkpoint.DEVICES_LOADED: 400 * MS,
        Checkpoint.VCPUS_RUNNING: 500 * MS,
    }
    both = joined(source, destination, times, on_source=False)
    assert both is not None
    assert both.missed == 3
    assert {s.checkpoint: (s.causes[0].call, s.causes[0].ns) for s in both.steps} == {
        Checkpoint.STATE_SAVED: ("sendmsg", 100 * MS),
        Checkpoint.DEVICES_LOADED: ("KVM_SET_GSI_ROUTING", 300 * MS),
        Checkpoint.VCPUS_RUNNING: ("KVM_SET_CLOCK", 100 * MS),
    }


# -- the log ------------------------------------------------------------------------------------


def call(
    nr: int, start: int, end: int, *, cmd: int = 0, fd: int = 3, sleep: int = 0
) -> events.Call:
    ns = end - start if start else 0
    return events.Call(
        end, 0, COLLECTOR, 1, start, end, ns, ns, sleep, 0, 0, 100, MAIN, nr, cmd, fd, 1
    )


def log(*calls: events.Call) -> CallLog:
    made = CallLog()
    made.feed(events.CallsTraced(0, 0, COLLECTOR, 1, 100, True, 5, "x86_64", 9))
    made.feed(events.CallFd(0, 0, COLLECTOR, 1, 100, 3, "/images/disk.qcow2"))
    for each in calls:
        made.feed(each)
    return made


def spans_of(made: CallLog) -> list[CallSpan]:
    return made.spans("source", 0, 1000, {}, frozenset())


def test_names_and_targets() -> None:
    made = log(call(75, 10, 20), call(16, 20, 30, cmd=0x4020AE76), call(202, 30, 40))
    assert [(s.call, s.target, s.kind) for s in spans_of(made)] == [
        ("fdatasync", "/images/disk.qcow2", "call"),
        ("KVM_IRQFD", "/images/disk.qcow2", "call"),
        ("futex", None, "wait"),
    ]


def test_a_call_that_began_before_the_tracing_lasts_since_then() -> None:
    """Not so a new thread's first return, nor an ioctl of unknown request."""
    made = log(call(271, 0, 50), call(56, 0, 60), call(16, 0, 70))
    assert [(s.call, s.start_ns, s.end_ns, s.ns) for s in spans_of(made)] == [("ppoll", 5, 50, 45)]


@pytest.mark.parametrize(("sleep", "kind"), [(0, "call"), (40, "call"), (60, "channel")])
def test_a_send_that_mostly_sleeps_waits_for_the_other_end(sleep: int, kind: str) -> None:
    made = log(call(46, 100, 200, sleep=sleep))
    made.fds[3] = "socket"
    made.calls[0] = made.calls[0][0], "socket"
    assert spans_of(made)[0].kind == kind


def test_times_that_run_backwards_are_left_out() -> None:
    assert spans_of(log(call(75, 500, 100))) == []


def test_a_log_is_bounded_and_shows_what_it_forgot() -> None:
    made = log(*[call(75, at, at + 1) for at in range(1, MAX_RECORDS + 11)])
    assert len(made.calls) == MAX_RECORDS
    assert made.forgotten == 10


# -- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"call": "fdatasync", "target": "/d"}, "fdatasync(/d) 897 ms"),
        ({"call": "KVM_IRQFD", "count": 512}, "512 KVM_IRQFD 897 ms"),
        (
            {"kind": CauseKind.WAIT, "call": "futex", "thread": "migration thread"},
            "nothing: waited 897 ms in futex (the source's migration thread)",
        ),
        ({"kind": CauseKind.WAIT}, "nothing: waited 897 ms"),
        (
            {"kind": CauseKind.CHANNEL, "call": "sendmsg", "target": "socket"},
            "sendmsg(socket) waited 897 ms for the other end",
        ),
        ({"kind": CauseKind.STOPPED}, "the source stopped by a signal for 897 ms"),
        (
            {"kind": CauseKind.RUN_QUEUE, "thread": "main thread"},
            "the source's main thread waited 897 ms for a CPU",
        ),
        ({"kind": CauseKind.NOT_TRACED}, "not traced for 897 ms"),
    ],
)
def test_words(changes: dict[str, object], words: str) -> None:
    plain = Cause(CauseKind.CALL, "source", None, None, None, 897 * MS, 1, 897 * MS)
    assert cause_words(replace(plain, **changes)) == words
