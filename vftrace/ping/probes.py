# SPDX-License-Identifier: MIT
"""Resolves the address, sends probes and reads replies with the kernel's time stamps.

ICMP: a raw socket (CAP_NET_RAW), else a ping socket (net.ipv4.ping_group_range). UDP: an echo
service. TCP: a connection attempt for each probe, answered by SYN-ACK or by RST, both of which come
from the guest's kernel; a single connection would measure TCP's own retransmission timer (200 ms
and more after a loss of 20 ms) and not the gap.
"""

import contextlib
import errno
import ipaddress
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from vftrace.errors import MachineError, UsageError, VftraceError
from vftrace.ping.packets import COOKIE_BYTES, ECHO6_REPLY, ECHO_REPLY, Packets, without_ip_header

ICMP, UDP, TCP = "icmp", "udp", "tcp"
PROTOCOLS = (ICMP, UDP, TCP)
ECHO_PORT = 7

# include/uapi/asm-generic/socket.h, include/uapi/linux/icmp.h, include/uapi/linux/icmpv6.h
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33
_SOL_RAW, _ICMP_FILTER = 255, 1
_ICMPV6_FILTER = 1

_RECEIVE_BUFFER = 4 << 20
_LONGEST_REPLY = 2048
_CONTROL_SPACE = 64
_TIMESPEC = struct.Struct("@qq")

SYN_RETRY_NS = 900_000_000
"""A SYN is sent again after 1 s (TCP_TIMEOUT_INIT): a probe ends before that, so that an answer
always belongs to its only SYN."""

_SPARE_FDS = 64
_CLOCK_TRIES, _CLOCK_SPREAD_NS = 3, 5_000
_OLDEST_STAMP_NS = 60_000_000_000

OWN_ERRORS = frozenset(
    (errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)
)
"""Errors of sending that the pinger's own host causes: the slot counts as missed, not as lost."""


class Target(msgspec.Struct, frozen=True):
    """The target: `name` as given, `address` in numbers, `sockaddr` for connect(2)."""

    name: str
    address: str
    version: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


class Pinger(Protocol):
    """A kind of probe; made before the fork, used by the sending process."""

    def fileno(self) -> int:
        """Return the fd that becomes readable when there are replies."""

    def send(self, slot: int) -> None:
        """Send one probe; raises OSError."""

    def receive(self, latest_ns: int) -> list[tuple[int, int]]:
        """Return (slot, CLOCK_MONOTONIC ns) of the replies that arrived.

        `latest_ns` bounds the time of replies without a time stamp of the kernel. Raises OSError for
        errors that ICMP reported on the socket.
        """


def resolve(name: str, protocol: str, port: int, version: int | None) -> Target:
    """Resolve the address; raises VftraceError if none fits."""
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    _check_literal(name, version)
    family = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[version]
    try:
        found = socket.getaddrinfo(name, port, family, kind)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        wanted = "" if version is None else f" with an IPv{version} address"
        raise VftraceError(f"cannot find {name!r}{wanted}: {reason}") from error
    got, _, _, _, sockaddr = found[0]
    address = str(sockaddr[0])
    plain = ipaddress.ip_address(address.partition("%")[0])
    if plain.is_multicast or plain.is_unspecified or address == "255.255.255.255":
        raise UsageError(f"{address} is not the address of one machine")
    return Target(name, address, 4 if got == socket.AF_INET else 6, sockaddr)  # type: ignore[arg-type]


def _check_literal(name: str, version: int | None) -> None:
    try:
        literal = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return
    if version is not None and literal.version != version:
        raise UsageError(f"{name} is an IPv{literal.version} address: leave -{version} out")


def open_pinger(target: Target, protocol: str, interval_ns: int, timeout_ns: int) -> Pinger:
    """Open the sockets; raises MachineError or VftraceError with the fix."""
    packets = Packets(os.urandom(COOKIE_BYTES))
    if protocol == TCP:
        return TcpPinger(target, interval_ns, min(timeout_ns, SYN_RETRY_NS))
    if protocol == UDP:
        opened = _prepared(socket.socket(target.family, socket.SOCK_DGRAM), target)
        return DatagramPinger(opened, packets.payload, packets.slot_of)
    return _open_icmp(target, packets)


def _open_icmp(target: Target, packets: Packets) -> "DatagramPinger":
    version = target.version
    number = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    raw = True
    try:
        opened = socket.socket(target.family, socket.SOCK_RAW, number)
    except PermissionError:
        raw = False
        try:
            opened = socket.socket(target.family, socket.SOCK_DGRAM, number)
        except PermissionError as error:
            raise MachineError(
                "no permission to send ICMP: run as root, or use --protocol udp or tcp",
                'sysctl -w net.ipv4.ping_group_range="0 2147483647"',
            ) from error
    if raw and version == 4:
        pass_only = ~(1 << ECHO_REPLY) & 0xFFFF_FFFF
        opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("@I", pass_only))
    elif raw:
        blocked = [0xFFFF_FFFF] * 8
        blocked[ECHO6_REPLY // 32] &= ~(1 << ECHO6_REPLY % 32)
        opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("@8I", *blocked))

    def slot_of(packet: bytes) -> int | None:
        # A ping socket returns the ICMP message without the IP header, also for IPv4.
        message = without_ip_header(packet) if raw and version == 4 else packet
        return packets.slot_of_echo(message, version)

    return DatagramPinger(
        _prepared(opened, target), lambda slot: packets.echo_request(slot, version), slot_of
    )


def _prepared(opened: socket.socket, target: Target) -> socket.socket:
    """Connect a socket (to get ICMP errors and no foreign packets), and set time stamps and buffers for a burst."""
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    # The plain option is capped by net.core.rmem_max; CAP_NET_ADMIN may pass it.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    with contextlib.suppress(PermissionError):
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    try:
        opened.connect(target.sockaddr)
    except OSError as error:
        raise _unreachable(target.address, error) from error
    return opened


def _unreachable(address: str, error: OSError) -> VftraceError:
    """Return the error for an address that cannot be pinged at all."""
    hint = ""
    if error.errno == errno.EINVAL and ipaddress.ip_address(address).is_link_local:
        hint = f" (a link-local address needs its interface: {address}%eth0)"
    return VftraceError(f"cannot reach {address}: {error.strerror}{hint}")


class DatagramPinger:
    """ICMP and UDP: one connected socket."""

    def __init__(
        self,
        opened: socket.socket,
        request: Callable[[int], bytes],
        slot_of: Callable[[bytes], int | None],
    ) -> None:
        self._socket = opened
        self._request = request
        self._slot_of = slot_of

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def send(self, slot: int) -> None:
        """Send one probe; raises OSError."""
        packet = self._request(slot)
        try:
            self._socket.send(packet)
        except OSError as error:
            if error.errno in OWN_ERRORS:
                raise
            # The error may belong to an earlier probe and wait on the socket; then this probe has
            # not been sent yet.
            self._socket.send(packet)

    def receive(self, latest_ns: int) -> list[tuple[int, int]]:
        """Read all waiting replies; raises OSError for errors that ICMP reported."""
        replies: list[tuple[int, int]] = []
        realtime_offset_ns = _realtime_offset_ns()
        while True:
            try:
                packet, control, _, _ = self._socket.recvmsg(_LONGEST_REPLY, _CONTROL_SPACE)
            except BlockingIOError:
                return replies
            except OSError:
                # The next call raises it again if it persists; the read replies must not be lost.
                if replies:
                    return replies
                raise
            slot = self._slot_of(packet)
            if slot is not None:
                replies.append((slot, _stamp(control, realtime_offset_ns, latest_ns)))


def _stamp(control: list[tuple[int, int, bytes]], realtime_offset_ns: int, latest_ns: int) -> int:
    """Return when the kernel received a packet, on CLOCK_MONOTONIC; its own stamp is CLOCK_REALTIME."""
    now_ns = time.monotonic_ns()
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, ns = _TIMESPEC.unpack_from(data)
            stamp_ns = int(seconds) * 1_000_000_000 + int(ns) - realtime_offset_ns
            # If the wall clock was set in between, the time of reading is the best estimate.
            return stamp_ns if 0 <= now_ns - stamp_ns <= _OLDEST_STAMP_NS else now_ns
    return min(now_ns, latest_ns)


def _realtime_offset_ns() -> int:
    """Return CLOCK_REALTIME - CLOCK_MONOTONIC, from two readings between which nothing else ran."""
    for _ in range(_CLOCK_TRIES):
        before_ns = time.monotonic_ns()
        realtime_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        if after_ns - before_ns <= _CLOCK_SPREAD_NS:
            break
    return realtime_ns - (before_ns + after_ns) // 2


class TcpPinger:
    """A connection attempt for each probe, aborted (RST) as soon as it is answered."""

    def __init__(self, target: Target, interval_ns: int, give_up_ns: int) -> None:
        self._target = target
        self._give_up_ns = give_up_ns
        self._epoll = select.epoll()
        self._attempts: dict[int, tuple[socket.socket, int, int]] = {}
        self._answered: list[tuple[int, int]] = []
        _allow_open_files(give_up_ns // interval_ns + _SPARE_FDS)

    def fileno(self) -> int:
        """An epoll of the attempts' sockets."""
        return self._epoll.fileno()

    def send(self, slot: int) -> None:
        """Start one attempt; raises OSError."""
        now_ns = time.monotonic_ns()
        self._give_up(now_ns)
        attempt = socket.socket(self._target.family, socket.SOCK_STREAM)
        attempt.setblocking(False)
        # Closing sends RST: no TIME_WAIT, which would use up the ports.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        result = attempt.connect_ex(self._target.sockaddr)
        if result in (0, errno.ECONNREFUSED):
            self._answered.append((slot, time.monotonic_ns()))
            attempt.close()
        elif result == errno.EINPROGRESS:
            self._attempts[attempt.fileno()] = (attempt, slot, now_ns)
            self._epoll.register(attempt.fileno(), select.EPOLLOUT)
        else:
            attempt.close()
            raise OSError(result, os.strerror(result))

    def receive(self, latest_ns: int) -> list[tuple[int, int]]:
        """Return the answered attempts, which have no time stamp of the kernel."""
        replies, self._answered = self._answered, []
        self._give_up(time.monotonic_ns())
        for number, _ in self._epoll.poll(0):
            attempt, slot, _ = self._attempts.pop(number)
            result = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if result in (0, errno.ECONNREFUSED):
                replies.append((slot, min(time.monotonic_ns(), latest_ns)))
            attempt.close()
        return replies

    def _give_up(self, now_ns: int) -> None:
        while self._attempts:
            number, (oldest, _, started_ns) = next(iter(self._attempts.items()))
            if now_ns - started_ns <= self._give_up_ns:
                return
            del self._attempts[number]
            oldest.close()


def _allow_open_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise MachineError(
            f"too many open files for this interval: {wanted} wanted, {hard} allowed",
            f"ulimit -n {wanted}   (or a longer --interval)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
