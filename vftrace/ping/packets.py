# SPDX-License-Identifier: MIT
"""Makes and reads a probe's payload, and the ICMP header around it (RFC 792, RFC 4443)."""

import struct

import msgspec

COOKIE_BYTES = 8
_PAYLOAD = struct.Struct(f"!{COOKIE_BYTES}sQ")
_ICMP = struct.Struct("!BBHHH")

ECHO_REQUEST, ECHO_REPLY = 8, 0
ECHO6_REQUEST, ECHO6_REPLY = 128, 129


class Packets(msgspec.Struct, frozen=True):
    """Makes and reads the packets of one run; `cookie` distinguishes them from all others."""

    cookie: bytes

    def payload(self, slot: int) -> bytes:
        """Return the payload of a slot's probe, which the reply carries unchanged."""
        return _PAYLOAD.pack(self.cookie, slot)

    def slot_of(self, payload: bytes) -> int | None:
        """Return the slot that a reply answers; None for a foreign packet."""
        if len(payload) < _PAYLOAD.size:
            return None
        cookie, slot = _PAYLOAD.unpack_from(payload)
        return slot if cookie == self.cookie else None

    def echo_request(self, slot: int, version: int) -> bytes:
        """Return an ICMP echo request; the kernel itself fills in the checksum of ICMPv6."""
        kind = ECHO_REQUEST if version == 4 else ECHO6_REQUEST
        # Only switches and firewalls read these two fields; the cookie identifies a reply.
        identifier = int.from_bytes(self.cookie[:2], "big")
        body = self.payload(slot)
        header = _ICMP.pack(kind, 0, 0, identifier, slot & 0xFFFF)
        if version == 4:
            header = _ICMP.pack(kind, 0, checksum(header + body), identifier, slot & 0xFFFF)
        return header + body

    def slot_of_echo(self, packet: bytes, version: int) -> int | None:
        """Return the slot that an ICMP message answers; None if it is not an echo reply to one of our probes."""
        wanted = ECHO_REPLY if version == 4 else ECHO6_REPLY
        if len(packet) < _ICMP.size or packet[0] != wanted or packet[1] != 0:
            return None
        return self.slot_of(packet[_ICMP.size :])


def without_ip_header(packet: bytes) -> bytes:
    """Return what follows the IPv4 header, which a raw IPv4 socket gives too; empty if there is none."""
    if not packet or packet[0] >> 4 != 4:
        return b""
    return packet[(packet[0] & 0xF) * 4 :]


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
