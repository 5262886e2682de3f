# SPDX-License-Identifier: MIT
"""Reads and writes BPF maps, as bytes or with the compiler's types of their keys and values."""

import contextlib
import ctypes
import errno
import json
import os
import resource
from collections.abc import Iterable, Iterator
from typing import Any

from vftrace.probes.bpf import syscall
from vftrace.probes.bpf.image import Map as MapImage

BATCH = 1024
"""How many entries of a map one system call reads."""

_SCALARS: dict[str, Any] = {
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "unsigned char": ctypes.c_ubyte,
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "unsigned long long": ctypes.c_ulonglong,
}


def described(description: Any) -> Any:
    """Return the ctypes type of a key or value from BCC's description (JSON): a scalar's name, or [name, members,
    kind].

    A member is [name, type], or [name, type, [count]] for an array; an array of characters becomes bytes. BCC calls
    every structure packed and names the holes. Raises KeyError or ValueError for anything else.
    """
    if isinstance(description, str):
        return _SCALARS[description]
    name, members, kind = description
    if kind != "struct_packed":
        raise ValueError(f"{name}: {kind} is not supported")
    fields = [(member, _member(member, *of)) for member, *of in members]
    # Python 3.14 requires _layout_ with _pack_.
    return type(name, (ctypes.Structure,), {"_pack_": 1, "_layout_": "ms", "_fields_": fields})


def _member(name: str, description: Any, count: Any = None) -> Any:
    if count is None:
        return described(description)
    if not isinstance(count, list):
        raise ValueError(f"{name}: only plain members and arrays are supported")
    return described(description) * count[0]


class RawMap:
    """A map with keys and values as bytes."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self.fd = fd
        self._key_size, self._value_size = key_size, value_size

    def __bool__(self) -> bool:
        """Whether the map has an entry."""
        return next(self.items(1), None) is not None

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key; None without an entry."""
        value = ctypes.create_string_buffer(self._value_size)
        return value.raw if self._element(syscall.MAP_LOOKUP, key, value) else None

    def set(self, key: bytes, value: bytes) -> None:
        """Set the value of a key. Raises OSError where there is no room."""
        buffer = ctypes.create_string_buffer(value, self._value_size)
        if not self._element(syscall.MAP_UPDATE, key, buffer):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete the entries of these keys that exist."""
        for key in keys:
            self._element(syscall.MAP_DELETE, key, None)

    def take(self, key: bytes) -> bytes | None:
        """Delete an entry and return its last value; None without an entry, or if the kernel cannot do that (before
        5.14)."""
        value = ctypes.create_string_buffer(self._value_size)
        try:
            return value.raw if self._element(syscall.MAP_LOOKUP_AND_DELETE, key, value) else None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP, 524):  # 524: the kernel's own ENOTSUPP
                return None
            raise

    def items(self, batch: int = BATCH) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many in one system call (Linux 5.6)."""
        start: ctypes.c_uint32 | None = None
        ended = False
        while not ended:
            keys = ctypes.create_string_buffer(batch * self._key_size)
            values = ctypes.create_string_buffer(batch * self._value_size)
            at = ctypes.c_uint32()
            call = syscall.MapBatch(
                in_batch=0 if start is None else ctypes.addressof(start),
                out_batch=ctypes.addressof(at),
                keys=ctypes.addressof(keys),
                values=ctypes.addressof(values),
                count=batch,
                map_fd=self.fd,
            )
            try:
                syscall.bpf(syscall.MAP_LOOKUP_BATCH, call)
            except FileNotFoundError:
                ended = True
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                batch *= 2  # one bucket of the hash has more entries than the buffer holds
                continue
            start = at
            count = call.count
            some_keys = memoryview(keys).cast("B")[: count * self._key_size].tobytes()
            some_values = memoryview(values).cast("B")[: count * self._value_size].tobytes()
            for i in range(count):
                yield (
                    some_keys[i * self._key_size : (i + 1) * self._key_size],
                    some_values[i * self._value_size : (i + 1) * self._value_size],
                )

    def _element(
        self, command: int, key: bytes, value: "ctypes.Array[ctypes.c_char] | None"
    ) -> bool:
        """Make a system call for one entry; False if it does not exist. Raises OSError."""
        buffer = ctypes.create_string_buffer(key, self._key_size)
        call = syscall.MapElement(
            map_fd=self.fd, key=ctypes.addressof(buffer), value=syscall.address(value)
        )
        try:
            syscall.bpf(command, call)
        except FileNotFoundError:
            return False
        return True


class Map:
    """A map whose keys and values have types: `Key` and `Leaf`. A key may also be a plain number."""

    def __init__(self, fd: int, image: MapImage) -> None:
        self.raw = RawMap(fd, image.key_size, image.value_size)
        self.Key = described(json.loads(image.key))
        self.Leaf = described(json.loads(image.value))
        for made, size in ((self.Key, image.key_size), (self.Leaf, image.value_size)):
            if ctypes.sizeof(made) != size:
                raise ValueError(
                    f"{made.__name__}: described as {ctypes.sizeof(made)} bytes of {size}"
                )

    def __getitem__(self, key: Any) -> Any:
        """Return the value of a key. Raises KeyError without an entry."""
        value = self.raw.get(self._bytes(key))
        if value is None:
            raise KeyError(key)
        return self.Leaf.from_buffer_copy(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set the value of a key. Raises OSError where there is no room."""
        self.raw.set(self._bytes(key), bytes(value))

    def __contains__(self, key: Any) -> bool:
        return self.raw.get(self._bytes(key)) is not None

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield all entries with their types."""
        for key, value in self.raw.items():
            yield self.Key.from_buffer_copy(key), self.Leaf.from_buffer_copy(value)

    def _bytes(self, key: Any) -> bytes:
        return bytes(self.Key(key) if isinstance(key, int) else key)


def create(name: str, image: MapImage) -> int:
    """Make a map; returns its fd. Raises OSError.

    Before Linux 5.11 maps count as locked memory, whose limit may be low: then the limit is raised.
    """
    call = syscall.MapCreate(
        map_type=image.kind,
        key_size=image.key_size,
        value_size=image.value_size,
        max_entries=image.max_entries,
        map_flags=image.flags,
        map_name=syscall.object_name(name),
    )
    try:
        return syscall.bpf(syscall.MAP_CREATE, call)
    except PermissionError:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        if resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited:
            raise
        # It raises ValueError or OSError if this process may not raise the limit.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        return syscall.bpf(syscall.MAP_CREATE, call)
