# SPDX-License-Identifier: MIT
"""virtchnl: bytes to messages, messages to a VF's history.

The conversation is that of the stock i40e.ko 6.12 over memory with the messages of an iavf; expected values are
from virtchnl.h by hand.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.events import NO_PROCESS, Mailbox, MailboxFlood, Tick, VfReset, Virtchnl, layout
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.message import Message, message_of
from vftrace.mailbox.virtchnl import OPCODES

PF = "0000:01:00.0"
MS, SECOND = 1_000_000, 1_000_000_000
ASKS, SAYS = Mailbox.FROM_VF, Mailbox.TO_VF
RESOURCES = "0100040005000026c1001b0034000000400000006600040006000000000002aabbccdd01"
LINK_UP, LINK_DOWN = "01000000102700000100000000000000", "01000000" + "00" * 12
IMPENDING = "020000000000000000000000ff000000"

# (direction, opcode, bytes that leave the kernel, name, arguments, status)
CONVERSATION: list[tuple[int, int, str, str | None, dict[str, Any], int]] = [
    (ASKS, 1, "0100000001000000", "VERSION", {"version": "1.1"}, 0),
    (SAYS, 1, "0100000001000000", "VERSION", {"version": "1.1"}, 0),
    (ASKS, 3, "c9017b1b", "GET_VF_RESOURCES", {"caps": "0x1b7b01c9"}, 0),
    (
        SAYS,
        3,
        RESOURCES,
        "GET_VF_RESOURCES",
        {
            "pairs": 4,
            "vectors": 5,
            "max_mtu": 9728,
            "caps": "0x1b00c1",
            "mac": "02:aa:bb:cc:dd:01",
        },
        0,
    ),
    (SAYS, 17, LINK_UP, "EVENT", {"event": "link", "speed": 10000, "up": True}, 0),
    (ASKS, 7, "02006600", "CONFIG_IRQ_MAP", {"vectors": 2}, 0),
    (SAYS, 7, "", "CONFIG_IRQ_MAP", {}, 0),
    (
        ASKS,
        10,
        "6600010002aabbccdd010100",
        "ADD_ETH_ADDR",
        {"count": 1, "mac": "02:aa:bb:cc:dd:01"},
        0,
    ),
    (SAYS, 10, "", "ADD_ETH_ADDR", {}, 0),
    (ASKS, 12, "660001006400", "ADD_VLAN", {"count": 1, "vlan": 100}, 0),
    (SAYS, 12, "", "ADD_VLAN", {}, 0),
    (ASKS, 6, "66000400", "CONFIG_VSI_QUEUES", {"vsi": 102, "pairs": 4}, 0),
    (SAYS, 6, "", "CONFIG_VSI_QUEUES", {}, 0),
    (
        ASKS,
        8,
        "660000000f0000000f000000",
        "ENABLE_QUEUES",
        {"vsi": 102, "rx": "0xf", "tx": "0xf"},
        0,
    ),
    (SAYS, 8, "", "ENABLE_QUEUES", {}, 0),
    (ASKS, 23, "66003400", "CONFIG_RSS_KEY", {"vsi": 102, "size": 52}, 0),
    (SAYS, 23, "", "CONFIG_RSS_KEY", {}, 0),
    (ASKS, 14, "66000200", "CONFIG_PROMISCUOUS_MODE", {"mode": "multicast"}, 0),
    (SAYS, 14, "", "CONFIG_PROMISCUOUS_MODE", {}, 0),
    (ASKS, 15, "", "GET_STATS", {}, 0),
    (SAYS, 15, "", "GET_STATS", {}, 0),
    (ASKS, 51, "", "GET_OFFLOAD_VLAN_V2_CAPS", {}, 0),
    (SAYS, 51, "", "GET_OFFLOAD_VLAN_V2_CAPS", {"status": -95}, -95),
    (ASKS, 119, "", None, {}, 0),
    (SAYS, 119, "", None, {"status": -22}, -22),
    (SAYS, 17, IMPENDING, "EVENT", {"event": "reset-impending", "severity": 255}, 0),
]


def event(
    at_ns: int,
    direction: int,
    opcode: int,
    content: str = "",
    status: int = 0,
    driver: int = layout.I40E,
) -> Virtchnl:
    data = bytes.fromhex(content)
    padded = data.ljust(40, b"\0")
    words = tuple(int.from_bytes(padded[i : i + 4], "little") for i in range(0, 40, 4))
    return Virtchnl(
        *(at_ns, 0, NO_PROCESS, 0, PF, driver, 1, direction, opcode, status),
        *(len(data), len(data), 0, words),
    )


def said(boxes: Mailboxes) -> list[Message]:
    return [
        message
        for number, (direction, opcode, content, _, _, status) in enumerate(CONVERSATION)
        if (message := boxes.feed(event(number * MS, direction, opcode, content, status)))
    ]


def test_the_conversation_is_decoded_and_paired() -> None:
    messages = said(Mailboxes())
    assert [(m.name, m.arguments) for m in messages] == [(c[3], c[4]) for c in CONVERSATION]
    for message, (direction, opcode, _, _, _, status) in zip(messages, CONVERSATION, strict=True):
        if direction == ASKS or opcode == 17:
            assert message.result == "none"
        else:
            assert message.result == ("NACK" if status else "ACK")
            # Each reply follows its request within a millisecond of this script.
            assert message.latency_ns == MS
    assert [m.refused for m in messages].count(True) == 2


def test_the_history_of_a_vf() -> None:
    boxes = Mailboxes()
    said(boxes)
    (history,) = boxes.vf_histories()
    assert (history.driver, history.state, history.refused) == ("i40e", "up", 2)
    assert [span.name for span in history.states] == ["negotiating", "configuring", "up"]
    assert dict(history.settings) == {
        "mac": "02:aa:bb:cc:dd:01",
        "version": "1.1",
        "mode": "multicast",
    }
    assert history.vlans == (100,)
    # The VF requests statistics every other second: vftrace counts these requests and does not show them.
    assert "GET_STATS" not in {m.name for m in history.recent}
    assert dict(history.counts)["GET_STATS", "to-vf", "ACK"] == 1


def test_down_and_reset() -> None:
    boxes = Mailboxes()
    said(boxes)
    boxes.feed(event(SECOND, ASKS, 9, "660000000f0000000f000000"))
    boxes.feed(event(SECOND + MS, SAYS, 9))
    boxes.feed(event(SECOND + 2 * MS, ASKS, 2))
    boxes.feed(VfReset(2 * SECOND, 0, NO_PROCESS, 0, PF, layout.I40E, 1))
    boxes.feed(Tick(9 * SECOND, 0, NO_PROCESS, 0))
    (history,) = boxes.vf_histories()
    assert history.state == "reset"
    assert (history.message_resets, history.function_resets) == (1, 1)
    # RESET_VF is never answered, so it is not missing an answer.
    assert history.unanswered == 0
    assert history.vlans == ()


@pytest.mark.parametrize("opcode", sorted(OPCODES))
def test_a_request_that_is_too_short_may_be_granted(opcode: int) -> None:
    """A guest sends what it likes, and serve decodes it."""
    boxes = Mailboxes()
    for direction in (0, 1):
        boxes.feed(event(direction * MS, direction, opcode))
    (history,) = boxes.vf_histories()
    assert history.vlans == ()


def test_a_dropped_request_is_unanswered() -> None:
    boxes = Mailboxes()
    boxes.feed(event(0, ASKS, 1, "0100000001000000"))
    boxes.feed(Tick(2 * SECOND, 0, NO_PROCESS, 0))
    (history,) = boxes.vf_histories()
    assert history.unanswered == 1


@pytest.mark.parametrize("driver", [layout.I40E, layout.ICE])
def test_what_must_not_leave_the_kernel_does_not(driver: int) -> None:
    rules = DRIVERS[driver].protocol.exportable(DRIVERS[driver])
    secret = (20, 32, 33, 45, 46, 47, 48)
    assert {rules[driver << 24 | way << 16 | opcode] for way in (0, 1) for opcode in secret} == {0}
    assert rules[driver << 24 | 23] == 4
    # INLINE_IPSEC_CRYPTO and DCF of vendors' headers are in no table.
    assert not {driver << 24 | opcode for opcode in range(34, 44)} & rules.keys()
    assert max(rules.values()) <= 4 * layout.VIRTCHNL_WORDS


@given(
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.lists(st.integers(0, 2**32 - 1), min_size=10, max_size=10),
    st.integers(0, 2**32 - 1),
)
def test_anything_is_a_message(
    driver: int, opcode: int, status: int, words: list[int], size: int
) -> None:
    for direction in (ASKS, SAYS):
        record = Virtchnl(
            *(1, 0, NO_PROCESS, 0, PF, driver, 1, direction, opcode, status),
            *(size, size, 0, tuple(words)),
        )
        message = message_of(record)
        boxes = Mailboxes()
        boxes.feed(record)
        boxes.feed(MailboxFlood(2, 0, NO_PROCESS, 0, PF, driver, 1, 1, 2, 3))
        assert message.opcode == opcode
        assert all(len(str(value)) < 64 for value in message.arguments.values())
        assert len(list(boxes.vf_histories())) == 1
