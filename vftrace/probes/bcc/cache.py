# SPDX-License-Identifier: MIT
"""Keeps compiled programs on disk, so that the same text, flags, kernel and compiler are not compiled twice.

Root loads these files into the kernel, so only root may have written them: the directory and each file must
belong to the effective user and be writable by nobody else, symbolic links are not followed, and all checks are made
on the open file. A user who can put a program there could have run as that user anyway. A file is data, read as JSON
under a checksum, and the kernel's verifier checks the instructions like any others. An unusable file is not an error:
the text is compiled again and the file is replaced.
"""

import contextlib
import errno
import json
import os
import stat

# The module in which hashlib finds it. hashlib and secrets would load OpenSSL, 3.4 MiB that the reader needs for
# nothing else.
from _blake2 import blake2b
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec.structs import asdict

from vftrace.host import systemd
from vftrace.probes.bpf.image import File, Image
from vftrace.probes.text import shim_directory

OFF_VARIABLE = "VFTRACE_NO_CACHE"
PLACE = Path("/var/cache/vftrace")
KEPT = 32
"""How many files are kept, the last used: up to three for each kernel and way to attach, some 40 kB each."""

_FORMAT = 2
_SUFFIX = ".bpf"
# What BCC's result depends on beside its arguments (src/cc/frontends/clang: loader.cc, arch_helper.h).
_VARIABLES = ("ARCH", "BCC_LINUX_VERSION_CODE", "BCC_KERNEL_MODULES_SUFFIX")


def directory() -> Path | None:
    """Return the directory of the programs: systemd's $CACHE_DIRECTORY, else root's; None if they are not kept."""
    if os.environ.get(OFF_VARIABLE):
        return None
    given = systemd.directory("CACHE_DIRECTORY")
    if given is not None:
        return given
    return PLACE if os.geteuid() == 0 else None


def refuses() -> str | None:
    """Return why programs are not kept; None if they are."""
    if directory() is None:
        return f"{OFF_VARIABLE} is set" if os.environ.get(OFF_VARIABLE) else "not root"
    try:
        with _opened() as place:
            writable = os.access(f"/proc/self/fd/{place}", os.W_OK, effective_ids=True)
    except OSError as error:
        return error.strerror
    return None if writable else "not writable"


def key(text: str, flags: Sequence[str], bcc: Path) -> str:
    """Return the key of a program. `bcc`: BCC's Python package. The libraries that compiled it are in the image."""
    shim = shim_directory()
    system = os.uname()
    parts = [
        _FORMAT,
        text,
        list(flags),
        [(str(p.relative_to(shim)), p.read_text()) for p in sorted(shim.rglob("*.h"))],
        [system.machine, system.release, system.version, os.sysconf("SC_NPROCESSORS_CONF")],
        [os.environ.get(name) for name in _VARIABLES],
        asdict(File.of(bcc / "libbcc.py")),
    ]
    return _digest(json.dumps(parts).encode())


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=32).hexdigest()


def read(name: str) -> Image | None:
    """Return the image kept under this key; None if there is no usable one, or if its compiler has changed."""
    try:
        with _opened() as place:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(name + _SUFFIX, flags, dir_fd=place), "rb") as file:
                if not _ours(file.fileno(), stat.S_ISREG):
                    return None
                checksum, _, packed = file.read().partition(b"\n")
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())
        if _digest(packed).encode() != checksum:
            return None
        image = Image.unpacked(packed)
        return image if all(file.unchanged() for file in image.compiler) else None
    except (OSError, ValueError):
        return None


def write(name: str, image: Image) -> None:
    """Keep an image, if it can be written."""
    packed = image.packed()
    checksum = _digest(packed).encode()
    with contextlib.suppress(OSError), _opened() as place:
        temporary = os.urandom(16).hex() + _SUFFIX
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=place)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(checksum + b"\n" + packed)
            os.rename(temporary, name + _SUFFIX, src_dir_fd=place, dst_dir_fd=place)
        except OSError:
            os.unlink(temporary, dir_fd=place)
            raise
        _forget_old(place)


@contextlib.contextmanager
def _opened() -> Iterator[int]:
    """Open the directory, and make it if needed. Raises OSError if there is no usable one."""
    path = directory()
    if path is None:
        raise FileNotFoundError
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _ours(place, stat.S_ISDIR):
            raise PermissionError(errno.EPERM, "of another user, or others may write there")
        yield place
    finally:
        os.close(place)


def _ours(fd: int, is_kind: Callable[[int], bool]) -> bool:
    found = os.fstat(fd)
    others = stat.S_IWGRP | stat.S_IWOTH
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & others


def _forget_old(place: int) -> None:
    names = [name for name in os.listdir(place) if name.endswith(_SUFFIX)]
    names.sort(key=lambda name: os.stat(name, dir_fd=place).st_mtime_ns)
    for name in names[:-KEPT]:
        os.unlink(name, dir_fd=place)
