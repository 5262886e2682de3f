# SPDX-License-Identifier: MIT
"""Attached programs that the kernel does not run are noticed. A program that was detached behind its object's back
stands for one on a function whose entry the kernel has disabled: it counts as attached, and never runs."""

import os
import time
from typing import Any

import pytest

from vftrace.errors import MachineError
from vftrace.events import Event, VmCreated, wire
from vftrace.probes import loader, proof
from vftrace.probes.attach import attach_all
from vftrace.probes.bpf.events import Attached
from vftrace.probes.registry import CHANNEL, IOCTL, TRACEPOINT, Way


def without(function: str) -> Any:
    """`attach_all`, after which the kernel does not run `function`."""

    def attach(bpf: Any, way: Way) -> str | None:
        reason = attach_all(bpf, way)
        for (place, name), attached in bpf._attached.items():
            if name == function:
                attached.close()
                bpf._attached[place, name] = Attached(os.open(os.devnull, os.O_RDONLY))
        return reason

    return attach


@pytest.mark.parametrize(
    "function",
    ["tp_ioctl_enter", "tp_ioctl_exit", "tp_write_exit", "tp_sendto_enter", "tp_process_exit"],
)
def test_a_program_that_does_not_run_is_an_error(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "attach_all", without(function))
    with pytest.raises(MachineError, match=f"attached, but the kernel does not run {function}"):
        loader.Probes(lambda _: None, TRACEPOINT)


def test_all_run() -> None:
    with loader.Probes(lambda _: None, TRACEPOINT) as probes:
        assert probes.unproved == {}
        assert {s.method for s in probes.status if s.name in (IOCTL.name, CHANNEL.name)} == {
            TRACEPOINT
        }


def test_the_vm_that_proves_it_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of KVM are proved with a VM of this process; here the tracepoints are, which other VMs do not need."""
    proofs = dict(proof.PROOFS)
    of_tracepoint = proofs[IOCTL.name, TRACEPOINT]
    proofs[IOCTL.name, TRACEPOINT] = proof.Proof(proof._ask_kvm, of_tracepoint.programs)
    monkeypatch.setattr(proof, "PROOFS", proofs)
    own: list[Event] = []

    def on_record(record: bytes) -> None:
        event = wire.decode(record)
        if event.tgid == os.getpid():
            own.append(event)

    with loader.Probes(on_record, TRACEPOINT) as probes:
        assert probes.unproved == {}
        while not probes.poll(10):
            pass
        assert own == []
        assert os.getpid() not in probes.streams()
        # Only the proof's VM is left out.
        proof._ask_kvm()
        until = time.monotonic() + 5
        while not own and time.monotonic() < until:
            probes.poll(10)
        assert isinstance(own[0], VmCreated)
