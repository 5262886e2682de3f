# SPDX-License-Identifier: MIT
"""Make the golden recordings: play each scenario for real, traced, and keep recording and truth.

    .venv/bin/python tests/golden/record.py [NAME...]     all scenarios if none is named

Writes recordings/NAME.vft.gz and recordings/NAME.truth.json. Needs BPF, /dev/kvm and QEMU.
"""

import gzip
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vftrace.demo.scenarios import SCENARIOS, run_scenario

Played = TypeVar("Played")

RECORDINGS = Path(__file__).parent / "recordings"


def traced(target: Path, play: Callable[[Path], Played]) -> Played:
    """Play something in this process, with a directory for it, while `vftrace record` runs in another.

    The recording becomes `target`, packed.
    """
    with tempfile.TemporaryDirectory(prefix="vftrace-golden-") as directory:
        raw = Path(directory) / "trace.vft"
        tracer = subprocess.Popen(
            [sys.executable, "-m", "vftrace", "record", "-o", str(raw)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        try:
            if tracer.stderr.readline().strip() != "ready":
                raise SystemExit(f"vftrace record did not start: {tracer.stderr.read()}")
            truth = play(Path(directory))
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(60)
        with target.open("wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
            packed.write(raw.read_bytes())
        print(
            f"{target.name}: {raw.stat().st_size} bytes, {target.stat().st_size} packed", flush=True
        )
    return truth


def record(name: str) -> None:
    """Play and record one scenario, and write its truth beside the recording."""
    target = RECORDINGS / f"{name}.vft.gz"
    truth = traced(target, lambda directory: run_scenario(name, directory, lambda _: None))
    (RECORDINGS / f"{name}.truth.json").write_text(truth.to_json() + "\n")


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    for scenario in sys.argv[1:] or SCENARIOS:
        record(scenario)
