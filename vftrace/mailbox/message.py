# SPDX-License-Identifier: MIT
"""One message with its sender, its time and its meaning; and requests paired with their replies."""

import msgspec
from msgspec.structs import replace

from vftrace.events import Mailbox, Virtchnl
from vftrace.mailbox.driver import Arguments, Direction, Driver, Drivers, Result, Role
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.virtchnl import VIRTCHNL_PROTOCOL
from vftrace.mailbox.words import WORD_PROTOCOL


class Message(msgspec.Struct, frozen=True):
    """A decoded message. `name` None: the driver's table lacks the opcode.

    `result`: ACK or NACK for a reply; else CTS where the card's driver set "clear to send"; else none. `note` is the
    meaning of a NACK that is not a refusal. `error`: the driver could not read the message.
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
    """The time from the request to this reply."""
    role: Role | None = None
    """The part in a mailbox-assisted migration that a profile gives this message."""
    answered: bool = True
    """Whether the card's driver answers such a request."""
    quiet: bool = False
    """Whether the message is counted only."""

    @property
    def title(self) -> str:
        """The name, or the opcode in hexadecimal where there is no name."""
        return self.name or f"0x{self.opcode:04x}"

    @property
    def refused(self) -> bool:
        """Whether this is a NACK without another meaning."""
        return self.result == "NACK" and self.note is None

    @property
    def is_request(self) -> bool:
        """Whether the card's driver will answer this message."""
        asks = self.direction == "from-vf" and self.result in ("none", "CTS")
        return asks and not self.error


def message_of(event: Mailbox | Virtchnl, drivers: Drivers = DRIVERS) -> Message:
    """Decode an event. The message is not paired with another yet. Never raises on content."""
    protocol = VIRTCHNL_PROTOCOL if isinstance(event, Virtchnl) else WORD_PROTOCOL
    driver = drivers.get(event.driver, Driver(f"driver-{event.driver}", event.driver, protocol))
    if driver.protocol is not protocol:
        # A damaged recording: the record is not one of this driver's.
        driver = Driver(driver.name, driver.number, protocol)
    decoded = protocol.decode(event, driver)
    readable = isinstance(event, Virtchnl) or event.words > 0
    return Message(
        driver=driver.name,
        direction="to-vf" if event.direction == Mailbox.TO_VF else "from-vf",
        opcode=decoded.opcode,
        name=decoded.name if readable else "unreadable",
        arguments=decoded.arguments if readable else {},
        result=decoded.result,
        clear_to_send=decoded.clear_to_send,
        note=decoded.note,
        error=event.ret,
        at_ns=event.at_ns,
        pf=event.pf,
        vf=event.vf,
        role=decoded.role if readable else None,
        answered=decoded.answered,
        quiet=decoded.quiet,
    )


class Pairing:
    """Pairs the requests of one VF with their replies."""

    def __init__(self) -> None:
        self.pending: Message | None = None
        """The request that has no reply yet."""

    def take(self, message: Message) -> Message:
        """Take the next message. A reply is returned with its latency."""
        if message.is_request and message.answered:
            self.pending = message
        elif message.direction == "to-vf" and message.result in ("ACK", "NACK"):
            asked, self.pending = self.pending, None
            if asked is not None and asked.opcode == message.opcode:
                return replace(message, latency_ns=max(0, message.at_ns - asked.at_ns))
        return message
