# SPDX-License-Identifier: MIT
"""Reads the kernel's rtnetlink notifications about network interfaces and bridges. It sends no requests.

Layouts: include/uapi/linux/rtnetlink.h, if_link.h, neighbour.h. A bridge notifies when it learns an address, receives
it on another port, or forgets it (net/bridge/br_fdb.c, fdb_notify), not at each frame.
"""

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

PROC = Path("/proc")

_RTMGRP_LINK, _RTMGRP_NEIGH = 1, 4
_NLMSGHDR = struct.Struct("=IHHII")
_IFINFOMSG = struct.Struct("=BxHiII")
_NDMSG = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_NEWLINK, _DELLINK, _NEWNEIGH, _DELNEIGH = 16, 17, 28, 29
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER = 1, 3, 10
_NDA_LLADDR, _NDA_MASTER = 2, 9
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_NUD_PERMANENT = 0x80
_TYPE_MASK = 0x3FFF
_ALIGN = 4
_MAC = 6
_DATAGRAM = 1 << 16
_MOST_AT_ONCE = 256


class LinkState(msgspec.Struct, frozen=True):
    """An interface: `up` is its administrative state, `carrier` whether it has a link, `master` the ifindex of its
    bridge or bond (0 for none), `gone` whether it was removed."""

    index: int
    name: str
    mac: str
    master: int
    up: bool
    carrier: bool
    gone: bool


class Learned(msgspec.Struct, frozen=True):
    """A bridge's entry for an address: the bridge learned it on the interface `port`, or with `gone` forgot it."""

    mac: str
    port: int
    bridge: int
    gone: bool


Notification = LinkState | Learned


def parse(datagram: bytes) -> Iterator[Notification]:
    """Yield the notifications in the result of one read, without cut or unknown ones and a bridge's own addresses."""
    at = 0
    while at + _NLMSGHDR.size <= len(datagram):
        length, kind, *_ = _NLMSGHDR.unpack_from(datagram, at)
        if length < _NLMSGHDR.size or at + length > len(datagram):
            return
        body = datagram[at + _NLMSGHDR.size : at + length]
        at += _aligned(length)
        found: Notification | None = None
        if kind in (_NEWLINK, _DELLINK) and len(body) >= _IFINFOMSG.size:
            found = _link(body, gone=kind == _DELLINK)
        elif kind in (_NEWNEIGH, _DELNEIGH) and len(body) >= _NDMSG.size:
            found = _learned(body, gone=kind == _DELNEIGH)
        if found is not None:
            yield found


def _link(body: bytes, *, gone: bool) -> LinkState | None:
    family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    # A bridge also sends notifications about its ports, in its own family.
    if family != socket.AF_UNSPEC:
        return None
    own = _attributes(body[_IFINFOMSG.size :])
    return LinkState(
        index=index,
        name=own.get(_IFLA_IFNAME, b"").split(b"\0")[0].decode(errors="replace"),
        mac=own.get(_IFLA_ADDRESS, b"").hex(":"),
        master=_number(own.get(_IFLA_MASTER)),
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        gone=gone,
    )


def _learned(body: bytes, *, gone: bool) -> Learned | None:
    family, port, state, _, _ = _NDMSG.unpack_from(body)
    own = _attributes(body[_NDMSG.size :])
    mac = own.get(_NDA_LLADDR, b"")
    if family != socket.AF_BRIDGE or state & _NUD_PERMANENT or len(mac) != _MAC:
        return None
    return Learned(mac.hex(":"), port, _number(own.get(_NDA_MASTER)), gone)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def _number(value: bytes | None) -> int:
    return int.from_bytes(value, "little") if value is not None else 0


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


class Listener:
    """A socket that receives the notifications. `lost`: how often so far notifications did not fit."""

    def __init__(self) -> None:
        self.lost = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_NEIGH))

    def read(self) -> list[Notification]:
        """Return the notifications that have arrived, without waiting, but not more than one poll should process."""
        found: list[Notification] = []
        while len(found) < _MOST_AT_ONCE:
            try:
                found += parse(self._socket.recv(_DATAGRAM))
            except BlockingIOError:
                break
            except OSError:
                # ENOBUFS: the kernel dropped some notifications; later ones arrive.
                self.lost += 1
                break
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def name_of(index: int) -> str:
    """Return an interface's name; its number if it no longer exists."""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return str(index)


def tap_owner(name: str, pids: Iterable[int]) -> int | None:
    """Return which of these processes has the tap of that name (`iff:` in its fdinfo, drivers/net/tun.c)."""
    wanted = f"iff:\t{name}"
    for pid in pids:
        try:
            entries = list((PROC / str(pid) / "fdinfo").iterdir())
        except OSError:
            continue
        for entry in entries:
            with contextlib.suppress(OSError):
                if wanted in entry.read_text().splitlines():
                    return pid
    return None
