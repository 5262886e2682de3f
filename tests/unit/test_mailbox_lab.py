"""What was recorded in the lab against what was done there (tests/lab/jobs/mailbox.py).

ixgbe: the stock driver answered a script; every message of it must be there, decoded, and nothing else.
igb: igbvf acted on commands; each must show as the messages and the state it leads to.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vftrace import wire
from vftrace.events import Event, Mailbox, MailboxFlood, VfAddress, VfReset
from vftrace.mailbox.life import Mailboxes, VfLife
from vftrace.mailbox.message import NOT_CLEAR, Message
from vftrace.sources.recording import Recording
from vftrace.sources.replay import events_of, track

LAB = Path(__file__).resolve().parents[1] / "golden" / "mailbox"
RECORDING = LAB / "6.12.vft.gz"
"""Both jobs in one: the cards have different addresses."""

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


def truth(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LAB / f"6.12-{name}.truth.json").read_text())
    return found


@cache
def recorded() -> tuple[Event, ...]:
    return tuple(events_of(Recording(RECORDING)))


def talk(pf: str) -> tuple[list[tuple[Mailbox, Message]], list[VfReset], list[VfLife]]:
    boxes = Mailboxes()
    said: list[tuple[Mailbox, Message]] = []
    resets = []
    for event in recorded():
        message = boxes.feed(event)
        if isinstance(event, Mailbox) and event.pf == pf:
            assert message is not None
            said.append((event, message))
        elif isinstance(event, VfReset) and event.pf == pf:
            resets.append(event)
    return said, resets, [life for life in boxes.lives() if life.pf == pf]


def key_words(found: dict[str, Any]) -> set[int]:
    """The words of the driver's RSS key, and those of the IPsec key in the script."""
    key = bytes.fromhex(found["rss_key"])
    words = {int.from_bytes(key[i : i + 4], "little") for i in range(0, len(key), 4)}
    return words | {0xDEAD0000 + number for number in range(5)}


def result_of(first: int) -> str:
    return "NACK" if first >> 30 & 1 else "ACK" if first >> 31 else "none"


# -- the real ixgbe.ko ---------------------------------------------------------------------------


def test_the_decoded_log_is_the_script() -> None:
    found = truth("ixgbe")
    said, resets, _ = talk(found["pf"])
    left = iter(said)
    # The answer to IPSEC_ADD is made in the request's buffer, and of it only w0 and w1 are known not to
    # belong to a key: what stands behind them is kept back as well.
    keys = key_words(found)
    keys |= {word for e in found["log"] if e["what"] == "IPsec add" for word in e["words"][2:]}
    for entry in found["log"]:
        if entry["verb"] == "reset":
            reset = resets.pop(0)
            assert (reset.vf, reset.driver) == (entry["vf"], Mailbox.IXGBE)
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


def test_what_the_driver_answered() -> None:
    found = truth("ixgbe")
    said, _, _ = talk(found["pf"])
    replies = [message for _, message in said if message.direction == "to-vf"]
    by_name = {(m.vf, m.name): m for m in replies if m.result == "ACK"}
    assert by_name[0, "RESET"].arguments["mac"] == "02:00:00:00:00:10"
    none = next(m for m in replies if m.vf == 1 and m.name == "RESET")
    assert (none.result, none.refused) == ("NACK", False)
    refused = [m for m in replies if m.name == "API_NEGOTIATE" and m.result == "NACK"]
    assert refused
    assert not any(message.refused for message in refused)


def test_no_key_left_the_kernel() -> None:
    found = truth("ixgbe")
    key = bytes.fromhex(found["rss_key"])
    words = {word.to_bytes(4, "little") for word in key_words(found)}
    # They did go through the mailbox, and stayed in its memory.
    memory = [
        b"".join(word.to_bytes(4, "little") for word in entry.get("memory", []))
        for entry in found["log"]
    ]
    assert any(key in held for held in memory)
    assert any((0xDEAD0004).to_bytes(4, "little") in held for held in memory)
    for record in Recording(RECORDING):
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


@pytest.mark.parametrize(
    ("what", "name", "arguments"),
    [
        ("mac", "SET_MAC_ADDR", {"act": "set", "mac": "02:00:00:00:00:77"}),
        ("vlan", "SET_VLAN", {"add": True, "vlan": 100}),
        ("vlan-gone", "SET_VLAN", {"add": False, "vlan": 100}),
        ("mac-refused", "SET_MAC_ADDR", {"act": "set", "mac": "02:00:00:00:00:78"}),
    ],
)
def test_a_command_is_a_message(what: str, name: str, arguments: dict[str, Any]) -> None:
    found = truth("igb")
    said, _, _ = talk(found["pf"])
    asked = [m for m in between(said, found["steps"], what) if m.is_request and m.name == name]
    assert arguments in [message.arguments for message in asked]


def test_every_request_to_igb_was_answered() -> None:
    found = truth("igb")
    said, _, lives = talk(found["pf"])
    steps = {step["what"]: step["at_ns"] for step in found["steps"]}
    waiting = None
    for event, message in said:
        if message.is_request:
            assert waiting is None
            waiting = message
        elif message.opcode == 0:
            # igb_rcv_ack_from_vf() tells a VF whose card was down that it must reset.
            assert (message.result, message.note) == ("NACK", NOT_CLEAR)
            assert steps["pf-down"] < event.at_ns < steps["unbind"]
        elif message.result in ("ACK", "NACK"):
            assert waiting is not None
            assert message.opcode == waiting.opcode
            waiting = None
    assert waiting is None
    (life,) = lives
    assert life.unanswered == 0
    assert {message.driver for _, message in said} == {"igb"}


def test_the_life_of_igbs_vf() -> None:
    found = truth("igb")
    _, _, lives = talk(found["pf"])
    (life,) = lives
    assert (life.vf, life.driver) == (0, "igb")
    steps = {step["what"]: step["at_ns"] for step in found["steps"]}
    ups = [state for state in life.states if state.name == "up"]
    # Nothing after bind but before up may call it up; after that it was, until the card went down.
    assert not any(steps["bind"] < state.start_at_ns < steps["up"] for state in ups)
    assert any(steps["up"] < state.start_at_ns < steps["mac"] for state in ups)
    assert life.state == "reset"
    assert any(m.value == "02:00:00:00:00:77" for m in life.changes if m.what == "mac")


def test_the_host_decides_on_the_mac() -> None:
    found = truth("igb")
    said, _, _ = talk(found["pf"])
    answers = [m for m in between(said, found["steps"], "mac-refused") if m.direction == "to-vf"]
    assert any(m.name == "SET_MAC_ADDR" and m.refused for m in answers)


def test_refused_is_what_igb_warned_of() -> None:
    """igb's own log of that run has three lines on a VF that was denied, all about its MAC; its "invalid
    MAC filter" is what igbvf always gets, and one more clear was denied, which is the same to igbvf."""
    found = truth("igb")
    said, _, _ = talk(found["pf"])
    refused = [message for _, message in said if message.refused]
    assert [message.name for message in refused] == ["SET_MAC_ADDR"] * 3


def test_a_function_reset_is_told_apart() -> None:
    found = truth("igb")
    _, resets, _ = talk(found["pf"])
    flr = next(step["at_ns"] for step in found["steps"] if step["what"] == "flr")
    assert [reset for reset in resets if reset.at_ns > flr]


def test_the_vfs_address_is_known() -> None:
    found = truth("igb")
    addresses = {
        (event.pf, event.vf): event.address for event in recorded() if isinstance(event, VfAddress)
    }
    assert addresses[found["pf"], 0] == found["address"]


# -- both ------------------------------------------------------------------------------------------


def test_nothing_is_missing_and_no_vm_was_made_up() -> None:
    snapshot = track(Recording(RECORDING)).snapshot()
    assert not snapshot.vfs_incomplete
    assert snapshot.lost == 0
    assert snapshot.vms == ()
    assert not any(isinstance(event, MailboxFlood) for event in recorded())
