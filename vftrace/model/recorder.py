# SPDX-License-Identifier: MIT
"""The state of a flight recorder."""

import msgspec


class RecorderState(msgspec.Struct, frozen=True):
    """`files` and `bytes` (on the disk) are in its directory now; the others count since it began.

    `lost_files`: recordings that are missing or incomplete. `write_errors`: writes that failed.
    """

    files: int
    bytes: int
    lost_files: int
    write_errors: int
