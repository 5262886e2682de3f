# SPDX-License-Identifier: MIT
"""Recordings of the lab's mailbox jobs against what the jobs did (tests/lab/jobs/mailbox.py).

ixgbe: the stock driver answered a script; every message of it must be there, decoded, and nothing else.
igb: igbvf acted on commands, then we ourselves through vfio-pci; each must show as the messages and the state
it leads to. assisted: messages that a profile names, around a real migration. held: a VM keeps its VF all the
time, whose driver (ourselves) rests over the blackout.
VFTRACE_LAB_MAILBOX is another directory of such recordings: tests/lab holds what it has just recorded to the same.
"""

import json
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.golden.losses import skipped, unexplained
from vftrace.analysis.devices.device import PassedDevice
from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.devices.vf_phases import destination_vf, source_vf
from vftrace.analysis.hosts.outage import (
    CONFIGURING,
    GONE,
    LINK,
    PROBING,
    UNPLUG,
    UNSEEN,
    HostSide,
    conditions,
    spans_of,
)
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of, track
from vftrace.events import Event, Mailbox, MailboxFlood, VfAddress, VfReset, Virtchnl, layout, wire
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.message import Message
from vftrace.mailbox.profile import parse_profile, with_profiles
from vftrace.mailbox.words import NOT_CLEAR
from vftrace.model.migration import Migration, Snapshot
from vftrace.model.vf import VfHistory

TREE = Path(__file__).resolve().parents[2]
LAB = Path(os.environ.get("VFTRACE_LAB_MAILBOX", TREE / "tests/golden/mailbox"))
PROFILE = TREE / "docs/profiles/assisted-ixgbe.toml"
WITH_PROFILE = with_profiles([parse_profile(PROFILE.read_text())])


def recordings(job: str) -> list[str]:
    """The names of those that have this job."""
    return sorted(
        path.name.removesuffix(f"-{job}.truth.json") for path in LAB.glob(f"*-{job}.truth.json")
    )


IGB, IXGBE, ASSISTED = recordings("igb"), recordings("ixgbe"), recordings("assisted")
HELD = recordings("held")
VIRTCHNL = [(name, job) for job in ("i40e", "ice") for name in recordings(job)]
of_igb = pytest.mark.parametrize("name", IGB)
of_ixgbe = pytest.mark.parametrize("name", IXGBE)
of_held = pytest.mark.parametrize("name", HELD)
of_assisted = pytest.mark.parametrize("name", ASSISTED)

# By opcode, from include files of the kernel: ixgbe_mbx.h.
NAMES = {
    0x01: "RESET",
    0x02: "SET_MAC_ADDR",
    0x03: "SET_MULTICAST",
    0x04: "SET_VLAN",
    0x05: "SET_LPE",
    0x06: "SET_MACVLAN",
    0x08: "API_NEGOTIATE",
    0x09: "GET_QUEUES",
    0x0A: "GET_RETA",
    0x0B: "GET_RSS_KEY",
    0x0C: "UPDATE_XCAST_MODE",
    0x0D: "IPSEC_ADD",
    0x0E: "IPSEC_DEL",
    0x10: "GET_LINK_STATE",
    0x11: "GET_PF_LINK_STATE",
    0x12: "FEATURES_NEGOTIATE",
}
# What the script's messages ask for, in words; those that are not here ask for nothing more.
ASKED: dict[str, dict[str, Any]] = {
    **{
        f"API {number}": {"version": version}
        for number, version in enumerate(
            ["1.0", "2.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7"]
        )
    },
    "API 1.4": {"version": "1.4"},
    "API 1.2": {"version": "1.2"},
    "VF 3's API": {"version": "1.4"},
    "API that nobody knows": {"version": "153"},
    "xcast none": {"mode": "none"},
    "xcast multi": {"mode": "multi"},
    "xcast allmulti": {"mode": "allmulti"},
    "xcast promisc": {"mode": "promisc"},
    "multicast": {"count": 3, "hashes": "abc 123 fff"},
    "MAC the host gave": {"mac": "02:00:00:00:00:10"},
    "MAC the host did not give": {"mac": "02:00:00:00:00:99"},
    "own MAC": {"mac": "02:00:00:00:00:21"},
    "MAC of a group": {"mac": "01:00:00:00:00:21"},
    "add a VLAN": {"add": True, "vlan": 100},
    "delete it": {"add": False, "vlan": 100},
    "add another": {"add": True, "vlan": 4095},
    "frame size": {"max_frame": 1518},
    "frame size too large": {"max_frame": 65536},
    "no MAC filters": {"index": 0},
    "a MAC filter": {"index": 1, "mac": "02:11:22:33:44:55"},
    # Messages of one word: w1 and w2 are from the answer to GET_QUEUES, behind them stands the key.
    "MAC that is the key": {"mac": "04:00:00:00:04:00"},
    "IPsec that is the key": {"spi": "0x04000000", "dir": 4, "proto": 0},
    "VLAN after the key": {"add": True, "vlan": 101},
    # The hashes would be words of the key.
    "multicast that claims more than it has": {"count": 30},
    "features": {"features": "ipsec,esx-mbx"},
    "IPsec add": {"spi": "0x04030201", "dir": 1, "proto": 50},
    "IPsec delete": {"handle": 1},
    "VLAN after IPsec": {"add": True, "vlan": 102},
}


@cache
def truth(name: str, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LAB / f"{name}-{job}.truth.json").read_text())
    return found


@cache
def recorded(name: str) -> tuple[Event, ...]:
    return tuple(events_of(Recording(LAB / f"{name}.vft.gz")))


@cache
def snapshot(name: str) -> Snapshot:
    return track(Recording(LAB / f"{name}.vft.gz"), Mailboxes(WITH_PROFILE)).snapshot()


def during(name: str, job: str) -> list[Event]:
    """What was recorded while a job ran.

    A VF's address may have been reported earlier, for a VF that was seen then: that comes last.
    """
    found = truth(name, job)
    meanwhile = [
        event
        for event in recorded(name)
        if found["started_at_ns"] <= event.at_ns <= found["ended_at_ns"]
    ]
    told = [
        event
        for event in recorded(name)
        if isinstance(event, VfAddress) and event.at_ns < found["started_at_ns"]
    ]
    return [*meanwhile, *told]


def talk(
    name: str, job: str
) -> tuple[list[tuple[Mailbox, Message]], list[VfReset], list[VfHistory]]:
    """The messages of the job's card, its functions' resets, and their final states."""
    boxes = Mailboxes(WITH_PROFILE if job == "assisted" else DRIVERS)
    pf = truth(name, job)["pf"]
    said: list[tuple[Mailbox, Message]] = []
    resets = []
    for event in during(name, job):
        message = boxes.feed(event)
        if isinstance(event, Mailbox) and event.pf == pf:
            assert message is not None
            said.append((event, message))
        elif isinstance(event, VfReset) and event.pf == pf:
            resets.append(event)
    return said, resets, [life for life in boxes.vf_histories() if life.pf == pf]


def key_words(found: dict[str, Any]) -> set[int]:
    """The words of the driver's RSS key, and those of the IPsec key in the script."""
    key = bytes.fromhex(found["rss_key"])
    words = {int.from_bytes(key[i : i + 4], "little") for i in range(0, len(key), 4)}
    return words | {0xDEAD0000 + number for number in range(5)}


def result_of(first: int) -> str:
    return "NACK" if first >> 30 & 1 else "ACK" if first >> 31 else "none"


# -- the real ixgbe.ko ---------------------------------------------------------------------------


@of_ixgbe
def test_the_decoded_log_is_the_script(name: str) -> None:
    found = truth(name, "ixgbe")
    said, resets, _ = talk(name, "ixgbe")
    left = iter(said)
    # The answer to IPSEC_ADD is made in the request's buffer, and of it only w0 and w1 are known not to
    # belong to a key: what stands behind them is kept back as well.
    keys = key_words(found)
    keys |= {word for e in found["log"] if e["what"] == "IPsec add" for word in e["words"][2:]}
    for entry in found["log"]:
        if entry["verb"] == "reset":
            reset = resets.pop(0)
            assert (reset.vf, reset.driver) == (entry["vf"], layout.IXGBE)
            assert reset.at_ns > entry["at_ns"]
        elif entry["verb"] == "ping":
            for vf in range(found["vfs"]):
                _, ping = next(left)
                assert (ping.name, ping.vf, ping.direction) == ("PF_CONTROL", vf, "to-vf")
                assert ping.latency_ns is None
        if entry["verb"] != "send":
            continue
        event, request = next(left)
        first = entry["words"][0]
        assert (request.vf, request.direction) == (entry["vf"], "from-vf"), entry["what"]
        assert request.opcode == first & 0xFFFF
        assert request.name == NAMES.get(request.opcode)
        assert event.at_ns > entry["at_ns"]
        assert event.size == 16
        # Words that were written now; the others are memory's, and not sent on unless they may be.
        count = min(event.words, len(entry["words"]))
        assert list(event.word[:count]) == entry["words"][:count]
        if not first >> 30:
            assert request.arguments == ASKED.get(entry["what"], {}), entry["what"]
        if entry["replied"]:
            event, reply = next(left)
            assert (reply.vf, reply.direction) == (entry["vf"], "to-vf"), entry["what"]
            assert reply.opcode == request.opcode
            assert reply.result == result_of(entry["memory"][0]), entry["what"]
            assert reply.clear_to_send == bool(entry["memory"][0] >> 29 & 1)
            # What a key left in the mailbox's memory is not sent on.
            shown = [0 if word in keys else word for word in entry["memory"]]
            assert list(event.word[: event.words]) == shown[: event.words]
            assert reply.latency_ns is not None or not request.is_request
    assert list(left) == []
    assert resets == []


@of_ixgbe
def test_what_the_driver_answered(name: str) -> None:
    said, _, _ = talk(name, "ixgbe")
    replies = [message for _, message in said if message.direction == "to-vf"]
    by_name = {(m.vf, m.name): m for m in replies if m.result == "ACK"}
    assert by_name[0, "RESET"].arguments["mac"] == "02:00:00:00:00:10"
    none = next(m for m in replies if m.vf == 1 and m.name == "RESET")
    assert (none.result, none.refused) == ("NACK", False)
    refused = [m for m in replies if m.name == "API_NEGOTIATE" and m.result == "NACK"]
    assert refused
    assert not any(message.refused for message in refused)


@of_ixgbe
def test_no_key_left_the_kernel(name: str) -> None:
    found = truth(name, "ixgbe")
    key = bytes.fromhex(found["rss_key"])
    words = {word.to_bytes(4, "little") for word in key_words(found)}
    # They did go through the mailbox, and stayed in its memory.
    memory = [
        b"".join(word.to_bytes(4, "little") for word in entry.get("memory", []))
        for entry in found["log"]
    ]
    assert any(key in held for held in memory)
    assert any((0xDEAD0004).to_bytes(4, "little") in held for held in memory)
    for record in Recording(LAB / f"{name}.vft.gz"):
        if wire.HEADER.unpack_from(record)[3] == 40:
            assert not any(word in record for word in words)


# -- igb and igbvf -------------------------------------------------------------------------------


def between(
    said: list[tuple[Mailbox, Message]], steps: list[dict[str, Any]], what: str
) -> list[Message]:
    """The messages from one step to the next."""
    number = next(i for i, step in enumerate(steps) if step["what"] == what)
    start = steps[number]["at_ns"]
    end = steps[number + 1]["at_ns"] if number + 1 < len(steps) else 1 << 63
    return [message for event, message in said if start <= event.at_ns < end]


@of_igb
@pytest.mark.parametrize(
    ("what", "asked", "arguments"),
    [
        ("mac", "SET_MAC_ADDR", {"act": "set", "mac": "02:00:00:00:00:77"}),
        ("vlan", "SET_VLAN", {"add": True, "vlan": 100}),
        ("vlan-gone", "SET_VLAN", {"add": False, "vlan": 100}),
        ("mac-refused", "SET_MAC_ADDR", {"act": "set", "mac": "02:00:00:00:00:78"}),
        # igbvf adds Ethernet's header and checksum (igbvf_change_mtu: + ETH_HLEN + ETH_FCS_LEN) and a VLAN's tag
        ("mtu", "SET_LPE", {"max_frame": 1400 + 14 + 4 + 4}),
    ],
)
def test_a_command_is_a_message(
    name: str, what: str, asked: str, arguments: dict[str, Any]
) -> None:
    said, _, _ = talk(name, "igb")
    steps = truth(name, "igb")["steps"]
    found = [m for m in between(said, steps, what) if m.is_request and m.name == asked]
    assert arguments in [message.arguments for message in found]


@of_igb
def test_every_request_to_igb_was_answered(name: str) -> None:
    said, _, lives = talk(name, "igb")
    steps = {step["what"]: step["at_ns"] for step in truth(name, "igb")["steps"]}
    waiting = None
    for event, message in said:
        if message.is_request:
            assert waiting is None
            waiting = message
        elif message.opcode == 0:
            # igb_rcv_ack_from_vf() sends a VF that has not reset, or whose card was down, the request to reset.
            assert (message.result, message.note) == ("NACK", NOT_CLEAR)
            before_its_driver = event.at_ns < steps["up"]
            assert before_its_driver or steps["pf-down"] < event.at_ns < steps["unbind"]
        elif message.result in ("ACK", "NACK"):
            assert waiting is not None
            assert message.opcode == waiting.opcode
            waiting = None
    assert waiting is None
    (life,) = lives
    assert life.unanswered == 0
    assert {message.driver for _, message in said} == {"igb"}


@of_igb
def test_the_life_of_igbs_vf(name: str) -> None:
    found = truth(name, "igb")
    _, _, lives = talk(name, "igb")
    (life,) = lives
    assert (life.vf, life.driver, life.address) == (0, "igb", found["address"])
    steps = {step["what"]: step["at_ns"] for step in found["steps"]}
    ups = [state for state in life.states if state.name == "up"]
    # Nothing after bind but before up may call it up; after that it was, until the card went down.
    assert not any(steps["bind"] < state.start_at_ns < steps["up"] for state in ups)
    assert any(steps["up"] < state.start_at_ns < steps["mac"] for state in ups)
    assert life.state == "reset"
    assert any(m.value == "02:00:00:00:00:77" for m in life.changes if m.what == "mac")


@of_igb
def test_the_host_decides_on_the_mac(name: str) -> None:
    said, _, _ = talk(name, "igb")
    steps = truth(name, "igb")["steps"]
    answers = [m for m in between(said, steps, "mac-refused") if m.direction == "to-vf"]
    assert any(m.name == "SET_MAC_ADDR" and m.refused for m in answers)


@of_igb
def test_what_we_said_ourselves_is_the_log(name: str) -> None:
    """Through vfio-pci, with no driver: RESET, promiscuous for groups and for all, an unknown message, a VLAN."""
    found = truth(name, "igb")
    said, _, _ = talk(name, "igb")
    opened = next(step["at_ns"] for step in found["steps"] if step["what"] == "vfio-open")
    own = iter([(event, m) for event, m in said if event.at_ns > opened and m.opcode])
    names = ["RESET", "SET_PROMISC", "SET_PROMISC", None, "SET_VLAN"]
    arguments = [{}, {"multicast": True}, {"multicast": False}, {}, {"add": True, "vlan": 7}]
    for entry, title, wanted in zip(found["asked"], names, arguments, strict=True):
        event, request = next(own)
        assert (request.name, request.arguments) == (title, wanted)
        assert list(event.word[: event.words]) == entry["words"][: event.words]
        assert event.at_ns > entry["at_ns"]
        event, reply = next(own)
        assert reply.result == result_of(entry["answer"][0])
        assert event.word[0] == entry["answer"][0]
        assert reply.latency_ns is not None
    assert list(own) == []
    # igb_set_vf_promisc() grants it for groups, never for everything.
    assert [result_of(entry["answer"][0]) for entry in found["asked"]][1:4] == [
        "ACK",
        "NACK",
        "NACK",
    ]


@of_igb
@pytest.mark.parametrize("what", ["vfio-open", "vfio-reset", "vfio-close"])
def test_vfios_reset_of_a_function_is_no_message(name: str, what: str) -> None:
    steps = truth(name, "igb")["steps"]
    said, resets, _ = talk(name, "igb")
    at = [step["at_ns"] for step in steps] + [1 << 63]
    start = next(step["at_ns"] for step in steps if step["what"] == what)
    end = at[at.index(start) + 1]
    assert any(start < reset.at_ns < end for reset in resets)
    if what != "vfio-open":
        assert not any(m.is_request for m in between(said, steps, what))


# -- a flood ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recordings("flood"))
def test_a_flood_is_counted_whole_and_recorded_in_part(name: str) -> None:
    """As fast as one processor asks, for ten seconds: every message is either recorded or counted."""
    found = truth(f"{name}", "flood")
    recording = recorded(f"{name}-flood")
    boxes = Mailboxes()
    for event in recording:
        boxes.feed(event)
    (life,) = (
        life for life in boxes.vf_histories() if (life.pf, life.vf) == (found["pf"], found["vf"])
    )
    heard = {"from-vf": 0, "to-vf": 0}
    for (_, direction, _), count in life.counts:
        heard[direction] += count
    assert heard == {"from-vf": found["requests"], "to-vf": found["replies"]}
    said = [event for event in recording if isinstance(event, Mailbox) and event.vf == found["vf"]]
    seconds = (found["ended_at_ns"] - found["started_at_ns"]) / 1e9
    # A thousand at once and a thousand a second (bpf/mailbox.h), and the answer to the last one.
    assert len(said) <= 1000 + 1000 * seconds + 1
    assert life.not_recorded > found["requests"]


# -- PF and VF help a migration --------------------------------------------------------------------


def assisting(name: str, job: str = "assisted") -> Migration:
    found = truth(name, job)
    (migration,) = (
        m
        for m in snapshot(name).migrations
        if found["started_at_ns"] <= m.started_at_ns <= found["ended_at_ns"]
    )
    return migration


@of_assisted
def test_the_helped_migrations_log_is_the_script(name: str) -> None:
    found = truth(name, "assisted")
    said, _, _ = talk(name, "assisted")
    requests = [(event, m) for event, m in said if m.is_request]
    assert len(requests) == len(found["log"])
    for (event, message), entry in zip(requests, found["log"], strict=True):
        assert (event.vf, message.opcode) == (entry["vf"], entry["words"][0] & 0xFFFF)
        assert event.at_ns > entry["at_ns"]
    by_role = {m.role: m.arguments for _, m in requests if m.role}
    assert by_role == {
        "stop": {"reason": 1, "cookie": "0xc001cafe"},
        "save": {},
        "restore": {"cookie": "0xc001cafe", "bytes": 4096},
        "resume": {},
    }
    granted = {m.role: m.arguments for _, m in said if m.role and m.result == "ACK"}
    assert granted["save"] == {"bytes": 4096}


@of_assisted
def test_a_helped_migration_is_mailbox_with_its_messages_as_evidence(name: str) -> None:
    found = truth(name, "assisted")
    m = assisting(name)
    assert (m.outcome, m.strategy, m.role) == ("completed", "mailbox", "stitched")
    assert m.dirty.dma == "guest"
    told = [e for e in found["log"] if e["verb"] == "vendor"]
    titles = ["MIG_STOP", "MIG_SAVE", "MIG_RESTORE", "MIG_RESUME"]
    assert len(m.strategy_evidence) == len(told)
    for evidence, title, entry in zip(m.strategy_evidence, titles, told, strict=True):
        by = f"VF {entry['vf']} of {found['pf']}"
        # No VFIO device of these VMs is a function of that card, as the report shows.
        assert evidence.event == f"{title}: {by}, bound to this VM by the time alone"
        assert 0 < evidence.at_ns - entry["at_ns"] < 100_000_000
    stopped, resumed = told[0]["at_ns"], told[-1]["at_ns"]
    (away,) = m.downtime.devices
    assert away.address == f"VF 0 of {found['pf']}"
    assert away.ns == pytest.approx(resumed - stopped, abs=100_000_000)
    assert [(vf.pf, vf.vf, vf.role) for vf in m.vfs] == [
        (found["pf"], 0, "source"),
        (found["pf"], 1, "destination"),
    ]


@of_assisted
def test_without_the_profile_the_same_migration_is_plain(name: str) -> None:
    found = truth(name, "assisted")
    begin, end = found["started_at_ns"], found["ended_at_ns"]
    (plain,) = (
        m
        for m in track(Recording(LAB / f"{name}.vft.gz")).snapshot().migrations
        if begin <= m.started_at_ns <= end
    )
    assert plain.strategy == "plain"


@of_held
def test_a_function_that_the_vm_holds_is_reported_as_held(name: str) -> None:
    """Nothing is unplugged and no state is transferred, no profile is needed: its driver rests, and is up again."""
    found = truth(name, "held")
    _, rest, up = found["acts"]
    m = assisting(name, "held")
    assert (m.outcome, m.strategy, m.role) == ("completed", "mailbox", "stitched")
    assert [e.event for e in m.strategy_evidence] == [
        f"driver puts it to rest: VF 0 of {found['pf']}, held by this VM",
        f"driver has it up again: VF 1 of {found['pf']}, held by this VM",
    ]
    rested, risen = (evidence.at_ns for evidence in m.strategy_evidence)
    assert rest["at_ns"] < rested < rest["done_at_ns"]
    # Up counts from its last answer.
    assert up["at_ns"] < risen < up["done_at_ns"]
    source, destination = (vmm["log"] for vmm in found["tiny"])
    stop = next(act for act in source if act["what"] == "stop")
    run = next(act for act in destination if act["what"] == "run")
    assert m.stopped_at_ns is not None
    assert m.stopped_at_ns <= stop["done_at_ns"]
    assert rested < m.stopped_at_ns < run["first_entry_ns"] < risen


@of_held
def test_the_held_functions_log_is_what_was_asked(name: str) -> None:
    found = truth(name, "held")
    said, _, _ = talk(name, "held")
    # igbvf, where another job has loaded it, has the functions before they are the VMM's.
    asked = [
        (event.vf, list(event.word[: event.words]))
        for event, m in said
        if m.is_request and event.at_ns >= found["acts"][0]["at_ns"]
    ]
    # Of each as many words leave the kernel as it has: RESET is one word, MULTICAST a count and so many hashes.
    assert asked == [
        (act["vf"], words[: 1 if words[0] == 1 else 2])
        for act in found["acts"]
        for words in act["messages"]
    ]


# -- virtchnl: i40e and ice ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "job"), VIRTCHNL)
def test_virtchnl_is_what_the_firmware_was_given(name: str, job: str) -> None:
    found = truth(name, job)
    driver = next(d for d in DRIVERS.values() if d.name == job)
    heard = [e for e in during(name, job) if isinstance(e, Virtchnl) and e.driver == driver.number]
    assert {event.pf for event in heard} == {found["pf"]}
    requests = [event for event in heard if event.direction == Mailbox.FROM_VF]
    sent = [entry for entry in found["log"] if "opcode" in entry]
    assert len(sent) > 15
    assert [(e.vf, e.opcode, e.size) for e in requests] == [
        (entry["vf"], entry["opcode"], len(entry["content"]) // 2) for entry in sent
    ]
    for event, entry in zip(requests, sent, strict=True):
        opcode = driver.opcodes.get(event.opcode)
        allowed = 0 if opcode is None else opcode.request_size
        content = bytes.fromhex(entry["content"])[:allowed]
        recorded = b"".join(word.to_bytes(4, "little") for word in event.word)
        assert recorded == content.ljust(40, b"\0")
        assert event.bytes == len(content)
    # VF, opcode, status and length of every reply and event, in order.
    answers = [answer for entry in found["log"] for answer in entry["answers"]]
    replies = [e for e in heard if e.direction == Mailbox.TO_VF]
    assert [[e.vf, e.opcode, e.status, e.size] for e in replies] == answers
    assert not any(event.ret for event in heard)


@pytest.mark.parametrize(("name", "job"), VIRTCHNL)
def test_a_virtchnl_vf_is_reset_once_by_message_and_once_as_a_function(name: str, job: str) -> None:
    boxes = Mailboxes()
    for event in during(name, job):
        boxes.feed(event)
    (history,) = (h for h in boxes.vf_histories() if (h.driver, h.vf) == (job, 1))
    assert (history.message_resets, history.function_resets) == (1, 1)
    assert "up" in {span.name for span in history.states}
    assert history.state == "reset"


@pytest.mark.parametrize(("name", "job"), VIRTCHNL)
def test_a_loop_of_resets_is_one_and_a_single_reset_is_none(name: str, job: str) -> None:
    """VF 1 is reset once by its driver; VF 2, where it is in the script, again and again."""
    boxes = Mailboxes()
    for event in during(name, job):
        boxes.feed(event)
    asked = Counter(entry["vf"] for entry in truth(name, job)["log"] if entry.get("opcode") == 2)
    histories = {h.vf: h for h in boxes.vf_histories() if h.driver == job}
    assert {vf: histories[vf].message_resets for vf in asked} == dict(asked)
    assert {vf for vf in asked if histories[vf].keeps_resetting} == {vf for vf in asked if vf == 2}


def life(name: str, job: str, number: int) -> VfHistory:
    boxes = Mailboxes()
    for event in during(name, job):
        boxes.feed(event)
    (found,) = (h for h in boxes.vf_histories() if (h.driver, h.vf) == (job, number))
    return found


def script(name: str, job: str) -> dict[str, tuple[int, int]]:
    """By step: when it was first given to the card's driver, and when the next one was.

    A loop of resets at the script's end repeats some steps.
    """
    log = truth(name, job)["log"]
    ends = [entry["at_ns"] for entry in log[1:]] + [truth(name, job)["ended_at_ns"]]
    found: dict[str, tuple[int, int]] = {}
    for entry, end in zip(log, ends, strict=True):
        found.setdefault(entry["what"], (entry["at_ns"], end))
    return found


@pytest.mark.parametrize("name", sorted(set(recordings("i40e")) & set(recordings("ice"))))
def test_an_outage_from_an_i40e_vf_to_an_ice_vf(name: str) -> None:
    """Both ends of an outage: i40e's VF 1 is unplugged, and ice's VF 1 is plugged.

    The drivers' words are the recording's. When a VMM closed and opened the VFs is set here, because cards of memory
    have no VF that a VMM could open: closed at the reset of the function, opened a moment before VERSION.
    """
    left, came = script(name, "i40e"), script(name, "ice")
    closed, opened = left["flr 1"][0], came["version"][0] - 1_000_000
    assert closed < opened
    i40e, ice = life(name, "i40e", 1), life(name, "ice", 1)
    old = PassedDevice(7, 1, pf=i40e.pf, vf=1, id="vf0", closed_at_ns=closed)
    new = PassedDevice(7, opened, pf=ice.pf, vf=1, id="vf0")
    source = source_vf(old, i40e, left["version"][0], None, opened)
    destination = destination_vf(new, ice, opened, came["down"][0], None)
    assert source is not None
    assert destination is not None
    assert [p.name for p in destination.phases] == ["probing", "configuring", "ready"]
    some = assisting(ASSISTED[0])
    m = replace(
        some,
        started_at_ns=closed,
        vfs=(source, destination),
        downtime=replace(some.downtime, checkpoints=()),
    )
    sides = (
        HostSide(1, {(i40e.pf, 1): i40e}, (), (), 0),
        HostSide(2, {(ice.pf, 1): ice}, (), (), 0),
    )
    found = spans_of(left["down"][0], came["down"][0], conditions(m, *sides))
    # Before its last word the VF was up, and after the link's report nothing kept the guest from answering.
    assert [span.name for span in found] == [
        *(UNSEEN, UNPLUG, GONE, PROBING, CONFIGURING, LINK, UNSEEN)
    ]
    _, unplug, gone, probing, configuring, link, _ = found
    # Released once DISABLE_QUEUES was granted; the first word is VERSION; up once ENABLE_QUEUES was granted, which the
    # link's report follows within the same call of the card's driver.
    assert left["down"][0] < unplug.start_at_ns < left["down"][1]
    assert (unplug.end_at_ns, gone.end_at_ns) == (closed, opened)
    assert came["version"][0] < probing.end_at_ns < came["version"][1]
    assert came["up"][0] < configuring.end_at_ns < link.end_at_ns < came["up"][1]


@pytest.mark.parametrize(("name", "job"), VIRTCHNL)
def test_a_virtchnl_link_is_what_the_card_reported(name: str, job: str) -> None:
    steps = script(name, job)
    links = [(link.at_ns, link.up) for link in life(name, job, 1).links]
    # The emulated cards have a link; the script sets it down and up again.
    wanted = [("resources", True), ("up", True), ("link 0", False), ("link 1", True)]
    assert [up for _, up in links] == [up for _, up in wanted]
    for (at, _), (what, _) in zip(links, wanted, strict=True):
        assert steps[what][0] < at < steps[what][1]


# -- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted({*IGB, *IXGBE, *ASSISTED, *HELD, *(name for name, _ in VIRTCHNL)})
)
def test_nothing_is_missing_and_no_vm_was_made_up(name: str) -> None:
    found = snapshot(name)
    assert found.vfs_incomplete == (skipped(found, "mailbox") > 0)
    assert unexplained(found) == 0
    assert not any(m.incomplete and not m.missed_runs for m in found.migrations)
    for job in ("igb", "ixgbe", "assisted", "held", "i40e", "ice"):
        if name in recordings(job):
            assert not any(isinstance(event, MailboxFlood) for event in during(name, job))
            begun = [
                m for m in found.migrations if m.started_at_ns >= truth(name, job)["started_at_ns"]
            ]
            mine = [m for m in begun if m.started_at_ns <= truth(name, job)["ended_at_ns"]]
            assert len(mine) == (job in ("assisted", "held"))


@of_held
def test_a_lost_mailbox_record_is_no_plain_migration(name: str) -> None:
    """Without any one record of the mailbox the migration has the same figures, or it is marked."""
    events = tuple(events_of(Recording(LAB / f"{name}.vft.gz")))
    whole = {m.started_at_ns: m.strategy for m in snapshot(name).migrations}
    assert "mailbox" in whole.values()
    places = [i for i, e in enumerate(events) if isinstance(e, Mailbox | VfReset)]
    marked = 0
    for place in places[:: max(1, len(places) // 40)]:
        tracker = Tracker(mailboxes=Mailboxes(WITH_PROFILE))
        for event in (*events[:place], *events[place + 1 :]):
            tracker.feed(event)
        tracker.finish()
        for m in tracker.snapshot().migrations:
            assert m.incomplete or m.strategy == whole[m.started_at_ns], events[place]
            marked += m.incomplete
    assert marked
