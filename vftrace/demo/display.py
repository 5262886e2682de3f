# SPDX-License-Identifier: MIT
"""A display client: a small RFB (VNC) viewer that looks at nothing, so that QEMU really draws the
guest's screen.
"""

import asyncio
import struct
from contextlib import suppress
from pathlib import Path

from vftrace.demo.qemu import QemuError

_RAW = 0
_DESKTOP_SIZE = -223
"""Pseudo-encoding: the server may change the size of the screen (RFC 6143, 7.8.2)."""


class Viewer:
    """A client of one VNC server; `frames` counts the screen updates it has received."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.frames = 0

    async def watch(self) -> None:
        """Request one update after another until the server closes the connection. Raises QemuError if it
        speaks no RFB.
        """
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            try:
                await self._watch(reader, writer)
            finally:
                writer.close()

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not (await reader.readexactly(12)).startswith(b"RFB 003.008"):
            raise QemuError("the display server does not speak RFB 3.8")
        writer.write(b"RFB 003.008\n")
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x01")  # security: none
        await reader.readexactly(4)
        writer.write(b"\x01")  # share the screen
        width, height, depth = struct.unpack("!HHB15x", await reader.readexactly(20))
        (name_length,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(name_length)
        writer.write(struct.pack("!BxHii", 2, 2, _RAW, _DESKTOP_SIZE))
        incremental = 0
        while True:
            writer.write(struct.pack("!BBHHHH", 3, incremental, 0, 0, width, height))
            incremental = 1
            resized = await self._update(reader, depth // 8)
            if resized:
                width, height = resized
                incremental = 0

    async def _update(
        self, reader: asyncio.StreamReader, pixel_bytes: int
    ) -> tuple[int, int] | None:
        """Read one FramebufferUpdate; the screen's new size if it has changed."""
        resized = None
        kind, rectangles = struct.unpack("!BxH", await reader.readexactly(4))
        if kind != 0:
            raise QemuError(f"the display server sent message {kind} unasked")
        for _ in range(rectangles):
            _, _, width, height, encoding = struct.unpack("!HHHHi", await reader.readexactly(12))
            if encoding == _DESKTOP_SIZE:
                resized = (width, height)
            else:
                await reader.readexactly(width * height * pixel_bytes)
        self.frames += 1
        return resized
