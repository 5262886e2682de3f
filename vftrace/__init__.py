"""vftrace: where the time of a live migration goes, seen from the host with BPF."""

__version__ = "0.1.0"
