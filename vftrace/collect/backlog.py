# SPDX-License-Identifier: MIT
"""The records that wait in the reader for the main process. If it is full, the bitmaps of the VM that sends most are
dropped."""

from collections import Counter, deque

import msgspec

from vftrace.events import wire

LIMIT = 64 << 20
"""The backlog's limit in bytes of memory: 200 migrations of 4 GiB that begin at once fill half of it."""

OBJECT_BYTES = 64
"""Memory that a record takes besides its bytes: a bytes object's head and its place in a list."""


class Parcel(msgspec.Struct):
    """Records that the reader took at one time, `taken_ns` (CLOCK_BOOTTIME)."""

    taken_ns: int
    records: list[bytes]
    size: int
    first: int = 0
    """The index in `records` of the oldest record that was not removed."""


class Backlog:
    """Parcels in their order of arrival. Without room it drops pieces of bitmaps, and no other records.

    A dropped piece is missing when the pieces of its call are counted, like a piece that did not fit into the ring
    buffer. So the pages of that call count as not known.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._parcels: deque[Parcel] = deque()
        self._size = 0
        self._dropped: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._parcels)

    @property
    def full(self) -> bool:
        """Whether the backlog takes no more records: it is full, and its records may not be dropped."""
        return self._size > self._limit

    @property
    def size(self) -> int:
        """The memory that its records take, in bytes."""
        return self._size

    def add(self, taken_ns: int, records: list[bytes]) -> None:
        """Append records that the reader took."""
        if not records:
            return
        size = sum(map(len, records)) + OBJECT_BYTES * len(records)
        self._parcels.append(Parcel(taken_ns, records, size))
        self._size += size
        if self.full:
            self._drop()

    def take(self, most: int) -> tuple[int, list[bytes]]:
        """Remove the oldest records of one parcel: about `most` bytes, but at least one record.

        Returns when the reader took them, and the records. Raises IndexError if the backlog is empty.
        """
        parcel = self._parcels[0]
        last, size = parcel.first, 0
        while last < len(parcel.records):
            length = len(parcel.records[last])
            if size and size + length > most:
                break
            size += length
            last += 1
        taken = parcel.records[parcel.first : last]
        memory = size + OBJECT_BYTES * len(taken)
        parcel.size -= memory
        self._size -= memory
        parcel.first = last
        if last == len(parcel.records):
            self._parcels.popleft()
        return parcel.taken_ns, taken

    def take_dropped(self) -> Counter[int]:
        """Return for each process the number of records dropped since the last call."""
        dropped, self._dropped = self._dropped, Counter()
        return dropped

    def _drop(self) -> None:
        """Drop all pieces of the VMs that send most until half is free, so that the backlog is not full again at
        once."""
        bulk: Counter[int] = Counter()
        for parcel in self._parcels:
            for record in parcel.records[parcel.first :]:
                if wire.kind_of(record) in wire.BITMAPS:
                    bulk[wire.tgid_of(record)] += len(record) + OBJECT_BYTES
        victims = set()
        wanted = self._size - self._limit // 2
        for tgid, size in bulk.most_common():
            if wanted <= 0:
                break
            victims.add(tgid)
            wanted -= size
        for parcel in self._parcels if victims else ():
            self._drop_of(victims, parcel)

    def _drop_of(self, victims: set[int], parcel: Parcel) -> None:
        kept = []
        for record in parcel.records[parcel.first :]:
            if wire.kind_of(record) in wire.BITMAPS and wire.tgid_of(record) in victims:
                self._dropped[wire.tgid_of(record)] += 1
                parcel.size -= len(record) + OBJECT_BYTES
                self._size -= len(record) + OBJECT_BYTES
            else:
                kept.append(record)
        parcel.records, parcel.first = kept, 0
