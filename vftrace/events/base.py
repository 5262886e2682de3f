# SPDX-License-Identifier: MIT
"""The base class of all events."""

from typing import ClassVar

import msgspec

from vftrace.events.layout import Kind

NO_PROCESS = 0
"""`tgid` of records that belong to no process: mailboxes."""

COLLECTOR = 0xFFFF_FFFF
"""`tgid` of records that the collector writes itself: ticks, clock samples, identities of processes."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One record: `at_ns` (CLOCK_BOOTTIME), `seq`, and the process and thread that it is about.

    `seq` counts the records of one process, so that a loss shows as a hole. Field names are those of
    the uAPI structures that the values were read from. `ret` is what the ioctl returned, a negative
    errno on failure. The garbage collector does not track events, because nothing in an event refers back
    to it, and a recording has a million events.
    """

    KIND: ClassVar[Kind | None] = None
    """The name of its records in bpf/wire.h."""

    PROBE: ClassVar[str] = "collector"
    """The probe that sends it, by the name that `vftrace doctor` prints; `collector`: vftrace's own reader."""

    at_ns: int
    seq: int
    tgid: int
    tid: int


class Unknown(Event, frozen=True):
    """A record of a kind that this version does not know, or one that does not fit its kind's layout."""

    PROBE = "unknown"

    kind: int
