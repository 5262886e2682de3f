# SPDX-License-Identifier: MIT
"""Writes records about changes of the host's interfaces and bridges."""

from collections.abc import Callable

from vftrace import events
from vftrace.collect.batch import Intake
from vftrace.host import netlink

MAX_A_SECOND = 200
"""How many events of interfaces and bridges are recorded per second; further ones are only counted."""


class NetworkWatch:
    """Reads rtnetlink; `pids` returns the VMMs, which may own a port's tap."""

    def __init__(self, intake: Intake, pids: Callable[[], tuple[int, ...]]) -> None:
        self._intake = intake
        self._pids = pids
        self._listener = netlink.Listener()
        self._links: dict[int, netlink.LinkState] = {}
        self._left = MAX_A_SECOND
        self._missed = self._reported = 0

    def read(self) -> None:
        """Write the notifications since the last call."""
        for found in self._listener.read():
            if isinstance(found, netlink.LinkState) and not self._has_changed(found):
                continue
            if self._left == 0:
                self._missed += 1
                continue
            self._left -= 1
            if isinstance(found, netlink.LinkState):
                self._write_link(found)
            else:
                self._write_address(found)

    def begin_second(self) -> None:
        """Begin a new second with the full number of events."""
        self._left = MAX_A_SECOND

    def report_missed(self) -> None:
        """Write how many events were not recorded, if more than before."""
        missed = self._missed + self._listener.lost
        if missed != self._reported:
            self._reported = missed
            self._intake.write(events.NetMissed, count=missed)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _has_changed(self, link: netlink.LinkState) -> bool:
        """Whether something that is recorded changed: the kernel notifies of much else."""
        if self._links.get(link.index) == link:
            return False
        self._links[link.index] = link
        if link.gone:
            del self._links[link.index]
        return True

    def _write_link(self, link: netlink.LinkState) -> None:
        self._intake.write(
            events.NetLink,
            interface=link.name,
            mac=link.mac,
            master=netlink.name_of(link.master) if link.master else None,
            up=link.up,
            carrier=link.carrier,
            gone=link.gone,
        )

    def _write_address(self, learned: netlink.Learned) -> None:
        port = netlink.name_of(learned.port)
        self._intake.write(
            events.NetAddress,
            mac=learned.mac,
            port=port,
            bridge=netlink.name_of(learned.bridge),
            gone=learned.gone,
            pid=netlink.tap_owner(port, self._pids()),
        )
