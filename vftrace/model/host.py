# SPDX-License-Identifier: MIT
"""The traced host, the probes on it, and the reader process."""

import msgspec


class ProbeStatus(msgspec.Struct, frozen=True):
    """How a probe is attached.

    `method` is None if it is not attached. `reason` is why not, or why the methods that were tried first failed.
    `waits`: it is not attached only because the module or tracepoint that it needs does not exist yet.
    """

    name: str
    method: str | None
    reason: str | None = None
    waits: bool = False


class HostInfo(msgspec.Struct, frozen=True):
    """The host on which a recording was made; `profiles` are the texts of the mailbox profiles in use."""

    name: str
    boot_id: str
    kernel: str
    vftrace: str
    started_at_ns: int
    probes: tuple[ProbeStatus, ...]
    profiles: tuple[str, ...] = ()


class ReaderUse(msgspec.Struct, frozen=True):
    """The reader process: its CPU time and memory so far, None if they cannot be read. `lateness_ns` is the age of the
    oldest record that the reader has read and the main process has not decoded yet."""

    lateness_ns: int
    cpu_ns: int | None = None
    resident_bytes: int | None = None
