# SPDX-License-Identifier: MIT
"""Packets, text and JSON, the recording's events, and what `vftrace ping` refuses."""

import argparse
import errno
import json
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vftrace import events
from vftrace.analysis.hosts.round_trips import trips_of
from vftrace.analysis.hosts.service import service_gap
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.commands import ping
from vftrace.errors import UsageError, VftraceError
from vftrace.events import COLLECTOR, wire
from vftrace.model.report import PingRecording, Report
from vftrace.outputs.report.text import render_report
from vftrace.outputs.text.printing import as_text
from vftrace.ping import sender
from vftrace.ping.journal import Journal
from vftrace.ping.packets import Packets, checksum, without_ip_header
from vftrace.ping.probes import Target, resolve
from vftrace.ping.sender import Schedule
from vftrace.ping.session import Session
from vftrace.ping.text import histogram, ping_json, summary

MS = 1_000_000
TARGET = Target("guest", "192.0.2.7", 4, ("192.0.2.7", 0))
COOKIE = b"12345678"


def test_checksum_of_the_rfc() -> None:
    """RFC 1071, section 3: the sum of these words is ddf2."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_echo_request_v4() -> None:
    packet = Packets(COOKIE).echo_request(0x12345, 4)
    kind, code, _, identifier, number = struct.unpack_from("!BBHHH", packet)
    assert (kind, code, identifier, number) == (8, 0, 0x3132, 0x2345)
    # A correct message sums to all ones, its checksum included.
    assert checksum(packet) == 0


@given(st.integers(0, 2**64 - 1), st.sampled_from([4, 6]))
def test_a_reply_gives_its_slot(slot: int, version: int) -> None:
    packets = Packets(COOKIE)
    request = packets.echo_request(slot, version)
    assert packets.slot_of_echo(request, version) is None
    reply = bytes([{4: 0, 6: 129}[version]]) + request[1:]
    assert packets.slot_of_echo(reply, version) == slot
    assert Packets(b"87654321").slot_of_echo(reply, version) is None


@given(st.binary(max_size=80), st.sampled_from([4, 6]))
def test_any_bytes_can_come(data: bytes, version: int) -> None:
    packets = Packets(COOKIE)
    assert packets.slot_of_echo(without_ip_header(data), version) is None
    assert packets.slot_of(data) is None


def test_ip_header_with_options() -> None:
    assert without_ip_header(bytes([0x46]) + bytes(23) + b"icmp") == b"icmp"


def session_of(records: list[tuple[int, int, int, int, int]], protocol: str = "icmp") -> Session:
    session = Session(TARGET, protocol, 0, Schedule(1_000 * MS, MS, None), 100 * MS)
    session.feed([(sender.POLICY, 0, 1, 0, 0), *records], 7_000 * MS)
    return session


def outage() -> Session:
    """100 slots on CLOCK_MONOTONIC from 1 s; 50 to 59 are not answered, and CLOCK_BOOTTIME is 7 s ahead."""
    records = []
    for slot in range(100):
        sent = (1_000 + slot) * MS
        records.append((sender.SENT, 0, slot, sent, sent + 1))
        if not 50 <= slot < 60:
            records.append((sender.REPLY, 0, slot, sent + MS // 10, 0))
    records.append((sender.STOPPED, 0, 102, 0, 0))
    return session_of(records)


def test_json_has_the_designed_form() -> None:
    session = outage()
    gaps = session.feed([(sender.CLOCK, 0, 0, 3_000 * MS, 0)], 7_000 * MS) + session.close()
    assert json.loads(json.dumps(ping_json(session, gaps))) == {
        "schema": 1,
        "address": "192.0.2.7",
        "protocol": "icmp",
        "interval_ns": MS,
        "sent": 100,
        "received": 90,
        "missed_slots": 2,
        "longest_gap_ns": 10 * MS,
        "gaps": [{"start_at_ns": 8_050 * MS, "ns": 10 * MS, "lost": 10}],
        "round_trips": {
            "answered": 90,
            "lost": 10,
            **dict.fromkeys(("least_ns", "half_ns", "p90_ns", "p99_ns", "longest_ns"), MS // 10),
        },
    }


def test_summary_names_the_gap_and_its_bounds() -> None:
    session = outage()
    session.feed([(sender.CLOCK, 0, 0, 3_000 * MS, 0)], 7_000 * MS)
    text = "\n".join(summary(session, 0))
    assert "100 sent, 90 answered, 10 lost (10.00%)" in text
    assert "longest gap 10.0 ms without a reply (9.00 ms to 11.0 ms; 10 lost)" in text
    assert "median 100 us, 90 % 100 us, 99 % 100 us, max 100 us" in text
    assert "100 us-200 us      90  " + "#" * 40 in text
    assert "2 slots missed" in text


def test_histogram() -> None:
    edges = tuple(
        ms * MS for ms in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
    )
    lines = histogram("gaps by length", Counter({MS: 4, 15 * MS: 2, 12_000 * MS: 1}), edges)
    counts = [int(line.split("  ")[-2 if "#" in line else -1]) for line in lines[1:]]
    assert counts == [4, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert lines[1].endswith("#" * 40)
    assert lines[4].endswith(" " + "#" * 20)
    assert histogram("gaps by length", Counter(), edges) == []


def test_a_sender_that_ended_early_gives_no_result() -> None:
    with pytest.raises(VftraceError, match="ended early"):
        session_of([]).close()


@pytest.mark.parametrize(
    ("protocol", "number", "says"),
    [("udp", errno.ECONNREFUSED, "echo service"), ("icmp", errno.EPERM, "firewall")],
)
def test_errors_with_a_way_out(protocol: str, number: int, says: str) -> None:
    with pytest.raises(VftraceError, match=says):
        session_of([(sender.REFUSED, number, 0, 0, 0)], protocol)


def test_an_error_after_a_reply_is_the_outage_itself() -> None:
    session = session_of(
        [
            (sender.SENT, 0, 0, 1_000 * MS, 1_000 * MS),
            (sender.REPLY, 0, 0, 1_000 * MS, 0),
            (sender.REFUSED, errno.ECONNREFUSED, 0, 0, 0),
        ],
        "udp",
    )
    assert session.errors == {errno.ECONNREFUSED: 1}


def ping_events() -> list[events.Event]:
    """From 8 s to 8.1 s, with 10 ms lost from 8.05 s."""
    session = outage()
    gaps = session.feed([(sender.CLOCK, 0, 0, 3_000 * MS, 0)], 7_000 * MS)
    journal = Journal(42)
    written = [journal.settings(8_000 * MS, session)]
    written += [journal.gap(10_000 * MS, gap) for gap in gaps]
    written += [journal.summary(10_000 * MS, session.ledger), journal.end(10_000 * MS)]
    return [wire.decode(wire.encode(event)) for event in written]


def test_a_recording_is_reported_without_a_migration() -> None:
    clock = ((0, 1_700_000_000 * 1_000 * MS, 0),)
    report = Report.of_hosts([], [PingRecording("boot", clock, tuple(ping_events()))])
    said = as_text(render_report(report, ascii=True), 100).splitlines()
    assert said[0] == "longest gap 10.0 ms of 192.0.2.7"
    assert "ping of 192.0.2.7: icmp, every 1.00 ms" in said
    # 1,700,000,000 s and the 8.05 s of the gap's first probe: 22:13:28.050 on 2023-11-14, UTC
    (gap,) = [line for line in said if "10.0 ms without a reply" in line]
    assert ":13:28.050" in gap


def test_recorded_events_come_back() -> None:
    settings, gap, totals, end = ping_events()
    assert [event.seq for event in (settings, gap, totals, end)] == [0, 1, 2, 3]
    assert {event.tgid for event in (settings, gap, totals, end)} == {COLLECTOR}
    assert isinstance(settings, events.PingSettings)
    assert (settings.target, settings.interval_ns, settings.policy) == ("guest", MS, "fifo")
    assert isinstance(gap, events.PingGap)
    assert (gap.start_at_ns, gap.ns, gap.kind) == (8_050 * MS, 10 * MS, "lost")
    assert (gap.before_sent_ns, gap.after_sent_ns) == (8_049 * MS, 8_060 * MS)
    assert (gap.before_reply_ns, gap.after_reply_ns) == (
        8_049 * MS + MS // 10,
        8_060 * MS + MS // 10,
    )
    assert isinstance(totals, events.PingSummary)
    assert (totals.since_ns, totals.settled_ns) == (8_000 * MS, 8_099 * MS)
    assert (totals.sent, totals.received, totals.lost, totals.missed_slots) == (100, 90, 10, 2)
    assert isinstance(end, events.End)


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "ns"),
    [
        (8_040, 8_070, 10 * MS),
        (8_055, 8_056, 10 * MS),
        (8_000, 8_051, 10 * MS),
        (8_059, 9_000, 10 * MS),  # the ping ended, but it saw the gap
        (8_000, 8_050, 0),
        (8_060, 8_099, 0),
        (8_060, 9_000, None),
        (7_000, 8_050, None),
    ],
)
def test_service_gap(start_ms: int, end_ms: int, ns: int | None) -> None:
    found = service_gap(ping_events(), start_ms * MS, end_ms * MS)
    assert (None if found is None else found.ns) == ns
    if found is not None and found.ns:
        assert (found.start_at_ns, found.lost, found.blind_ns) == (8_050 * MS, 10, 0)
        assert found.last_reply_at_ns == 8_049 * MS + MS // 10
        assert found.next_reply_at_ns == 8_060 * MS + MS // 10


def test_a_pinger_that_slept_is_blind() -> None:
    records = [(sender.SENT, 0, slot, (1_000 + slot) * MS, (1_000 + slot) * MS) for slot in (0, 50)]
    records += [(sender.REPLY, 0, slot, (1_000 + slot) * MS, 0) for slot in (0, 50)]
    session = session_of(records)
    gaps = session.feed([(sender.CLOCK, 0, 0, 2_000 * MS, 0)], 7_000 * MS)
    journal = Journal(42)
    written = [journal.gap(0, gap) for gap in gaps] + [journal.summary(0, session.ledger)]
    found = service_gap(written, 8_010 * MS, 8_030 * MS)
    assert found is not None
    assert (found.ns, found.blind_ns) == (0, 20 * MS)


def test_no_ping_no_service_gap() -> None:
    assert service_gap([], 0, 1) is None


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ping.add_arguments(parser)
    return parser.parse_args(list(words))


@pytest.mark.parametrize(
    "words",
    [
        ["127.0.0.1", "--interval", "10us"],
        ["127.0.0.1", "--port", "8"],
        ["127.0.0.1", "--protocol", "udp", "--port", "0"],
        ["127.0.0.1", "--protocol", "udp", "--port", "70000"],
        ["127.0.0.1", "--duration", "0"],
        ["127.0.0.1", "--timeout", "0"],
        ["127.0.0.1", "-6"],
        ["::1", "-4"],
        ["224.0.0.1"],
        ["ff02::1"],
        ["0.0.0.0"],
        ["255.255.255.255"],
    ],
)
def test_refused_command_lines(words: list[str]) -> None:
    with pytest.raises(UsageError):
        ping.run(arguments(*words))


def test_a_name_that_is_none() -> None:
    with pytest.raises(VftraceError, match=r"cannot find 'no such\.name'"):
        resolve("no such.name", "icmp", 0, None)


def test_both_families_resolve() -> None:
    assert resolve("127.0.0.1", "udp", 7, None).sockaddr == ("127.0.0.1", 7)
    found = resolve("::1", "udp", 7, 6)
    assert (found.version, found.family, found.address) == (6, socket.AF_INET6, "::1")


def test_udp_echo_on_loopback(tmp_path: Path) -> None:
    """The whole command, without root: an echo service here, every slot sent or counted as missed."""
    path = tmp_path / "ping.vft"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        port = service.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "vftrace", "ping", "127.0.0.1", "--protocol", "udp",
             "--port", str(port), "--interval", "5ms", "--duration", "500ms", "--format", "json",
             "--record", str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        service.settimeout(1.5)
        answered = 0
        while True:
            try:
                data, peer = service.recvfrom(100)
            except TimeoutError:
                break
            service.sendto(data, peer)
            answered += 1
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    result = json.loads(out)
    assert result["sent"] == result["received"] == answered
    assert result["sent"] + result["missed_slots"] == 100
    recording = Recording(path)
    found = list(events_of(recording))
    assert recording.not_whole is None
    assert isinstance(found[-1], events.End)
    assert [event.seq for event in found] == list(range(len(found)))
    assert any(isinstance(event, events.Tick) for event in found)
    samples = [event for event in found if isinstance(event, events.ClockSample)]
    assert len(samples) >= 2
    trips = [event for event in found if isinstance(event, events.PingRoundTrips)]
    assert sum(trips_of(event).count for event in trips) == result["received"]
    assert all(event.lost == 0 for event in trips)
    [settings] = [event for event in found if isinstance(event, events.PingSettings)]
    assert (settings.protocol, settings.port, settings.interval_ns) == ("udp", port, 5 * MS)


def test_the_recording_must_be_writable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VftraceError, match="cannot write /nonexistent"):
        ping.run(
            arguments(
                "127.0.0.1", "--protocol", "tcp", "--port", "9", "--record", "/nonexistent/ping.vft"
            )
        )
    assert capsys.readouterr().out == ""
