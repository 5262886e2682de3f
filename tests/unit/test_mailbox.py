# SPDX-License-Identifier: MIT
"""Decodes words to messages, and messages to histories of VFs. Expected values come from the drivers' headers, by
hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vftrace import events
from vftrace.analysis.devices.vf_history import MAX_RECENT, MAX_VFS, Mailboxes
from vftrace.analysis.tracker import Tracker
from vftrace.events import (
    COLLECTOR,
    NO_PROCESS,
    Event,
    Mailbox,
    MailboxFlood,
    Tick,
    VfReset,
    layout,
    wire,
)
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.message import Message, message_of
from vftrace.mailbox.words import NOT_CLEAR
from vftrace.model.vf import VfHistory

IXGBE, IGB = layout.IXGBE, layout.IGB
PF = "0000:01:00.0"
MS, SECOND = 1_000_000, 1_000_000_000

# (driver, words, name, arguments) of requests
REQUESTS: list[tuple[int, tuple[int, ...], str | None, dict[str, Any]]] = [
    (IXGBE, (0x1,), "RESET", {}),
    (IXGBE, (0x2, 0x33221102, 0x5544), "SET_MAC_ADDR", {"mac": "02:11:22:33:44:55"}),
    (
        IXGBE,
        (0x0003_0003, 0x0123_0ABC, 0xFFF),
        "SET_MULTICAST",
        {"count": 3, "hashes": "abc 123 fff"},
    ),
    (IXGBE, (0x0001_0004, 0xF064), "SET_VLAN", {"add": True, "vlan": 100}),
    (IXGBE, (0x4, 0xFFF), "SET_VLAN", {"add": False, "vlan": 4095}),
    (IXGBE, (0x5, 1518), "SET_LPE", {"max_frame": 1518}),
    (IXGBE, (0x6,), "SET_MACVLAN", {"index": 0}),
    (
        IXGBE,
        (0x0001_0006, 0x33221102, 0x5544),
        "SET_MACVLAN",
        {"index": 1, "mac": "02:11:22:33:44:55"},
    ),
    (IXGBE, (0x9,), "GET_QUEUES", {}),
    (IXGBE, (0xA,), "GET_RETA", {}),
    (IXGBE, (0xB,), "GET_RSS_KEY", {}),
    (IXGBE, (0xC, 3), "UPDATE_XCAST_MODE", {"mode": "promisc"}),
    (IXGBE, (0xC, 77), "UPDATE_XCAST_MODE", {"mode": "77"}),
    (IXGBE, (0xD, 0x04030201, 0x3200), "IPSEC_ADD", {"spi": "0x01020304", "dir": 0, "proto": 50}),
    (IXGBE, (0xE, 7), "IPSEC_DEL", {"handle": 7}),
    (IXGBE, (0x10,), "GET_LINK_STATE", {}),
    (IXGBE, (0x11,), "GET_PF_LINK_STATE", {}),
    (IXGBE, (0x12, 3), "FEATURES_NEGOTIATE", {"features": "ipsec,esx-mbx"}),
    (IXGBE, (0x42, 1), None, {}),
    (IXGBE, (0xFFFF,), None, {}),
    (IGB, (0x1,), "RESET", {}),
    (IGB, (0x2, 0x33221102, 0x5544), "SET_MAC_ADDR", {"act": "set", "mac": "02:11:22:33:44:55"}),
    (IGB, (0x0001_0002,), "SET_MAC_ADDR", {"act": "clear"}),
    (
        IGB,
        (0x0002_0002, 0x33221102, 0x5544),
        "SET_MAC_ADDR",
        {"act": "add", "mac": "02:11:22:33:44:55"},
    ),
    (IGB, (0x3,), "SET_MULTICAST", {"count": 0, "hashes": ""}),
    (IXGBE, (0x001E_0003,), "SET_MULTICAST", {"count": 30}),
    (IGB, (0x0001_0004, 100), "SET_VLAN", {"add": True, "vlan": 100}),
    (IGB, (0x5, 1522), "SET_LPE", {"max_frame": 1522}),
    (IGB, (0x0002_0006,), "SET_PROMISC", {"multicast": True}),
    (IGB, (0x6,), "SET_PROMISC", {"multicast": False}),
    (IGB, (0x8, 1), None, {}),
    (99, (0x1,), None, {}),
]
# (driver, words, name, arguments, result, whether it was refused) of messages of the card's driver
REPLIES: list[tuple[int, tuple[int, ...], str | None, dict[str, Any], str, bool]] = [
    (
        IXGBE,
        (0x8000_0001, 0x2, 0x1000, 0),
        "RESET",
        {"mac": "02:00:00:00:00:10", "mc_filter_type": 0},
        "ACK",
        False,
    ),
    (IXGBE, (0x4000_0001, 0, 0, 2), "RESET", {"mc_filter_type": 2}, "NACK", False),
    (IGB, (0x8000_0001, 0x2, 0x1000), "RESET", {"mac": "02:00:00:00:00:10"}, "ACK", False),
    (IGB, (0x4000_0001, 0, 0), "RESET", {}, "NACK", False),
    (IXGBE, (0x6000_0008, 8), "API_NEGOTIATE", {}, "NACK", False),
    (IXGBE, (0xA000_0008, 5), "API_NEGOTIATE", {}, "ACK", False),
    (
        IXGBE,
        (0xA000_0009, 8, 4, 1, 2),
        "GET_QUEUES",
        {"tx": 8, "rx": 4, "vlan": 1, "default": 2},
        "ACK",
        False,
    ),
    (IXGBE, (0xA000_000C, 2), "UPDATE_XCAST_MODE", {"mode": "allmulti"}, "ACK", False),
    (IXGBE, (0xA000_0010, 1), "GET_LINK_STATE", {"enabled": True}, "ACK", False),
    (
        IXGBE,
        (0xA000_0011, 0x80, 1),
        "GET_PF_LINK_STATE",
        {"speed": "0x80", "up": True},
        "ACK",
        False,
    ),
    (IXGBE, (0xA000_0012, 1), "FEATURES_NEGOTIATE", {"features": "ipsec"}, "ACK", False),
    (IXGBE, (0xA000_000D, 9), "IPSEC_ADD", {"handle": 9}, "ACK", False),
    (IXGBE, (0x6000_0002,), "SET_MAC_ADDR", {}, "NACK", True),
    (IGB, (0x6000_0002,), "SET_MAC_ADDR", {}, "NACK", True),
    (IGB, (0x6001_0002,), "SET_MAC_ADDR", {}, "NACK", False),
    (IXGBE, (0x4000_0009,), "GET_QUEUES", {}, "NACK", False),
    (IXGBE, (0x6000_0042,), None, {}, "NACK", True),
    (IXGBE, (0x2000_0100,), "PF_CONTROL", {}, "CTS", False),
    (IGB, (0x100,), "PF_CONTROL", {}, "none", False),
]


def decode(words: tuple[int, ...], driver: int, direction: str) -> Message:
    to_vf = Mailbox.TO_VF if direction == "to-vf" else Mailbox.FROM_VF
    padded = (*words, *[0] * (16 - len(words)))
    return message_of(
        Mailbox(0, NO_PROCESS, 0, 0, PF, driver, 0, to_vf, len(words), len(words), 0, padded)
    )


@pytest.mark.parametrize(("driver", "words", "name", "arguments"), REQUESTS)
def test_requests(
    driver: int, words: tuple[int, ...], name: str | None, arguments: dict[str, Any]
) -> None:
    message = decode(words, driver, "from-vf")
    assert (message.name, message.opcode) == (name, words[0] & 0xFFFF)
    assert message.arguments == arguments
    assert (message.result, message.refused) == ("none", False)


@pytest.mark.parametrize(("driver", "words", "name", "arguments", "result", "refused"), REPLIES)
def test_replies(
    driver: int,
    words: tuple[int, ...],
    name: str | None,
    arguments: dict[str, Any],
    result: str,
    refused: bool,
) -> None:
    message = decode(words, driver, "to-vf")
    assert (message.name, message.arguments) == (name, arguments)
    assert (message.result, message.refused) == (result, refused)
    assert message.clear_to_send == bool(words[0] & 0x2000_0000)


@pytest.mark.parametrize(
    ("number", "version"),
    list(enumerate(["1.0", "2.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "9"])),
)
def test_versions(number: int, version: str) -> None:
    assert decode((8, number), IXGBE, "from-vf").arguments == {"version": version}


def test_a_nack_before_the_reset_is_reported() -> None:
    assert decode((0x4000_0009,), IXGBE, "to-vf").note == NOT_CLEAR


@given(
    st.lists(st.integers(0, (1 << 32) - 1), max_size=16),
    st.integers(0, 3),
    st.sampled_from(["from-vf", "to-vf"]),
)
def test_any_words(words: list[int], driver: int, direction: Any) -> None:
    message = decode(tuple(words), driver, direction)
    assert all(isinstance(value, int | str | bool) for value in message.arguments.values())
    assert all(
        value.isprintable() and len(value) < 200
        for value in message.arguments.values()
        if isinstance(value, str)
    )


# -- keys --------------------------------------------------------------------------------------

KEY = 0x5EC2E700


@pytest.mark.parametrize("driver", DRIVERS)
def test_nothing_that_may_be_a_key_is_let_out(driver: int) -> None:
    """The RSS key is w1-w10 of the reply, IPsec's w7-w11 of the request, and both may stand behind any
    other message, which therefore goes no further than its own arguments."""
    rules = DRIVERS[driver].protocol.exportable(DRIVERS[driver])
    words = {key: rule & 0xFF for key, rule in rules.items()}
    for key, count in words.items():
        opcode, reply = key & 0xFFFF, bool(key >> 16 & 1)
        if driver == IXGBE and opcode == 0x0B:
            assert count == 1
        if driver == IXGBE and opcode == 0x0D:
            assert count <= (2 if reply else 7)
        # Every word that is sent on is one that the message reads.
        direction: Any = "to-vf" if reply else "from-vf"
        first = opcode | (0xA000_0000 if reply else 0x0001_0000)
        plain = decode((first, *[0] * 15), driver, direction).arguments
        marked = decode((first, *[0] * (count - 1), *[KEY] * (16 - count)), driver, direction)
        if not rules[key] & 0x100:
            assert marked.arguments == plain
    holds_key = {key for key, rule in rules.items() if rule & 0x200}
    assert holds_key == ({0x101000B, 0x100000D, 0x101000D} if driver == IXGBE else set())


# -- lives -------------------------------------------------------------------------------------


class Talk:
    """A VF and its card's driver, speaking at set times."""

    def __init__(self, driver: int = IXGBE, vf: int = 0) -> None:
        self.boxes = Mailboxes()
        self.driver = driver
        self.vf = vf
        self.seq = 0
        self.now_ns = SECOND

    def event(self, kind: Any, *fields: Any, vf: int | None = None) -> Event:
        self.seq += 1
        number = self.vf if vf is None else vf
        made: Event = kind(self.now_ns, self.seq - 1, 0, 0, PF, self.driver, number, *fields)
        return made

    def say(self, direction: int, *words: int) -> Any:
        padded = (*words, *[0] * (16 - len(words)))
        return self.boxes.feed(self.event(Mailbox, direction, 16, len(words), 0, padded))

    def ask(self, *words: int, reply: tuple[int, ...] | None = None, after_ns: int = 1000) -> Any:
        """A request and its answer, by default an ACK of the same words."""
        self.say(Mailbox.FROM_VF, *words)
        self.now_ns += after_ns
        answer = self.say(Mailbox.TO_VF, *(reply or (words[0] | 0xA000_0000, *words[1:])))
        self.now_ns += 1000
        return answer

    def wait(self, ns: int) -> None:
        self.now_ns += ns
        self.boxes.feed(Tick(self.now_ns, 0, COLLECTOR, 0))

    def start(self) -> None:
        """As ixgbevf: probe, then open."""
        self.ask(1, reply=(0x8000_0001, 0x2, 0x1000, 0))
        self.ask(8, 8, reply=(0x6000_0008, 8))
        self.ask(8, 5)
        self.ask(9, reply=(0xA000_0009, 1, 1, 0, 0))
        self.ask(0xC, 1)
        self.ask(5, 1518)

    def life(self) -> VfHistory:
        (life,) = self.boxes.vf_histories()
        return life


def names(life: VfHistory) -> list[str]:
    return [state.name for state in life.states]


def test_a_vf_comes_up() -> None:
    talk = Talk()
    talk.start()
    assert talk.life().state == "configuring"
    last_ns = talk.now_ns - 1000
    talk.wait(600 * MS)
    life = talk.life()
    assert names(life) == ["reset", "negotiating", "configuring", "up"]
    assert life.since_ns == last_ns
    assert dict(life.settings) == {
        "mac": "02:00:00:00:00:10",
        "max_frame": "1518",
        "mode": "multi",
        "version": "1.4",
    }
    assert (life.refused, life.unanswered, life.keeps_resetting) == (0, 0, False)


def test_a_bound_vf_that_nobody_brings_up_rests() -> None:
    talk = Talk()
    talk.ask(1)
    talk.ask(8, 5)
    talk.ask(9, reply=(0xA000_0009, 1, 1, 0, 0))
    talk.wait(600 * MS)
    assert names(talk.life()) == ["reset", "negotiating", "configuring", "reset"]


def test_latency_is_from_request_to_reply() -> None:
    talk = Talk()
    assert talk.ask(9, after_ns=67_000).latency_ns == 67_000
    assert talk.say(Mailbox.TO_VF, 0x2000_0100).latency_ns is None


def test_changes_of_a_vf_that_is_up() -> None:
    talk = Talk()
    talk.start()
    talk.wait(600 * MS)
    talk.ask(0x0001_0004, 100)
    talk.ask(0x0001_0004, 200)
    talk.ask(4, 100)
    talk.ask(2, 0x33221102, 0x5544, reply=(0x6000_0002,))
    talk.ask(5, 9000)
    life = talk.life()
    assert life.state == "up"
    assert life.vlans == (200,)
    assert dict(life.settings)["mac"] == "02:00:00:00:00:10"
    assert life.refused == 1
    changed = [(change.what, change.value) for change in life.changes]
    assert changed[-4:] == [
        ("vlan", "+100"),
        ("vlan", "+200"),
        ("vlan", "-100"),
        ("max_frame", "9000"),
    ]


def test_a_function_reset_is_not_a_message() -> None:
    talk = Talk()
    talk.start()
    talk.wait(600 * MS)
    talk.boxes.feed(talk.event(VfReset))
    life = talk.life()
    assert (life.state, life.function_resets, life.message_resets) == ("reset", 1, 1)


def test_a_vf_that_keeps_resetting() -> None:
    talk = Talk()
    for times in range(7):
        talk.start()
        talk.wait(600 * MS)
        assert talk.life().keeps_resetting == (times >= 5)
    talk.wait(61 * SECOND)
    assert not talk.life().keeps_resetting


def test_a_pf_that_does_not_answer() -> None:
    talk = Talk()
    talk.ask(1)
    talk.say(Mailbox.FROM_VF, 9)
    talk.wait(900 * MS)
    assert talk.life().unanswered == 0
    talk.wait(200 * MS)
    talk.wait(5 * SECOND)
    assert talk.life().unanswered == 1


def test_what_was_not_recorded_is_counted_and_is_nobodys_fault() -> None:
    talk = Talk()
    talk.ask(9)
    talk.boxes.feed(talk.event(MailboxFlood, 700, 699, 0))
    talk.wait(5 * SECOND)
    life = talk.life()
    assert (life.not_recorded, life.unanswered) == (1399, 0)
    assert dict(life.counts)["not-recorded", "from-vf", "none"] == 700


def test_a_vf_met_at_work_is_up() -> None:
    talk = Talk(IGB)
    talk.ask(0x0001_0004, 100)
    assert names(talk.life()) == ["up"]


def test_a_guest_cannot_fill_memory() -> None:
    talk = Talk()
    for opcode in range(3000):
        talk.ask(opcode | 0x100_0000)
        talk.now_ns += MS
    for vlan in range(5000):
        talk.ask(0x0001_0004, vlan)
    life = talk.life()
    assert len(life.recent) == MAX_RECENT
    # Names of the table and "unknown", two directions, four results.
    assert len(life.counts) <= (len(DRIVERS[IXGBE].opcodes) + 1) * 8
    assert len(life.changes) <= 64
    assert len(life.agreements) == 64
    for vf in range(MAX_VFS + 10):
        talk.boxes.feed(talk.event(VfReset, vf=vf))
    assert len(list(talk.boxes.vf_histories())) == MAX_VFS


# -- through the wire and the tracker -----------------------------------------------------------


def test_a_mailbox_makes_no_vm_and_its_losses_show() -> None:
    tracker = Tracker()
    talk = Talk()
    words = (1, *[0] * 15)
    first = talk.event(Mailbox, Mailbox.FROM_VF, 16, 1, 0, words)
    assert wire.decode(wire.encode(first)) == first
    tracker.feed(first)
    snapshot = tracker.snapshot()
    assert snapshot.vms == ()
    assert [(life.pf, life.vf, life.state) for life in snapshot.vfs] == [(PF, 0, "reset")]
    assert not snapshot.vfs_incomplete
    talk.seq += 1
    tracker.feed(talk.event(VfReset))
    assert tracker.snapshot().vfs_incomplete


def test_the_end_shows_records_lost_last() -> None:
    tracker = Tracker()
    tracker.feed(Talk().event(VfReset))
    tracker.feed(events.End(2 * SECOND, 0, COLLECTOR, 0, {NO_PROCESS: 2}))
    assert tracker.snapshot().vfs_incomplete


def test_another_driver_of_the_card_begins_another_history() -> None:
    boxes = Mailboxes()
    for at_ns, driver, word in ((0, IXGBE, 0x1), (MS, IGB, 0x5)):
        words = (word, *[0] * 15)
        boxes.feed(Mailbox(at_ns, 0, NO_PROCESS, 0, PF, driver, 0, Mailbox.FROM_VF, 2, 2, 0, words))
    (history,) = boxes.vf_histories()
    assert (history.driver, history.message_resets) == ("igb", 0)
    assert [m.name for m in history.recent] == ["SET_LPE"]
