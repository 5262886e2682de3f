# SPDX-License-Identifier: MIT
"""The entries of the kernel tables that a vftrace process holds, looked at from outside by bpf(2)."""

import ctypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from vftrace.probes.bpf import syscall
from vftrace.probes.bpf.maps import RawMap

GET_FD_BY_ID = 14
"""BPF_MAP_GET_FD_BY_ID."""
TABLES = frozenset((1, 9))
"""BPF_MAP_TYPE_HASH and _LRU_HASH: kinds that entries are added to. Arrays have always the same."""

BY_VM = frozenset(("slot_pages", "channels", "chunks", "touched", "deleted_channels"))
"""Tables whose keys begin with a VM's number."""
BY_PROCESS = frozenset(("vms", "deleted_sums", "sums", "watched_vms", "dma_counts"))
"""Tables whose keys begin with a tgid."""
BY_THREAD = frozenset(("threads", "sending", "walks", "calls", "moving", "device_files"))
"""Tables whose keys are what bpf_get_current_pid_tgid() returns."""
BY_TID = frozenset(("vcpus",))
BY_FD = frozenset(("device_fds", "data_fds", "data_of_device"))
"""Tables whose keys begin with a tgid, of devices."""
NOT_OF_A_VM = {
    "untraced": "by user: counts of the first 64 users whose VMs had no room",
    "owners": "by user: those who have had a VM lately; the collector forgets the others",
    "flows": "by virtual function, of which a host has a few",
    "exportable_words": "set once",
    "calls_in_flight": "the least used is replaced; of functions of a card, not of VMs",
    "sends_in_flight": "the least used is replaced; of functions of a card, not of VMs",
    "resets_in_flight": "the least used is replaced; of functions of a card, not of VMs",
}
WHILE_TRACED = frozenset(("sums", "deleted_sums", "watched_vms", "vcpus"))
"""Tables of the calls and vCPUs of VMs that migrate, which are traced until they have been quiet for 30 s."""
KNOWN = BY_VM | BY_PROCESS | BY_THREAD | BY_TID | BY_FD | NOT_OF_A_VM.keys()

_ID_IN_VM = 7 * 8
"""Where struct vm has its number (bpf/common.h)."""


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * syscall.NAME_BYTES),
    )


def entries(pid: int, others: Iterable[int] = ()) -> Counter[str]:
    """By table of a process: its entries, without those of `others`, which are processes with VMs.

    Raises KeyError for a table that is not in `KNOWN`, which has the owner of each table's entries.
    """
    tables = list(_tables(pid))
    try:
        owners = frozenset(others)
        numbers = {
            value[_ID_IN_VM : _ID_IN_VM + 4]
            for name, table in tables
            if name == "vms"
            for key, value in table.items()
            if int.from_bytes(key, "little") in owners
        }
        found: Counter[str] = Counter()
        for name, table in tables:
            if name in NOT_OF_A_VM:
                continue
            found[name] = sum(not _is_of(name, key, owners, numbers) for key, _ in table.items())
        return found
    finally:
        for _, table in tables:
            os.close(table.fd)


def vms_of(pid: int) -> set[int]:
    """The processes that a vftrace process has as VMs."""
    tables = list(_tables(pid))
    try:
        return {
            int.from_bytes(key, "little")
            for name, table in tables
            if name == "vms"
            for key, _ in table.items()
        }
    finally:
        for _, table in tables:
            os.close(table.fd)


def _is_of(name: str, key: bytes, owners: frozenset[int], numbers: set[bytes]) -> bool:
    if name in BY_VM:
        return key[:4] in numbers
    if name in BY_PROCESS | BY_FD:
        return int.from_bytes(key[:4], "little") in owners
    if name in BY_THREAD:
        return int.from_bytes(key[4:8], "little") in owners
    if name in BY_TID:
        return _tgid_of(int.from_bytes(key[:4], "little")) in owners
    raise KeyError(name)


def _tgid_of(tid: int) -> int | None:
    with suppress(OSError):
        lines = Path(f"/proc/{tid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Tgid:")).split()[1])
    return None


def _tables(pid: int) -> Iterator[tuple[str, RawMap]]:
    """Each table by its own fd here."""
    numbers = set()
    for fd in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            lines = dict(line.split(":", 1) for line in fd.read_text().splitlines() if ":" in line)
            if "map_id" in lines and int(lines["map_type"]) in TABLES:
                numbers.add(int(lines["map_id"]))
    for number in sorted(numbers):
        fd_here = syscall.bpf(GET_FD_BY_ID, syscall.ById(start_id=number))
        info = MapInfo()
        asked = syscall.ObjectInfo(
            bpf_fd=fd_here, info_len=ctypes.sizeof(info), info=ctypes.addressof(info)
        )
        syscall.bpf(syscall.OBJ_GET_INFO, asked)
        names = [name for name in KNOWN if syscall.object_name(name) == info.name]
        if not names:
            os.close(fd_here)
            raise KeyError(info.name.decode())
        yield names[0], RawMap(fd_here, info.key_size, info.value_size)
