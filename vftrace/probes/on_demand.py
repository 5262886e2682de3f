# SPDX-License-Identifier: MIT
"""Attaches probes only while they are needed, because they cost time on the whole host."""

import threading
import time
from typing import Any

from vftrace.model.host import ProbeStatus
from vftrace.probes.attach import attach_all, detach_all, first_line, programs
from vftrace.probes.machine import thread_flags
from vftrace.probes.programs import compiled
from vftrace.probes.registry import NO_MIGRATION, TRACEPOINT, Probe, status_of

LINGER_NS = 2_000_000_000
"""How long the probes stay attached after the last use, so that the next migration need not wait until the kernel has
detached them."""


class OnDemand:
    """The BPF object of one probe. `status` has the reason if it cannot be loaded or attached."""

    def __init__(self, probe: Probe, text: str, first: Any) -> None:
        """Load the programs of a text in bpf/. `first`: the BPF object whose ring buffer is used."""
        self.bpf: Any = None
        self._probe = probe
        self._attached = False
        self._reason: str | None = NO_MIGRATION
        self._detaching: threading.Thread | None = None
        self._left_ns = 0
        try:
            self.bpf = compiled(text, thread_flags(), first)
            for program, kind in programs(probe.ways[0]).items():
                self.bpf.load(program, kind)
        except Exception as error:
            self._reason = first_line(error)
            self.close()

    @property
    def status(self) -> ProbeStatus:
        """How the probes are attached now."""
        method = TRACEPOINT if self._attached else None
        return status_of(self._probe, method, None if self._attached else self._reason)

    @property
    def cached(self) -> tuple[bool, ...]:
        """Whether the programs came from the cache; empty without programs."""
        return () if self.bpf is None else (self.bpf.cached,)

    def attach(self) -> int | None:
        """Attach the probes; returns how long that took, ns, 0 if they were attached, None if the kernel refuses."""
        if self._attached:
            return 0
        begun = time.monotonic_ns()
        self._await_detached()
        self._reason = attach_all(self.bpf, self._probe.ways[0])
        self._attached = self._reason is None
        return time.monotonic_ns() - begun if self._attached else None

    def left(self) -> None:
        """Note that one user no longer needs the probes."""
        self._left_ns = time.monotonic_ns()

    def detach_unused(self, *, used: bool) -> None:
        """Detach the probes if they have not been used for a while.

        This happens in a thread: for each tracepoint the kernel waits until no CPU runs it
        (tracepoint_synchronize_unregister), 0.2 to 0.4 s for all of them, and the reader must not wait.
        """
        if used or not self._attached or time.monotonic_ns() - self._left_ns < LINGER_NS:
            return
        self._attached = False
        self._reason = NO_MIGRATION
        arguments = (self.bpf, self._probe.ways[0])
        self._detaching = threading.Thread(target=detach_all, args=arguments, daemon=True)
        self._detaching.start()

    def close(self) -> None:
        """Detach everything."""
        self._await_detached()
        if self.bpf is not None:
            self.bpf.cleanup()
        self.bpf = None
        self._attached = False

    def _await_detached(self) -> None:
        if self._detaching is not None:
            self._detaching.join()
            self._detaching = None
