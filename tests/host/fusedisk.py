# SPDX-License-Identifier: MIT
"""A file system in memory that is slow or fails on a test's request: FUSE's protocol, in a process of its own.

Where writes take time, the kernel keeps them in its page cache until it has to write them, as with a disk. It keeps, as
the truth of a test, from when to when each fsync waited. Layouts: include/uapi/linux/fuse.h.
"""

import ctypes
import errno
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_SETATTR = struct.Struct("=IIQQQQQQIIIIIIII")
_MAX_WRITE = 128 << 10
_ROOT = 1
_CACHED_S = 3600
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_MTIME = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_BIG_WRITES, _WRITEBACK_CACHE = 1 << 5, 1 << 16


class Op(IntEnum):
    """What the kernel asks for (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


_SILENT = (Op.FORGET, Op.INTERRUPT, Op.BATCH_FORGET)
DISK = (Op.READ, Op.WRITE, Op.CREATE, Op.MKDIR, Op.UNLINK, Op.RENAME, Op.RENAME2, Op.READDIR)
"""The requests that a removed disk refuses."""


@dataclass(eq=False)
class _Node:
    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    children: dict[bytes, "_Node"] = field(default_factory=dict)
    links: int = 1
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = field(default_factory=time.time_ns)

    def attributes(self) -> bytes:
        size, mtime = len(self.data), divmod(self.mtime_ns, 10**9)
        times = (mtime[0],) * 3 + (mtime[1],) * 3
        of_file = (self.mode, self.links, *self.owner, 0, 4096, 0)
        return _ATTR.pack(self.number, size, -(-size // 512), *times, *of_file)


class _Server:
    """Answers the kernel until it is unmounted."""

    def __init__(self, device: int, flush_s: float, s_per_mib: float, log: Path) -> None:
        self._device = device
        self._flush_s = flush_s
        self._s_per_byte = s_per_mib / (1 << 20)
        self._log = log
        self._lock = threading.Lock()
        root = _Node(_ROOT, stat.S_IFDIR | 0o700)
        self._nodes = {_ROOT: root}
        self.failing: frozenset[int] = frozenset()

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode == Op.DESTROY:
                return
            if opcode in self.failing:
                self._reply(unique, errno.EIO)
            elif opcode == Op.FSYNC:
                # Other requests continue meanwhile, as on a disk.
                threading.Thread(target=self._fsync, args=(unique,), daemon=True).start()
            elif opcode not in _SILENT:
                self._reply(unique, self._answer(opcode, node, request[_IN.size :]))

    def _fsync(self, unique: int) -> None:
        began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        time.sleep(self._flush_s)
        ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with self._lock, self._log.open("a") as log:
            log.write(json.dumps([began, ended]) + "\n")
        self._reply(unique, b"")

    def _reply(self, unique: int, answer: bytes | int) -> None:
        error, body = (answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(self._device, _OUT.pack(_OUT.size + len(body), -error, unique) + body)

    def _answer(self, opcode: int, number: int, body: bytes) -> bytes | int:
        node = self._nodes.get(number)
        match opcode:
            case Op.INIT:  # version 7.31
                flags = _BIG_WRITES | (_WRITEBACK_CACHE if self._s_per_byte else 0)
                limits = (65536, flags, 16, 12, _MAX_WRITE, 1, 0, 0, 0)
                return struct.pack("=IIIIHHIIHHI7I", 7, 31, *limits, *[0] * 7)
            case Op.STATFS:
                sizes = (1 << 20, 1 << 20, 1 << 20, 1000, 1000, 4096, 255, 4096, 0)
                return struct.pack("=QQQQQIIII6I", *sizes, *[0] * 6)
            case Op.OPEN | Op.OPENDIR:
                return struct.pack("=QII", 1, 0, 0)
            case Op.RELEASE | Op.FLUSH | Op.RELEASEDIR | Op.ACCESS:
                return b""
        if node is None:
            return errno.ENOENT
        match opcode:
            case Op.GETATTR:
                return self._attributes(node)
            case Op.SETATTR:
                return self._set(node, *_SETATTR.unpack_from(body))
            case Op.READ:
                _, offset, size = struct.unpack_from("=QQI", body)
                return bytes(node.data[offset : offset + size])
            case Op.WRITE:
                _, offset, size = struct.unpack_from("=QQI", body)
                node.data[len(node.data) :] = bytes(max(0, offset - len(node.data)))
                node.data[offset : offset + size] = body[40 : 40 + size]
                node.mtime_ns = time.time_ns()
                time.sleep(size * self._s_per_byte)
                return struct.pack("=II", size, 0)
            case Op.READDIR:
                _, offset, size = struct.unpack_from("=QQI", body)
                return _listed(node, offset, size)
        return self._named(opcode, node, body)

    def _named(self, opcode: int, node: _Node, body: bytes) -> bytes | int:
        """What is about names in a directory."""
        match opcode:
            case Op.LOOKUP:
                found = node.children.get(body.rstrip(b"\0"))
                return errno.ENOENT if found is None else self._entry(found)
            case Op.MKDIR:
                return self._entry(self._made(node, body[8:], stat.S_IFDIR | 0o700))
            case Op.CREATE:
                made = self._made(node, body[16:], stat.S_IFREG | 0o600)
                return self._entry(made) + struct.pack("=QII", 1, 0, 0)
            case Op.UNLINK | Op.RMDIR:
                node.children.pop(body.rstrip(b"\0")).links = 0
                return b""
            case Op.RENAME | Op.RENAME2:
                (into,) = struct.unpack_from("=Q", body)
                old, new, *_ = body[8 if opcode == Op.RENAME else 16 :].split(b"\0")
                moved = node.children.pop(old)
                target = self._nodes[into].children
                if new in target:
                    target[new].links = 0
                target[new] = moved
                return b""
        return errno.ENOSYS

    def _made(self, node: _Node, name: bytes, mode: int) -> _Node:
        made = _Node(max(self._nodes) + 1, mode)
        self._nodes[made.number] = node.children[name.rstrip(b"\0")] = made
        return made

    def _set(self, node: _Node, valid: int, *rest: int) -> bytes:
        size, mtime, mtime_part, mode = rest[2], rest[5], rest[8], rest[10]
        uid, gid = rest[12], rest[13]
        if valid & _SET_SIZE:
            del node.data[size:]
            node.data += bytes(size - len(node.data))
        if valid & _SET_MTIME:
            node.mtime_ns = mtime * 10**9 + mtime_part
        if valid & _SET_MODE:
            node.mode = mode
        node.owner = (
            uid if valid & _SET_UID else node.owner[0],
            gid if valid & _SET_GID else node.owner[1],
        )
        return self._attributes(node)

    @staticmethod
    def _attributes(node: _Node) -> bytes:
        return struct.pack("=QII", _CACHED_S, 0, 0) + node.attributes()

    @staticmethod
    def _entry(node: _Node) -> bytes:
        valid = (_CACHED_S, _CACHED_S, 0, 0)
        return struct.pack("=QQQQII", node.number, 0, *valid) + node.attributes()


def _listed(node: _Node, offset: int, size: int) -> bytes:
    """Entries from this number on, as many as fit."""
    found = b""
    for number, (name, child) in enumerate(list(node.children.items())[offset:], offset + 1):
        kind = stat.S_IFMT(child.mode) >> 12
        entry = struct.pack("=QQII", child.number, number, len(name), kind) + name
        entry += bytes(-len(entry) % 8)
        if len(found) + len(entry) > size:
            break
        found += entry
    return found


@dataclass
class FuseDisk:
    """A mounted file system."""

    path: Path
    _log: Path
    _server: "subprocess.Popen[str]"

    def file(self, size: int) -> Path:
        """Make a file of zeroes."""
        made = self.path / "disk.img"
        made.touch()
        os.truncate(made, size)
        return made

    def flushes(self) -> list[tuple[int, int]]:
        """From when to when each fsync waited (CLOCK_BOOTTIME ns)."""
        lines = self._log.read_text().splitlines()
        return [(began, ended) for began, ended in map(json.loads, lines)]

    def fail(self, *ops: Op) -> None:
        """From now on these fail with EIO, and nothing else does."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(" ".join(str(int(op)) for op in ops) + "\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "failing\n"


@contextmanager
def fuse_disk(directory: Path, flush_s: float = 0.0, s_per_mib: float = 0.0) -> Iterator[FuseDisk]:
    """Mount an empty file system below a directory; each fsync in it takes `flush_s` seconds, and each MiB that is
    written `s_per_mib`."""
    place, log = directory / "fuse", directory / "fuse.log"
    place.mkdir()
    log.touch()
    command = [sys.executable, __file__, *map(str, (place, flush_s, s_per_mib, log))]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        yield FuseDisk(place, log, server)
    finally:
        ctypes.CDLL(None).umount2(str(place).encode(), 2)  # MNT_DETACH
        server.send_signal(signal.SIGTERM)
        server.wait(10)
        place.rmdir()


def _obey(server: _Server) -> None:
    for line in sys.stdin:
        server.failing = frozenset(map(int, line.split()))
        print("failing", flush=True)


def main(place: str, flush_s: str, s_per_mib: str, log: str) -> None:
    """Mount, and serve until the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"fusedisk", place.encode(), b"fuse", 0, options) != 0:
        raise SystemExit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    server = _Server(device, float(flush_s), float(s_per_mib), Path(log))
    threading.Thread(target=_obey, args=(server,), daemon=True).start()
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
