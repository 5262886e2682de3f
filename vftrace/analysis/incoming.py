# SPDX-License-Identifier: MIT
"""A migration as seen on its destination."""

import msgspec


class IncomingMigration(msgspec.Struct):
    """The acts of a destination, from its first one that loads a state."""

    pid: int
    started_paused: bool
    first_act_ns: int
    ran_before: bool = False
    """Whether its vCPUs ran already at its first act: vftrace started late, in postcopy."""
    loaded_at_ns: int | None = None
    clock_asked_at_ns: int | None = None
    clock_set_at_ns: int | None = None
    guest_clock_ns: int | None = None
    running_at_ns: int | None = None
    ended_at_ns: int | None = None
    postcopy_first_ns: int | None = None
    postcopy_last_ns: int | None = None
    postcopy_done_ns: int | None = None
    postcopy_bytes: int = 0
    look_again_ns: int = 0
    """When the tracker next checks whether it has settled."""
