# SPDX-License-Identifier: MIT
"""Make the golden recordings of tinyvmm in Cloud Hypervisor's order; its own account is the truth.

    .venv/bin/python tests/golden/record_another_vmm.py

Writes hosts/cloud-hypervisor*.vft.gz and hosts/cloud-hypervisor.json. Needs BPF, /dev/kvm and gcc.
"""

import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "lab")]

from vftlab.tinyvmm import (  # noqa: E402
    TinyVmm,
    cloud_hypervisor,
    cloud_hypervisor_local,
    compiled,
    tiny_vmm,
)

from tests.golden.record import traced  # noqa: E402

RUNS_ON_S = 0.3


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _copied(source: TinyVmm, destination: TinyVmm) -> None:
    cloud_hypervisor(source, destination, free_port())


def _passed_on(source: TinyVmm, destination: TinyVmm) -> None:
    cloud_hypervisor_local(source, destination, f"vftrace-{source.pid}")


PLAYS: dict[str, Callable[[TinyVmm, TinyVmm], None]] = {
    "cloud-hypervisor": _copied,
    "cloud-hypervisor-local": _passed_on,
}


def play(name: str, program: Path) -> dict[str, Any]:
    """Play one migration; returns both sides' accounts."""
    with tiny_vmm(program, protect=0) as source:
        source("run")
        source("pages 30")
        time.sleep(RUNS_ON_S)
        # Cloud Hypervisor's destination makes its VM after the source has connected.
        with tiny_vmm(program, protect=0) as destination:
            PLAYS[name](source, destination)
            source.end()
            time.sleep(RUNS_ON_S)
    return {
        "pids": {"A": [source.pid], "B": [destination.pid]},
        "source": source.log,
        "destination": destination.log,
    }


def record(name: str, program: Path) -> dict[str, Any]:
    """Play one and record it; returns its truth."""
    return traced(HERE / "hosts" / f"{name}.vft.gz", lambda _: play(name, program))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="vftrace-golden-") as made:
        vmm = compiled(Path(made))
        truths = {name: record(name, vmm) for name in PLAYS}
    (HERE / "hosts" / "cloud-hypervisor.json").write_text(json.dumps(truths, indent=1) + "\n")
