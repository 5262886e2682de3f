"""The traced host, and how it is traced."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """How a probe is attached.

    `method` is None if it is not; `reason` then says why, else why the methods that were tried first failed.
    `waits`: it is not attached only because what it watches is not there yet.
    """

    name: str
    method: str | None
    reason: str | None = None
    waits: bool = False


@dataclass(frozen=True)
class HostInfo:
    """Where a recording was made; `profiles` are the texts of the mailbox profiles it was made with."""

    name: str
    boot_id: str
    kernel: str
    vftrace: str
    started_at_ns: int
    probes: tuple[ProbeStatus, ...]
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReaderUse:
    """The reader process: its CPU time and memory so far, None where they cannot be read; `lateness_ns` is the age of
    the oldest record that it took and that was not decoded yet."""

    lateness_ns: int
    cpu_ns: int | None = None
    resident_bytes: int | None = None
