# SPDX-License-Identifier: MIT
"""A learning Ethernet switch between emulated machines (QEMU's `-netdev stream`) and a tap of this machine.

    python3 -m vftlab.switch DIRECTORY PORT ... --tap NAME --address ADDRESS/BITS --log FILE

listens on DIRECTORY/PORT for each port and makes the tap, in the network namespace it runs in. The log
has one JSON object a line whenever an address is received on another port: at_ns (CLOCK_BOOTTIME), mac,
port, before. Frames are dropped, never held back, for a port that is slow.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vftlab.job import boottime_ns

HEADER = struct.Struct("!I")
"""In front of each frame in QEMU's stream: its length (net/stream.c)."""
LEAST_FRAME = 14
MOST_FRAME = 1 << 17
MOST_WAITING = 1 << 18
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


@dataclass
class Table:
    """The port on which each address was last received."""

    ports: dict[bytes, str] = field(default_factory=dict)

    def learn(self, frame: bytes, port: str) -> tuple[bytes, str | None] | None:
        """Return the frame's source and the port on which it was received before, if that was another one."""
        source = frame[6:12]
        before = self.ports.get(source)
        if before == port or source[0] & 1:
            return None
        self.ports[source] = port
        return source, before

    def outputs(self, frame: bytes, port: str, every: list[str]) -> list[str]:
        """Where a frame from `port` goes: to whom it is for if known, else everywhere else."""
        known = self.ports.get(frame[:6])
        if known is not None:
            return [known] if known != port else []
        return [other for other in every if other != port]


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Take the whole frames out of a stream. Raises ValueError at a length that cannot be."""
    at = 0
    while len(buffer) - at >= HEADER.size:
        (length,) = HEADER.unpack_from(buffer, at)
        if length > MOST_FRAME:
            raise ValueError(f"a frame of {length} bytes")
        if len(buffer) - at - HEADER.size < length:
            break
        at += HEADER.size
        yield bytes(buffer[at : at + length])
        at += length
    del buffer[:at]


class Stream:
    """One connected machine's network card."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._in = bytearray()
        self._out = bytearray()
        self.fd = connection.fileno()

    def read(self) -> list[bytes] | None:
        """Frames that have come; None once the machine is gone."""
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self._in += data
        return list(frames(self._in))

    def write(self, frame: bytes) -> None:
        if len(self._out) < MOST_WAITING:
            self._out += HEADER.pack(len(frame)) + frame
        self.flush()

    def flush(self) -> bool:
        """Send what waits; whether something still does."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            del self._out[: self._socket.send(self._out)]
        return bool(self._out)


class Tap:
    """A network device of this machine's namespace."""

    def __init__(self, name: str, address: str) -> None:
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH14x", name.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(self.fd, _TUNSETIFF, request)
        for words in (["addr", "add", address, "dev", name], ["link", "set", name, "up"]):
            subprocess.run(["ip", *words], check=True)

    def read(self) -> list[bytes] | None:
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < 64:
                found.append(os.read(self.fd, 65536))
        return found

    def write(self, frame: bytes) -> None:
        try:
            os.write(self.fd, frame)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EIO, errno.EINVAL):
                raise

    def flush(self) -> bool:
        return False


def serve(listeners: dict[str, socket.socket], tap: Tap, log: IO[str]) -> None:
    """Forward frames until the program is ended."""
    table = Table()
    ports: dict[str, Stream | Tap] = {"tap": tap}
    selector = selectors.DefaultSelector()
    for name, listener in listeners.items():
        selector.register(listener, selectors.EVENT_READ, name)
    selector.register(tap.fd, selectors.EVENT_READ, "tap")

    def forward(frame: bytes, port: str) -> None:
        if len(frame) < LEAST_FRAME:
            return
        moved = table.learn(frame, port)
        if moved is not None:
            mac, before = moved
            entry = {"at_ns": boottime_ns(), "mac": mac.hex(":"), "port": port, "before": before}
            log.write(json.dumps(entry) + "\n")
            log.flush()
        for other in table.outputs(frame, port, list(ports)):
            # The machine on that port may have ended, and the port with it.
            if other in ports:
                ports[other].write(frame)

    while True:
        waiting = [port for port in ports.values() if port.flush()]
        for key, _ in selector.select(0.002 if waiting else None):
            name = str(key.data)
            if key.fileobj is listeners.get(name):
                stream = Stream(listeners[name].accept()[0])
                ports[name] = stream
                selector.register(stream.fd, selectors.EVENT_READ, name)
                continue
            got = ports[name].read()
            if got is None:
                selector.unregister(key.fileobj)
                del ports[name]
                continue
            for frame in got:
                forward(frame, name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="vftlab.switch")
    parser.add_argument("directory", type=Path)
    parser.add_argument("ports", nargs="+")
    parser.add_argument("--tap", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    listeners = {}
    for port in options.ports:
        listeners[port] = socket.socket(socket.AF_UNIX)
        listeners[port].bind(str(options.directory / port))
        listeners[port].listen()
    with options.log.open("w") as log:
        tap = Tap(options.tap, options.address)
        print("ready", flush=True)
        serve(listeners, tap, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
