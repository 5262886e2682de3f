"""BPF objects out of images, and images out of texts. Imports BCC, so only what compiles or loads imports this."""

import atexit
import ctypes
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bcc import BPF, lib
from bcc.table import RingBuf, TableBase

from vftrace.probes.bcc.image import Function, Image, Map

SHARED = ("events", "vms", "lost", "mailbox_seq")
"""Maps of bpf/common.h that all objects have in common: the first one's."""

BATCH = 1024
"""Entries of a map that one system call reads."""

# bcc's libbpf.h and bpf_common.h, the same in 0.26 and 0.37; what its own libbcc.py does not declare.
lib.bcc_create_map.restype = ctypes.c_int
lib.bcc_create_map.argtypes = [ctypes.c_int, ctypes.c_char_p, *[ctypes.c_int] * 4]
lib.bcc_prog_load.restype = ctypes.c_int
lib.bcc_prog_load.argtypes = [
    *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int),
    *(ctypes.c_char_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint),
]
lib.bpf_num_tables.restype = ctypes.c_size_t
lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
lib.bpf_table_name.restype = ctypes.c_char_p
lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def image_of(text: str, flags: Sequence[str]) -> Image:
    """What BCC makes of a text. Raises what it raises: Exception itself."""
    bpf = _Compiler(text=text.encode(), cflags=flags)
    module = bpf.module
    try:
        tables = [lib.bpf_table_name(module, i) for i in range(lib.bpf_num_tables(module))]
        functions = [lib.bpf_function_name(module, i) for i in range(lib.bpf_num_functions(module))]
        names = {lib.bpf_table_fd(module, name): name.decode() for name in tables}
        return Image(
            lib.bpf_module_license(module).decode(),
            {name.decode(): _made(module, name) for name in tables},
            {name.decode(): Function.of(bpf.dump_func(name), names) for name in functions},
        )
    finally:
        bpf.cleanup()
        atexit.unregister(bpf.cleanup)


class RawMap:
    """A hash map, by bytes. BCC's tables know their types, but make a system call for each entry, and
    cannot describe values of bytes."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self._fd, self._key, self._value = fd, key_size, value_size

    def __bool__(self) -> bool:
        """Whether it has an entry."""
        key = ctypes.create_string_buffer(self._key)
        return bool(lib.bpf_get_first_key(self._fd, key, self._key) == 0)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, many in one system call (Linux 5.6)."""
        keys = ctypes.create_string_buffer(BATCH * self._key)
        values = ctypes.create_string_buffer(BATCH * self._value)
        at, count = ctypes.c_uint32(), ctypes.c_uint32()
        start = None
        while True:
            count.value = BATCH
            places = (ctypes.byref(place) for place in (at, keys, values, count))
            ended = lib.bpf_lookup_batch(self._fd, start, *places) != 0
            if ended and ctypes.get_errno() != errno.ENOENT:
                return
            some_keys, some_values = keys.raw, values.raw
            for i in range(count.value):
                yield (
                    some_keys[i * self._key : (i + 1) * self._key],
                    some_values[i * self._value : (i + 1) * self._value],
                )
            if ended:
                return
            start = ctypes.byref(at)

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete the entries that are there."""
        for key in keys:
            lib.bpf_delete_elem(self._fd, key)

    def take(self, key: bytes) -> bytes | None:
        """Delete an entry and return its last value; None where the kernel cannot do that (before 5.14)."""
        value = ctypes.create_string_buffer(self._value)
        done = lib.bpf_lookup_and_delete(self._fd, key, value)
        return value.raw if done == 0 else None


class Object(BPF):  # type: ignore[misc]  # bcc has no types
    """A loaded image. To its users it is what bcc.BPF is, and attaching and detaching are BCC's own."""

    def __init__(self, image: Image, first: "Object | None", *, cached: bool) -> None:
        """Make the maps and attach fentry's functions. `first`: whose shared maps are used. `cached`: whether
        the image was compiled by another process. Raises what BCC raises, with nothing left behind.
        """
        self.cached = cached
        self._image = image
        self._own: dict[str, int] = {}
        self._maps: dict[str, int] = {name: first._maps[name] for name in SHARED} if first else {}
        # What bcc.BPF's own constructor sets beside tables of what is attached.
        self.debug = 0
        self.module = self.tracefile = self._ringbuf_manager = None
        self.funcs: dict[bytes, Any] = {}
        self.tables: dict[Any, Any] = {}
        self.perf_buffers: dict[Any, Any] = {}
        self.open_perf_events: dict[Any, Any] = {}
        atexit.register(self.cleanup)
        try:
            for name in image.maps.keys() - self._maps.keys():
                self._own[name] = self._maps[name] = _make(name, image.maps[name])
            self._attach_fentry()
        except Exception:
            self.cleanup()
            raise

    def __getattr__(self, name: str) -> Any:
        """Each version of BCC has such tables of its own, of what is attached by what."""
        if not name.endswith("_fds"):
            raise AttributeError(name)
        table: dict[Any, Any] = {}
        setattr(self, name, table)
        return table

    def get_table(self, name: str) -> "Table":
        """A map, by `self[name]`. KeyError if there is none."""
        return Table(self, self._maps[name], self._image.maps[name])

    def raw(self, name: str) -> RawMap:
        """A map whose keys and values are bytes. KeyError if there is none."""
        made = self._image.maps[name]
        return RawMap(self._maps[name], made.key_size, made.value_size)

    def load_func(self, func_name: str | bytes, prog_type: int) -> Any:
        """The function as the kernel has it, of that type. Raises Exception, as BCC does."""
        name = func_name.encode() if isinstance(func_name, str) else func_name
        if name in self.funcs:
            return self.funcs[name]
        function = self._image.functions.get(name.decode())
        if function is None:
            raise Exception(f"Unknown program {name!r}")
        code = function.with_maps(self._maps)
        terms = self._image.license.encode()
        fd = lib.bcc_prog_load(prog_type, name, code, len(code), terms, 0, 0, None, 0)
        if fd < 0:
            reason = os.strerror(ctypes.get_errno())
            raise Exception(f"Failed to load BPF program {name!r}: {reason}")
        self.funcs[name] = BPF.Function(self, name, fd)
        return self.funcs[name]

    def close(self) -> None:
        """Close everything; called by `cleanup`, once or again."""
        super().close()
        for fd in self._own.values():
            os.close(fd)
        self._own.clear()

    def _attach_fentry(self) -> None:
        for name in self._image.functions:
            if name.startswith("kfunc__"):
                self.attach_kfunc(fn_name=name.encode())
            elif name.startswith("kretfunc__"):
                self.attach_kretfunc(fn_name=name.encode())


class Table(TableBase):  # type: ignore[misc]
    """A map, as BCC's tables are, but made known by an image."""

    def __init__(self, bpf: Object, fd: int, known: Map) -> None:
        self.bpf = bpf
        self.map_fd = fd
        self.max_entries = known.max_entries
        self.Key = BPF._decode_table_type(json.loads(known.key))
        self.Leaf = BPF._decode_table_type(json.loads(known.value))
        self._cbs: dict[int, Any] = {}

    open_ring_buffer = RingBuf.open_ring_buffer

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.Key(key) if isinstance(key, int) else key)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Any]:
        return iter(TableBase.Iter(self))


class _Compiler(BPF):  # type: ignore[misc]
    """BCC, but nothing is loaded or attached."""

    def _trace_autoload(self) -> None:
        """What bcc.BPF's constructor does last."""


def _made(module: Any, name: bytes) -> Map:
    """A map as the kernel has it (fs/proc/fd.c, kernel/bpf/syscall.c: bpf_map_show_fdinfo)."""
    text = Path(f"/proc/self/fdinfo/{lib.bpf_table_fd(module, name)}").read_text()
    shown = dict(line.split(":\t", 1) for line in text.splitlines())
    return Map(
        int(shown["map_type"]),
        int(shown["key_size"]),
        int(shown["value_size"]),
        int(shown["max_entries"]),
        int(shown["map_flags"], 16),
        lib.bpf_table_key_desc(module, name).decode(),
        lib.bpf_table_leaf_desc(module, name).decode(),
    )


def _make(name: str, m: Map) -> int:
    sizes = (m.key_size, m.value_size, m.max_entries, m.flags)
    fd = int(lib.bcc_create_map(m.kind, name.encode(), *sizes))
    if fd < 0:
        raise Exception(f"Failed to make BPF map {name}: {os.strerror(ctypes.get_errno())}")
    return fd
