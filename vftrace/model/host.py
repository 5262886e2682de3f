"""The traced host, and how it is traced."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HostInfo:
    """Where a recording was made; `probes` maps each probe to the way it was attached; `profiles` are the texts
    of the mailbox profiles it was made with."""

    name: str
    boot_id: str
    kernel: str
    vftrace: str
    started_at_ns: int
    probes: dict[str, str]
    profiles: tuple[str, ...] = ()
