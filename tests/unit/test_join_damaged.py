# SPDX-License-Identifier: MIT
"""Two hosts' recordings with damage in them: joining never raises, and no time is negative."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.two_hosts import boot_of, golden, host_of, join, lab, only, shifted
from vftrace import events
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.collect.recording import Recording
from vftrace.events import COLLECTOR, wire
from vftrace.model.host import HostInfo
from vftrace.model.report import MigrationReport, PingRecording, Report
from vftrace.outputs.report.json import report_json

LIBVIRT = Path(__file__).parents[1] / "golden" / "libvirt"
SECONDS = 10**9
EXTREMES = (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**15, 5 * SECONDS)

Cut = tuple[HostInfo, list[bytes], list[bytes]]


def _golden(name: str) -> Cut:
    host, records = golden(name)
    (m, *_) = boot_of(host, records).snapshot.migrations
    assert m.peer_pid is not None
    return host, only(records, {m.pid}), only(records, {m.peer_pid})


def _libvirt(name: str, source: int, destination: int) -> Cut:
    recording = Recording(LIBVIRT / f"{name}.vft.gz")
    records = list(recording)
    return recording.host, only(records, {source}), only(records, {destination})


def _devices() -> Cut:
    host, records = lab("6.12-kprobe")
    m = next(
        m
        for m in boot_of(host, records).snapshot.migrations
        if m.strategy == "vfio" and m.outcome == "completed"
    )
    assert m.peer_pid is not None
    return host, only(records, {m.pid}), only(records, {m.peer_pid})


CUTS: dict[str, Cut] = {
    "precopy": _golden("completed-fast"),
    "postcopy": _golden("postcopy"),
    "without a UUID": _golden("no-uuid"),
    "held": _libvirt("suspend-never", 27929, 27942),
    "died while held": _libvirt("destination-killed-held", 31429, 31442),
    "devices": _devices(),
}


def damaged(records: list[bytes], chance: random.Random) -> list[bytes]:
    """The records with some lost, doubled, out of order, or with another value somewhere."""
    found = list(records)
    for _ in range(chance.randrange(1, 12)):
        if not found:
            break
        at = chance.randrange(len(found))
        match chance.randrange(6):
            case 0:
                del found[at]
            case 1:
                found.insert(at, found[chance.randrange(len(found))])
            case 2:
                other = chance.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 3:
                del found[at : at + chance.randrange(1, len(found) + 1)]
            case _:
                found[at] = _changed(found[at], chance)
    return found


def _changed(record: bytes, chance: random.Random) -> bytes:
    width = chance.choice((4, 8))
    places = range(0, len(record) - width + 1, width)
    # its size and kind stay: another kind is another test's
    at = chance.choice([place for place in places if place != 16] or [0])
    value = chance.choice((*EXTREMES, chance.getrandbits(64))) % 2 ** (8 * width)
    return bytes((*record[:at], *value.to_bytes(width, "little"), *record[at + width :]))


def a_ping(boot_id: str, around_ns: int, chance: random.Random) -> PingRecording:
    """A ping of which each field may be anything."""

    def some_time() -> int:
        return max(0, around_ns + chance.choice((-1, 1)) * chance.choice((*EXTREMES, SECONDS)))

    def perhaps() -> int | None:
        return chance.choice((None, some_time()))

    gap = events.PingGap(
        at_ns=some_time(),
        seq=0,
        tgid=COLLECTOR,
        tid=1,
        kind=chance.choice(("lost", "held", "own", "x")),
        start_at_ns=some_time(),
        ns=chance.choice(EXTREMES),
        least_ns=chance.choice(EXTREMES),
        most_ns=chance.choice((None, *EXTREMES)),
        lost=5,
        late=0,
        missed=0,
        before_sent_ns=perhaps(),
        before_reply_ns=perhaps(),
        after_sent_ns=perhaps(),
        after_reply_ns=perhaps(),
    )
    return PingRecording(boot_id, ((some_time(), some_time(), chance.choice(EXTREMES)),), (gap,))


def reasonable(found: MigrationReport) -> None:
    m = found.migration
    assert all(c.ns is None or c.ns >= 0 for c in m.downtime.checkpoints)
    assert m.downtime.vcpu_ns is None or m.downtime.vcpu_ns >= 0
    assert all(p.end_at_ns is None or p.end_at_ns >= p.start_at_ns for p in m.phases)
    assert all(d.ns is None or d.ns >= 0 for d in m.downtime.devices)
    assert m.ended_at_ns is None or m.ended_at_ns >= m.started_at_ns
    assert found.uncertainty_ns is None or found.uncertainty_ns >= 0
    assert found.offset is None or found.offset.low <= found.offset.high
    assert found.outage is None or all(span.ns >= 0 for span in found.outage.spans)


@pytest.mark.parametrize("name", CUTS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32),
    shift_ns=st.integers(-3 * 3600 * SECONDS, 30 * 24 * 3600 * SECONDS),
    errors=st.tuples(*[st.sampled_from((0, 1000, SECONDS, UNSYNCHRONISED_NS, 2**63 - 1))] * 2),
)
def test_damage_makes_no_exception_and_no_negative_time(
    name: str, seed: int, shift_ns: int, errors: tuple[int, int]
) -> None:
    host, here, there = CUTS[name]
    chance = random.Random(seed)
    earliest = min(wire.HEADER.unpack_from(record)[0] for record in there)
    shift_ns = max(shift_ns, SECONDS - earliest)
    source = damaged([shifted(r, 0, errors[0]) for r in here], chance)
    destination = damaged([shifted(r, shift_ns, errors[1]) for r in there], chance)
    hosts = [
        boot_of(host_of("alpha", "boot-a", host), source),
        boot_of(host_of("beta", "boot-b", host, shift_ns), destination),
    ]
    boot_id, around_ns = chance.choice((("boot-a", 0), ("boot-b", shift_ns), ("boot-c", 0)))
    ping = a_ping(boot_id, wire.HEADER.unpack_from(here[-1])[0] + around_ns, chance)
    joined = join(hosts, [ping])
    for found in joined:
        reasonable(found)
    report_json(Report(tuple(hosts), joined))
