# SPDX-License-Identifier: MIT
"""Types that describe a PF driver: its number, its functions, its structures and its messages.

A driver is one file of this package, and one value of `Driver`. Everything else reads that value: the probes attach
to its functions, the kernel side gets its offsets and what may leave the kernel of each message, and the decoder
looks its messages up.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Literal

import msgspec

from vftrace.events import Mailbox, Virtchnl

Words = tuple[int, ...]
Value = int | str | bool
Arguments = dict[str, Value]
Reader = Callable[[Words], Arguments]
"""Reads the arguments from a message's words, padded with zeroes to the mailbox's size."""

Direction = Literal["from-vf", "to-vf"]
Result = Literal["ACK", "NACK", "CTS", "none"]

Role = Literal["stop", "save", "restore", "resume"]
"""The part of a message in a mailbox-assisted migration. stop: the card stops the VF, or the VF's driver reports that
it stops. save, restore: the VF's state is saved with the source's card and restored with the destination's. resume:
the VF continues."""


class Stage(Enum):
    """The step in a VF's life that a request belongs to."""

    RESET = "reset"
    NEGOTIATE = "negotiate"
    PREPARE = "prepare"
    """The VF's driver starts. It sends these requests also while its interface stays down."""
    UP = "up"
    """The VF is up once the request is granted."""
    DOWN = "down"
    """The VF is idle once the request is granted."""
    OPEN = "open"
    """The VF's interface is brought up."""
    ANY = "any"


def nothing(_words: Words) -> Arguments:
    """Read a message without arguments."""
    return {}


def refusal(_words: Words) -> None:
    """Explain a NACK that is a refusal: there is no other meaning."""
    return


def always(meaning: str) -> Callable[[Words], str | None]:
    """Give every NACK of a message the same meaning."""
    return lambda _words: meaning


class Opcode(msgspec.Struct, frozen=True):
    """One message of a driver: how to read its arguments, and how much of it may leave the kernel.

    `request` and `reply` read the arguments from the first `*_size` words (virtchnl: bytes); nothing else leaves the
    kernel.
    `counted`: u16 values follow from word 1, their number in bits 23:16 of word 0. `request_key`, `reply_key`: a key
    follows the words. `normal_nack` returns the meaning of a NACK that is not a refusal. Only messages of a profile
    have a `role`.
    """

    name: str
    stage: Stage = Stage.ANY
    request: Reader = nothing
    request_size: int = 1
    reply: Reader = nothing
    reply_size: int = 1
    counted: bool = False
    request_key: bool = False
    reply_key: bool = False
    normal_nack: Callable[[Words], str | None] = refusal
    role: Role | None = None
    answered: bool = True
    """Whether the PF driver answers the request."""
    quiet: bool = False
    """Whether the message is too frequent to be shown; it is counted only."""


class HookedFunction(msgspec.Struct, frozen=True):
    """A function of the driver, and the programs of bpf/mailbox.bpf.c that run at its entry and at its return."""

    function: str
    parameters: tuple[str, ...]
    """The function's first parameters, by their names in the driver's source. The programs read arguments by
    position, so vftrace attaches only where the module's BTF has the same names."""
    entry: str | None = None
    at_return: str | None = None
    optional: bool = False
    """Some kernels may lack the function."""


class Decoded(msgspec.Struct, frozen=True):
    """What a message's bytes mean. `name` None: the driver's table lacks the opcode.

    `result`: ACK or NACK for a reply; else CTS where the card's driver set "clear to send"; else none. `note` is the
    meaning of a NACK that is not a refusal.
    """

    opcode: int
    name: str | None
    arguments: Arguments
    result: Result
    clear_to_send: bool = False
    note: str | None = None
    role: Role | None = None
    answered: bool = True
    quiet: bool = False


class Protocol(ABC):
    """The shape of a driver's messages: how to decode them, and what may leave the kernel."""

    @abstractmethod
    def decode(self, event: Mailbox | Virtchnl, driver: "Driver") -> Decoded:
        """Decode one message. Never raises on content."""

    @abstractmethod
    def exportable(self, driver: "Driver") -> dict[int, int]:
        """The rules of the map `exportable_words` (bpf/mailbox.h): how much of each message may leave the kernel."""


class Driver(msgspec.Struct, frozen=True):
    """Everything vftrace knows about a PF driver. Its `name` is also its module's."""

    name: str
    number: int
    """`driver` of the events (bpf/wire.h, enum vft_driver)."""
    protocol: Protocol
    opcodes: Mapping[int, Opcode] = msgspec.field(default_factory=dict)
    hooks: tuple[HookedFunction, ...] = ()
    layout: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Fields of `struct layout` (bpf/mailbox.h), each an offset: the sum of the offsets of these members, written
    `structure.member`. They differ between kernels and are read from BTF."""


Drivers = Mapping[int, Driver]
"""Drivers by number."""
