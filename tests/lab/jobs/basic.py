# SPDX-License-Identifier: MIT
"""Jobs about the machine itself."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

from vftlab.job import Job, JobError, boottime_ns, say


def hello(job: Job) -> None:
    """The machine boots, and has what the others need: kernel, BTF, BCC, cards, shares."""
    import bcc

    up_s = boottime_ns() / 1e9
    facts = {
        "up_s": up_s,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "bcc": bcc.__version__,
        "btf": Path("/sys/kernel/btf/vmlinux").exists(),
        "igb": Path("/sys/bus/pci/devices/0000:01:00.0").exists(),
        "tree": Path("/src/tests/lab").is_dir(),
        "svm": "svm" in Path("/proc/cpuinfo").read_text(),
    }
    for name, value in facts.items():
        say(f"{name}: {value}")
    say(subprocess.run(["uname", "-a"], capture_output=True, text=True, check=True).stdout.strip())
    job.write_truth({"machine": facts})
    missing = [name for name in ("btf", "igb", "tree", "svm") if not facts[name]]
    if missing:
        raise JobError(f"the machine lacks {', '.join(missing)}")


JOBS: dict[str, Callable[[Job], None]] = {"hello": hello}
