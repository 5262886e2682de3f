"""A file system with one file whose fsync, or whose writes, take a set time: the kernel's FUSE protocol, in a process
of its own. Where writes take time, the kernel keeps them in its page cache until it has to write them, as with a disk.

Beside the file's content it keeps, as the truth of a test, from when to when each fsync waited.
Layouts: include/uapi/linux/fuse.h.
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
from pathlib import Path

NAME = b"disk.img"
FILE, ROOT = 2, 1
_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = (
    1,
    2,
    3,
    4,
    14,
    15,
    16,
    17,
    18,
    20,
)
FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY = 25, 26, 27, 29, 34, 36, 38
BATCH_FORGET = 42
_SILENT = (FORGET, INTERRUPT, BATCH_FORGET)
MAX_WRITE = 128 << 10


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SlowDisk:
    """Answers the kernel until it is unmounted."""

    def __init__(self, device: int, size: int, flush_s: float, s_per_mib: float, log: Path) -> None:
        self._device = device
        self._data = bytearray(size)
        self._flush_s = flush_s
        self._s_per_byte = s_per_mib / (1 << 20)
        self._log = log
        self._lock = threading.Lock()

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, MAX_WRITE + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode == DESTROY:
                return
            if opcode == FSYNC:
                # Others go on meanwhile, as on a disk.
                threading.Thread(target=self._fsync, args=(unique,), daemon=True).start()
            elif opcode not in _SILENT:
                self._reply(unique, self._answer(opcode, node, request[_IN.size :]))

    def _fsync(self, unique: int) -> None:
        began = boottime_ns()
        time.sleep(self._flush_s)
        with self._lock, self._log.open("a") as log:
            log.write(json.dumps([began, boottime_ns()]) + "\n")
        self._reply(unique, b"")

    def _reply(self, unique: int, answer: bytes | int) -> None:
        error, body = (answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(self._device, _OUT.pack(_OUT.size + len(body), -error, unique) + body)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        match opcode:
            case 26:  # INIT: version 7.31, no options
                flags = 1 << 5  # FUSE_BIG_WRITES
                if self._s_per_byte:
                    flags |= 1 << 16  # FUSE_WRITEBACK_CACHE
                return struct.pack(
                    "=IIIIHHIIHHI7I", 7, 31, 65536, flags, 16, 12, MAX_WRITE, 1, 0, 0, 0, *[0] * 7
                )
            case 1:  # LOOKUP
                if body.rstrip(b"\0") != NAME:
                    return errno.ENOENT
                return struct.pack("=QQQQII", FILE, 0, 3600, 3600, 0, 0) + self._attributes(FILE)
            case 3 | 4:  # GETATTR, SETATTR
                return struct.pack("=QII", 3600, 0, 0) + self._attributes(node)
            case 14 | 27:  # OPEN, OPENDIR
                return struct.pack("=QII", 1, 0, 0)
            case 15:  # READ
                _, offset, size = struct.unpack_from("=QQI", body)
                return bytes(self._data[offset : offset + size])
            case 16:  # WRITE
                _, offset, size = struct.unpack_from("=QQI", body)
                self._data[offset : offset + size] = body[40 : 40 + size]
                time.sleep(size * self._s_per_byte)
                return struct.pack("=II", size, 0)
            case 17:  # STATFS
                return struct.pack(
                    "=QQQQQIIII6I", 1000, 1000, 1000, 10, 10, 4096, 255, 4096, 0, *[0] * 6
                )
            case 18 | 25 | 29 | 34:  # RELEASE, FLUSH, RELEASEDIR, ACCESS
                return b""
        return errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        size = len(self._data) if node == FILE else 0
        mode = stat.S_IFREG | 0o600 if node == FILE else stat.S_IFDIR | 0o700
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextmanager
def slow_disk(
    directory: Path, size: int, flush_s: float, s_per_mib: float = 0.0
) -> Iterator[tuple[Path, Path]]:
    """Mount it on a directory; yields the file, and the log with one line for each fsync: when it came, when it was
    answered (CLOCK_BOOTTIME ns)."""
    place, log = directory / "slow", directory / "slow.log"
    place.mkdir()
    log.touch()
    words = map(str, (place, size, flush_s, s_per_mib, log))
    command = [sys.executable, __file__, *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        yield place / NAME.decode(), log
    finally:
        ctypes.CDLL(None).umount2(str(place).encode(), 2)  # MNT_DETACH
        server.send_signal(signal.SIGTERM)
        server.wait(10)
        place.rmdir()


def flushes(log: Path) -> list[tuple[int, int]]:
    """From when to when each fsync waited."""
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def main(place: str, size: str, flush_s: str, s_per_mib: str, log: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"slowdisk", place.encode(), b"fuse", 0, options) != 0:
        raise SystemExit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    SlowDisk(device, int(size), float(flush_s), float(s_per_mib), Path(log)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
