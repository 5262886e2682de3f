"""What a driver's table is made of: the messages it knows, and what their words mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

ACK, NACK, CTS = 0x8000_0000, 0x4000_0000, 0x2000_0000
"""Bits of word 0 (ixgbe_mbx.h, e1000_mbx.h: IXGBE_VT_MSGTYPE_*, E1000_VT_MSGTYPE_*)."""

Words = tuple[int, ...]
Value = int | str | bool
Arguments = dict[str, Value]
Reader = Callable[[Words], Arguments]
"""Gets at least as many words as its message has (missing ones are 0)."""


Role = Literal["stop", "save", "restore", "resume"]
"""What a message is for where PF and VF help a migration: the VF is told to stop, or its driver says that it
does; its state is saved with the PF, restored with the destination's; the VF goes on."""


class Stage(Enum):
    """What a message says of where its VF is in its life."""

    RESET = "reset"
    NEGOTIATE = "negotiate"
    PREPARE = "prepare"
    """Asked by a driver that starts, also when nobody brings the interface up."""
    OPEN = "open"
    """Asked when the interface is brought up."""
    ANY = "any"


def nothing(_words: Words) -> Arguments:
    """A message without arguments."""
    return {}


def refusal(_words: Words) -> None:
    """A NACK is a refusal."""
    return


def always(meaning: str) -> Callable[[Words], str | None]:
    """Every NACK of a message means this."""
    return lambda _words: meaning


@dataclass(frozen=True)
class Opcode:
    """One message. `request` and `reply` read the arguments; `*_words` is how many words each has.

    No word beyond those leaves the kernel. `counted`: u16 values from word 1 on, as many as bits 23:16 of
    word 0 say. `request_key`, `reply_key`: a key stands behind the words. `normal_nack`: what a NACK of
    these words means where it is no refusal. `role`: only messages of a profile have one.
    """

    name: str
    stage: Stage = Stage.ANY
    request: Reader = nothing
    request_words: int = 1
    reply: Reader = nothing
    reply_words: int = 1
    counted: bool = False
    request_key: bool = False
    reply_key: bool = False
    normal_nack: Callable[[Words], str | None] = refusal
    role: Role | None = None


@dataclass(frozen=True)
class Table:
    """A driver's messages by opcode (the low 16 bits of word 0)."""

    driver: str
    number: int
    """`driver` of the events (bpf/wire.h, enum vft_driver)."""
    opcodes: Mapping[int, Opcode] = field(default_factory=dict)


def info(words: Words) -> int:
    """Bits 23:16 of word 0, which some messages use."""
    return words[0] >> 16 & 0xFF


def mac(words: Words, at: int = 1) -> str:
    """A MAC address: six bytes from word `at` on, in the order they have in memory."""
    octets = (words[at].to_bytes(4, "little") + words[at + 1].to_bytes(4, "little"))[:6]
    return ":".join(f"{octet:02x}" for octet in octets)


def hashes(words: Words) -> tuple[int, str]:
    """How many multicast hashes a message says it has, and those that were recorded."""
    flat = [half for word in words[1:] for half in (word & 0xFFFF, word >> 16)]
    return info(words), " ".join(f"{value:03x}" for value in flat[: info(words)])
