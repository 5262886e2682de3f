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
from pathlib import Path

from vftrace.demo.scenarios import SCENARIOS, run_scenario

RECORDINGS = Path(__file__).parent / "recordings"


def record(name: str) -> None:
    """One scenario: `vftrace record` in a process of its own, the scenario in this one."""
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
            truth = run_scenario(name, Path(directory), lambda _: None)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)
        target = RECORDINGS / f"{name}.vft.gz"
        with target.open("wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
            packed.write(raw.read_bytes())
        (RECORDINGS / f"{name}.truth.json").write_text(truth.to_json() + "\n")
        print(f"{name}: {raw.stat().st_size} bytes, {target.stat().st_size} packed", flush=True)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    for scenario in sys.argv[1:] or SCENARIOS:
        record(scenario)
