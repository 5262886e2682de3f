"""How a flight recorder does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecorderState:
    """`files` and `bytes` (on the disk) are in its directory now; the others count since it began.

    `lost_files`: recordings that are missing, or of which something is. `write_errors`: what the disk refused.
    """

    files: int
    bytes: int
    lost_files: int
    write_errors: int
