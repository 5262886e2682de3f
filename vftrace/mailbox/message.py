"""One message: words to name, arguments and result; and requests paired with their replies."""

from dataclasses import dataclass, replace
from typing import Literal

from vftrace.events import Mailbox
from vftrace.mailbox.drivers import TABLES, Tables
from vftrace.mailbox.table import ACK, CTS, NACK, Arguments, Opcode, Role, Table, Words, info

Direction = Literal["from-vf", "to-vf"]
Result = Literal["ACK", "NACK", "CTS", "none"]

WORDS = 16
"""A mailbox's size (IXGBE_VFMAILBOX_SIZE, E1000_VFMAILBOX_SIZE)."""

NOT_CLEAR = "it must reset first"
"""A PF's driver refuses everything but RESET from a VF it has not reset (`clear_to_send`)."""


@dataclass(frozen=True, slots=True)
class Message:
    """What was said. `name` is None for an opcode that is not in the driver's table.

    `result`: ACK or NACK of a reply, else CTS where the card's driver says "clear to send", else none.
    `note` says what a NACK means that is no refusal. `error`: the driver could not read the message.
    """

    driver: str
    direction: Direction
    opcode: int
    name: str | None
    arguments: Arguments
    result: Result
    clear_to_send: bool
    note: str | None = None
    error: int = 0
    at_ns: int = 0
    pf: str = ""
    vf: int = 0
    latency_ns: int | None = None
    """Of a reply: time since its request."""
    role: Role | None = None
    """What a profile says that it is for."""

    @property
    def title(self) -> str:
        """The name, or the number of what has none."""
        return self.name or f"0x{self.opcode:04x}"

    @property
    def refused(self) -> bool:
        """A NACK that is no part of the normal course."""
        return self.result == "NACK" and self.note is None

    @property
    def is_request(self) -> bool:
        """Whether the card's driver will answer it."""
        asks = self.direction == "from-vf" and self.result in ("none", "CTS")
        return asks and not self.error


def decode(words: Words, driver: int, direction: Direction, tables: Tables = TABLES) -> Message:
    """Decode the words of one message of a driver (its number); words that are missing count as 0.

    Never raises on content: what is not known has no name and no arguments.
    """
    table = tables.get(driver, Table(f"driver-{driver}", driver))
    padded = (*words, *[0] * (WORDS - len(words)))
    first = padded[0]
    number = first & 0xFFFF
    opcode = table.opcodes.get(number)
    result = _result(first)
    return Message(
        driver=table.driver,
        direction=direction,
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
        # With ACK or NACK set it is a message the driver has dealt with already.
        if result in ("ACK", "NACK"):
            return {}
        arguments = opcode.request(words)
        if opcode.counted and recorded < 1 + (info(words) + 1) // 2:
            del arguments["hashes"]
        return arguments
    # A NACK is the request sent back; only RESET's says something.
    refused = result == "NACK" and opcode.name != "RESET"
    return {} if refused else opcode.reply(words)


def _note(opcode: Opcode | None, words: Words, direction: Direction) -> str | None:
    if direction == "from-vf" or not words[0] & NACK:
        return None
    normal = None if opcode is None else opcode.normal_nack(words)
    return normal if normal or words[0] & CTS else NOT_CLEAR


def message_of(event: Mailbox, tables: Tables = TABLES) -> Message:
    """The message of an event, not yet paired."""
    direction: Direction = "to-vf" if event.direction == Mailbox.TO_VF else "from-vf"
    decoded = decode(event.word[: event.words], event.driver, direction, tables)
    if event.words == 0:
        # It could not be read: the words say nothing.
        decoded = replace(decoded, name="unreadable", arguments={}, role=None)
    return replace(decoded, error=event.ret, at_ns=event.at_ns, pf=event.pf, vf=event.vf)


class Pairing:
    """The requests of one VF and what they were answered."""

    def __init__(self) -> None:
        self.pending: Message | None = None
        """The request that has no answer yet."""

    def take(self, message: Message) -> Message:
        """Take the next message; a reply comes back with its latency."""
        if message.is_request:
            self.pending = message
        elif message.direction == "to-vf" and message.result in ("ACK", "NACK"):
            asked, self.pending = self.pending, None
            if asked is not None and asked.opcode == message.opcode:
                return replace(message, latency_ns=max(0, message.at_ns - asked.at_ns))
        return message
