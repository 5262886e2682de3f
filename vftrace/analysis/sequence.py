# SPDX-License-Identifier: MIT
"""Finds missing records in a sequence of numbered records, in any order of arrival."""

_MAX_MISSING = 4096


class SequenceTracker:
    """The records of one process. `accept` returns whether a record is new, `holes` whether any is missing."""

    def __init__(self, first: int = 0) -> None:
        self.next = first
        """The next number, if no record is missing."""
        self._missing: set[int] = set()
        self._overflow = False

    def accept(self, seq: int) -> bool:
        """Take a record's number; False if the same number was taken before."""
        if seq >= self.next:
            if seq - self.next > _MAX_MISSING:
                self._overflow = True
            else:
                self._missing.update(range(self.next, seq))
            self.next = seq + 1
            return True
        if seq in self._missing:
            self._missing.remove(seq)
            return True
        return False

    def skips_to(self, seq: int) -> bool:
        """Whether records between the latest number and this one are missing."""
        return seq > self.next

    def ends_at(self, next_seq: int) -> None:
        """Take the writer's total number of records."""
        if next_seq > self.next:
            self._overflow = True

    def overflow(self) -> None:
        """Count a record that could not be used as missing."""
        self._overflow = True

    @property
    def holes(self) -> bool:
        """Whether a record is missing."""
        return self._overflow or bool(self._missing)
