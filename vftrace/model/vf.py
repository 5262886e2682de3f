# SPDX-License-Identifier: MIT
"""The history of a virtual function as its mailbox shows it: states, settings, resets, latest messages.

| state | reached when |
|---|---|
| absent | no message of the VF was seen yet |
| reset | the VF was reset as a function or requested RESET; also when its driver starts and then stays idle |
| negotiating | RESET was answered, or its driver requests a version or the VF's resources |
| configuring | its driver requests queues, filters, MAC, VLANs |
| up | it sent the requests of a driver whose interface is brought up, and then none for 500 ms |

Times are CLOCK_BOOTTIME nanoseconds.
"""

from typing import Literal

import msgspec

from vftrace.mailbox.driver import Direction, Result, Role
from vftrace.mailbox.message import Message

State = Literal["absent", "reset", "negotiating", "configuring", "up"]


class StateSpan(msgspec.Struct, frozen=True):
    """A state of a VF; `end_at_ns` None while it lasts."""

    name: State
    start_at_ns: int
    end_at_ns: int | None


class Change(msgspec.Struct, frozen=True):
    """A setting of a VF changed: `what` is mac, vlan, max_frame, mode, version ..."""

    at_ns: int
    what: str
    value: str


class LinkReport(msgspec.Struct, frozen=True):
    """The card's driver reported to the VF that its link is up or down (virtchnl's EVENT)."""

    at_ns: int
    up: bool


class Agreement(msgspec.Struct, frozen=True):
    """PF and VF agreed on something beyond their driver's own table, or on a message with a role in a profile.

    Either a request that the card's driver granted (at the time of the reply), or a message that the card's driver
    sent unasked.
    """

    at_ns: int
    title: str
    direction: Direction
    role: Role | None


class VfHistory(msgspec.Struct, frozen=True):
    """What is known of one VF now. Lists hold the latest entries only."""

    pf: str
    vf: int
    address: str | None
    driver: str
    state: State
    since_ns: int | None
    states: tuple[StateSpan, ...]
    settings: tuple[tuple[str, str], ...]
    vlans: tuple[int, ...]
    changes: tuple[Change, ...]
    function_resets: int
    message_resets: int
    keeps_resetting: bool
    unanswered: int
    """Requests that the card's driver did not answer within a second."""
    refused: int
    not_recorded: int
    recent: tuple[Message, ...]
    counts: tuple[tuple[tuple[str, Direction, Result], int], ...]
    """The number of messages by name, direction and result."""
    agreements: tuple[Agreement, ...] = ()
    links: tuple[LinkReport, ...] = ()
    """Empty for ixgbe and igb: a VF of theirs reads its link from a register."""
