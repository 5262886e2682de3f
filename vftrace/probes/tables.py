# SPDX-License-Identifier: MIT
"""Reads how often the kernel side's tables were full, and deletes the entries of VMs and channels that ended.

The kernel side deletes what it can without a search. Keys of the other tables begin with a VM's id, which is
never used again (struct vm in bpf/common.h), so this module deletes the entries whose VM is no longer in
`vms`. A second after a VM switched off a slot's dirty logging it deletes the channels of closed fds.
"""

import ctypes
import struct
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vftrace.events.layout import Kind
from vftrace.uapi import KVM_CREATE_VM

VMS = "vms"
NAMES = (VMS, "threads", "slot_pages", "channels", "sending", "chunks", "touched")
"""Tables that may be full, in the order of enum table in bpf/common.h."""
BY_VM = ("slot_pages", "channels", "touched", "deleted_channels")
"""Tables whose keys begin with a VM's id; `chunks` too, whose values are too large to read all."""
BY_THREAD = ("threads", "sending")

_COUNTS_OF_VM = {"slot_pages": "nr_slots", "channels": "nr_channels", "chunks": "nr_chunks"}
"""For each table: the member of struct vm that counts its entries."""
_OWNER = struct.Struct(f"={len(NAMES)}Q")

CLEAN_EVERY_S = 1.0
CHUNK_PAGES = 32768
"""The number of pages of a chunk (bpf/dirty_ring.h)."""

_LOG_DIRTY_PAGES = 1
_HEADER = struct.Struct("=20xH2xI4x")
_REGION = struct.Struct("=32x4xI")
"""The kind and the tgid of a record, and the flags of a region call (bpf/wire.h)."""
_CHANNEL_KEY = struct.Struct("=Ii")


class Tables:
    """The tables of the first BPF object."""

    def __init__(self, bpf: Any) -> None:
        self._bpf = bpf
        self._ended = False
        self._log_ended: dict[int, tuple[float, float]] = {}
        """For each process: when its closed channels will be deleted, and when a slot's logging last ended."""
        self._next_clean = 0.0
        self._deleted: Counter[int] = Counter()
        self._raced: Counter[int] = Counter()
        self._full = self.full()
        self._not_counted: dict[int, int] = {}

    def see(self, record: bytes) -> None:
        """Note a kernel record after which entries can be deleted."""
        kind, tgid = _HEADER.unpack_from(record)
        if kind == Kind.EXIT:
            self._ended = True
        elif kind == Kind.REGION and not _REGION.unpack_from(record)[0] & _LOG_DIRTY_PAGES:
            now = time.monotonic()
            due, _ = self._log_ended.get(tgid, (now + CLEAN_EVERY_S, now))
            self._log_ended[tgid] = due, now

    def full(self) -> dict[str, int]:
        """Return for each table the entries for which there was no room so far."""
        counts = self._bpf["full"]
        return {name: int(counts[at].value) for at, name in enumerate(NAMES)}

    def untraced(self) -> dict[int, int]:
        """Return by user the VMs for which the table of VMs had no room so far."""
        return {
            _u32(uid, 0): int.from_bytes(n, "little")
            for uid, n in self._bpf.raw("untraced").items()
        }

    def not_counted(self) -> dict[int, int]:
        """Return for each process the calls and sends for which a table had no room so far."""
        full = self.full()
        if full != self._full or self._raced:
            self._full = full
            at = self._bpf["vms"].Leaf.not_counted.offset
            found = {
                tgid: int.from_bytes(vm[at : at + 8], "little") + self._raced[tgid]
                for tgid, vm in self._vms().items()
            }
            self._not_counted = {tgid: count for tgid, count in found.items() if count}
        return self._not_counted

    def lost(self) -> dict[int, tuple[int, int]]:
        """Return for each process the records, and the parts of bitmaps, for which the ring buffers had no room so
        far."""
        leaf = self._bpf["vms"].Leaf
        places = leaf.lost.offset, leaf.bulk_lost.offset
        found = {}
        for tgid, vm in self._vms().items():
            records, bulk = (int.from_bytes(vm[at : at + 8], "little") for at in places)
            if records or bulk:
                found[tgid] = records, bulk
        return found

    @staticmethod
    def tgid_of(record: bytes) -> int:
        """Return the process that a kernel record is of."""
        return int(_HEADER.unpack_from(record)[1])

    def forget(self, tgid: int) -> None:
        """Delete a VM whose end no record reported."""
        self._bpf.raw("vms").delete([struct.pack("=I", tgid)])
        self._ended = True

    def clean(self) -> None:
        """Delete the entries of VMs and channels that ended, at most once a second."""
        now = time.monotonic()
        due = {tgid for tgid, (at, _) in self._log_ended.items() if at <= now}
        if now < self._next_clean or not (self._ended or due):
            return
        self._next_clean = now + CLEAN_EVERY_S
        if self._ended:
            self._ended = False
            self._delete_ended()
        for tgid in due:
            _, last = self._log_ended.pop(tgid)
            if last + CLEAN_EVERY_S > now:
                # Its fds may still be open.
                self._log_ended[tgid] = last + CLEAN_EVERY_S, last
        ids = self._ids()
        self._delete_closed({ids[tgid]: tgid for tgid in due & ids.keys()})
        self._count_by_user()

    def _count_by_user(self) -> None:
        """Set how many entries each user's VMs have (struct owner in bpf/common.h) from the VMs that exist.

        The kernel side counts meanwhile; a count that is missed is corrected at the next time.
        """
        leaf, deleted = self._bpf["vms"].Leaf, self._deleted
        places = [
            (NAMES.index(table), getattr(leaf, member).offset)
            for table, member in _COUNTS_OF_VM.items()
        ]
        held: dict[int, list[int]] = {}
        for vm in self._vms().values():
            counts = held.setdefault(_u32(vm, leaf.uid.offset), [0] * len(NAMES))
            counts[NAMES.index("vms")] += 1
            counts[NAMES.index("channels")] -= deleted[_u32(vm, leaf.id.offset)]
            for number, at in places:
                counts[number] += int.from_bytes(vm[at : at + 8], "little")
        owners = self._bpf.raw("owners")
        gone = [key for key, _ in owners.items() if _u32(key, 0) not in held]
        owners.delete(gone)
        for uid, counts in held.items():
            owners.set(struct.pack("=I", uid), _OWNER.pack(*(max(0, n) for n in counts)))

    def _vms(self) -> dict[int, bytes]:
        return {int.from_bytes(key, "little"): vm for key, vm in self._bpf.raw("vms").items()}

    def _ids(self) -> dict[int, int]:
        at = self._bpf["vms"].Leaf.id.offset
        return {tgid: int.from_bytes(vm[at : at + 4], "little") for tgid, vm in self._vms().items()}

    def _delete_ended(self) -> None:
        # Read this before `vms`: a VM has its entry there before another table has a key of it.
        by_vm = {name: list(self._bpf.raw(name).items()) for name in BY_VM}
        threads = {name: list(self._bpf.raw(name).items()) for name in BY_THREAD}
        ids = self._ids()
        live = set(ids.values())
        for name, entries in by_vm.items():
            ended = [(k, v) for k, v in entries if int.from_bytes(k[:4], "little") not in live]
            self._bpf.raw(name).delete(key for key, _ in ended)
            if name == "slot_pages":
                self._delete_chunks(ended)
        for name, entries in threads.items():
            self._bpf.raw(name).delete(
                key
                for key, value in entries
                if int.from_bytes(key[4:], "little") not in ids
                and not (name == "threads" and self._creates_vm(value))
            )

    def _creates_vm(self, thread: bytes) -> bool:
        """Whether a thread is inside KVM_CREATE_VM, which is traced before there is a VM."""
        at = self._bpf["threads"].Leaf.cmd.offset
        return int.from_bytes(thread[at : at + 4], "little") == KVM_CREATE_VM

    def _delete_chunks(self, slots: Iterable[tuple[bytes, bytes]]) -> None:
        chunks = self._bpf.raw("chunks")
        if not chunks:
            return
        for key, pages in slots:
            count = -(-int.from_bytes(pages, "little") // CHUNK_PAGES)
            chunks.delete(key + struct.pack("=Q", number) for number in range(count))

    def _delete_closed(self, tgids: dict[int, int]) -> None:
        """Delete the channels of closed fds whose totals were reported. `tgids`: by the VM's id."""
        if not tgids:
            return
        channels, deleted = self._bpf.raw("channels"), self._bpf["deleted_channels"]
        at = self._bpf["channels"].Leaf.changed.offset
        open_fds = {vm: _open_fds(tgid) for vm, tgid in tgids.items()}
        for key, before in list(channels.items()):
            vm, fd = _CHANNEL_KEY.unpack(key)
            fds = open_fds.get(vm)
            if fds is None or fd in fds or any(before[at : at + 8]):
                continue
            after = channels.take(key)
            if after is None:
                continue
            if after != before:
                # The process has opened this fd again and sent on it in this moment.
                self._raced[tgids[vm]] += 1
            self._deleted[vm] += 1
            deleted[ctypes.c_uint32(vm)] = ctypes.c_uint64(self._deleted[vm])


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _open_fds(tgid: int) -> set[int] | None:
    try:
        return {int(place.name) for place in Path(f"/proc/{tgid}/fd").iterdir()}
    except OSError:
        return None
