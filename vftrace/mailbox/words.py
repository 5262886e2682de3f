# SPDX-License-Identifier: MIT
"""The protocol of ixgbe and igb: messages of up to 16 words, acknowledged by bits in the first one.

Word 0 holds the opcode in its low 16 bits, a number in bits 23:16 for some messages, and the bits ACK, NACK and CTS
(ixgbe_mbx.h: IXGBE_VT_MSGTYPE_*, e1000_mbx.h: E1000_VT_MSGTYPE_*).
"""

from collections.abc import Mapping

from vftrace.events import Mailbox, Virtchnl
from vftrace.mailbox.driver import (
    Arguments,
    Decoded,
    Direction,
    Driver,
    Opcode,
    Protocol,
    Result,
    Stage,
    Words,
    always,
)

ACK, NACK, CTS = 0x8000_0000, 0x4000_0000, 0x2000_0000

SIZE = 16
"""Words of a mailbox (IXGBE_VFMAILBOX_SIZE, E1000_VFMAILBOX_SIZE)."""

NOT_CLEAR = "it must reset first"
"""A PF driver refuses every request but RESET from a VF that it has not reset (`clear_to_send`)."""

_WORDS_BY_COUNT, _HOLDS_KEY = 0x100, 0x200


def info(words: Words) -> int:
    """Bits 23:16 of word 0, which some messages use."""
    return words[0] >> 16 & 0xFF


def mac(words: Words, at: int = 1) -> str:
    """The MAC address in the six bytes from word `at`, in memory order."""
    octets = (words[at].to_bytes(4, "little") + words[at + 1].to_bytes(4, "little"))[:6]
    return ":".join(f"{octet:02x}" for octet in octets)


def hashes(words: Words) -> tuple[int, str]:
    """The number of multicast hashes that a message claims, and those that were recorded."""
    flat = [half for word in words[1:] for half in (word & 0xFFFF, word >> 16)]
    return info(words), " ".join(f"{value:03x}" for value in flat[: info(words)])


class WordProtocol(Protocol):
    """Messages of up to 16 words."""

    def decode(self, event: Mailbox | Virtchnl, driver: Driver) -> Decoded:
        """Decode the recorded words; missing words count as 0."""
        assert isinstance(event, Mailbox)
        direction: Direction = "to-vf" if event.direction == Mailbox.TO_VF else "from-vf"
        return decode(event.word[: event.words], direction, driver.opcodes)

    def exportable(self, driver: Driver) -> dict[int, int]:
        """Keys are driver << 24 | direction << 16 | opcode, values a number of words and flags."""
        rules = {}
        for number, opcode in driver.opcodes.items():
            counted = _WORDS_BY_COUNT if opcode.counted else 0
            request_key = _HOLDS_KEY if opcode.request_key else 0
            reply_key = _HOLDS_KEY if opcode.reply_key else 0
            rules[driver.number << 24 | number] = opcode.request_size | counted | request_key
            rules[driver.number << 24 | 1 << 16 | number] = opcode.reply_size | reply_key
        return rules


WORD_PROTOCOL = WordProtocol()


def decode(words: Words, direction: Direction, opcodes: Mapping[int, Opcode]) -> Decoded:
    """Decode the words of one message; missing words count as 0.

    Never raises on content: an unknown message has neither name nor arguments.
    """
    padded = (*words, *[0] * (SIZE - len(words)))
    first = padded[0]
    number = first & 0xFFFF
    opcode = opcodes.get(number)
    result = _result(first)
    return Decoded(
        opcode=number,
        name=opcode.name if opcode else None,
        arguments=_arguments(opcode, padded, len(words), direction, result),
        result=result,
        clear_to_send=bool(first & CTS),
        note=_note(opcode, padded, direction),
        role=opcode.role if opcode else None,
    )


def _result(first: int) -> Result:
    if first & NACK:
        return "NACK"
    if first & ACK:
        return "ACK"
    return "CTS" if first & CTS else "none"


def _arguments(
    opcode: Opcode | None, words: Words, recorded: int, direction: Direction, result: Result
) -> Arguments:
    if opcode is None:
        return {}
    if direction == "from-vf":
        # With ACK or NACK set, the card's driver has handled the message already.
        if result in ("ACK", "NACK"):
            return {}
        arguments = opcode.request(words)
        if opcode.counted and recorded < 1 + (info(words) + 1) // 2:
            del arguments["hashes"]
        return arguments
    # A NACK repeats the request; only the NACK of RESET has arguments of its own.
    refused = result == "NACK" and opcode.name != "RESET"
    return {} if refused else opcode.reply(words)


def _note(opcode: Opcode | None, words: Words, direction: Direction) -> str | None:
    if direction == "from-vf" or not words[0] & NACK:
        return None
    normal = None if opcode is None else opcode.normal_nack(words)
    return normal if normal or words[0] & CTS else NOT_CLEAR


def _reset_reply(words: Words) -> Arguments:
    return {} if words[0] & NACK else {"mac": mac(words)}


def _mac_address(words: Words) -> Arguments:
    return {"mac": mac(words)}


def _multicast(words: Words) -> Arguments:
    count, values = hashes(words)
    return {"count": count, "hashes": values}


def _vlan(words: Words) -> Arguments:
    return {"add": bool(info(words)), "vlan": words[1] & 0xFFF}


def _max_frame(words: Words) -> Arguments:
    return {"max_frame": words[1]}


COMMON = {
    0x01: Opcode(
        "RESET",
        Stage.RESET,
        reply=_reset_reply,
        reply_size=3,
        normal_nack=always("no administrative MAC"),
    ),
    0x02: Opcode("SET_MAC_ADDR", Stage.PREPARE, request=_mac_address, request_size=3),
    0x03: Opcode("SET_MULTICAST", Stage.OPEN, request=_multicast, counted=True),
    0x04: Opcode("SET_VLAN", Stage.PREPARE, request=_vlan, request_size=2),
    0x05: Opcode("SET_LPE", Stage.OPEN, request=_max_frame, request_size=2),
    0x100: Opcode("PF_CONTROL"),
}
"""Messages that e1000_mbx.h and ixgbe_mbx.h both have. A driver's table replaces or extends these rows."""
