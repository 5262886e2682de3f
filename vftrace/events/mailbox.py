# SPDX-License-Identifier: MIT
"""Events of the mailboxes between network cards and their virtual functions."""

from vftrace.events import layout
from vftrace.events.base import Event
from vftrace.events.layout import Kind


class Mailbox(Event, frozen=True):
    """A message in the mailbox between a card's driver (`pf`, its PCI address) and its virtual function `vf`.

    The message had `size` 32-bit words. The first `words` of them were recorded and the others of `word` are 0, because
    keys never leave the kernel. `ret` not 0: the message could not be read. `tgid` and `tid` are 0: a mailbox belongs
    to no process.
    """

    KIND = Kind.MAILBOX
    PROBE = "mailbox"

    pf: str
    driver: int
    vf: int
    direction: int
    size: int
    words: int
    ret: int
    word: tuple[int, ...]

    FROM_VF = layout.FROM_VF
    TO_VF = layout.TO_VF


class Virtchnl(Event, frozen=True):
    """A virtchnl message between a card's driver (`pf`, its PCI address) and its virtual function `vf`.

    The message had `size` bytes. The first `bytes` of them were recorded, little-endian in `word`; the others are 0.
    `status` is the PF's answer. `ret` not 0: the PF's driver could not send it.
    """

    KIND = Kind.VIRTCHNL
    PROBE = "mailbox"

    pf: str
    driver: int
    vf: int
    direction: int
    opcode: int
    status: int
    size: int
    bytes: int
    ret: int
    word: tuple[int, ...]


class VfReset(Event, frozen=True):
    """The card's driver found that a virtual function was reset as a function, not by a message."""

    KIND = Kind.VF_RESET
    PROBE = "mailbox"

    pf: str
    driver: int
    vf: int


class MailboxFlood(Event, frozen=True):
    """Messages of a virtual function that came too fast to be recorded: how many since the last such record."""

    KIND = Kind.MAILBOX_FLOOD

    pf: str
    driver: int
    vf: int
    from_vf: int
    to_vf: int
    resets: int


class VfAddress(Event, frozen=True):
    """The PCI address of a virtual function whose mailbox was seen, read from /sys."""

    KIND = Kind.VF_ADDRESS

    pf: str
    vf: int
    address: str
