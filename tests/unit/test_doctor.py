# SPDX-License-Identifier: MIT
"""The states of `vftrace doctor`: faults, limits and absent hardware."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Self

import pytest

from vftrace.commands import doctor
from vftrace.model.host import ProbeStatus
from vftrace.probes import checks, loader
from vftrace.probes.registry import NO_MIGRATION

ROOT = Path(__file__).parents[2]


class Attached:
    """`Probes` of a host without VFIO and network cards."""

    cached = (True,)
    mailbox = SimpleNamespace(refused=None)
    status = (
        ProbeStatus("ioctl", "fentry"),
        ProbeStatus("channel", None, "not permitted"),
        ProbeStatus("dirty-ring", None, "an old kernel"),
        ProbeStatus("vfio", None, "the vfio module is not loaded", waits=True),
        ProbeStatus("mailbox", None, "no module igb is loaded", waits=True),
        ProbeStatus("calls", None, NO_MIGRATION, waits=True),
    )

    unproved: ClassVar[dict[str, str]] = {"ioctl": "/dev/kvm: Permission denied"}

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_absent_hardware_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "Probes", Attached)
    found = {f.name: f.state for f in doctor._probe_findings(None)}
    assert found["probe ioctl"] == "ok"
    assert found["probe vfio"] == found["probe mailbox"] == "note"
    assert found["probe dirty-ring"] == "warn"
    assert found["probe calls"] == "ok"


def test_what_was_not_seen_to_run_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "Probes", Attached)
    (found,) = [f for f in doctor._probe_findings(None) if f.name == "runs"]
    assert (found.state, found.text) == (
        "note",
        "not proved for ioctl: /dev/kvm: Permission denied",
    )
    assert checks.proved({}).state == "ok"


def test_a_limit_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) != "/dev/kvm" and exists(path))
    found = {f.name: f for f in checks.findings()}
    assert found["32-bit VMMs"].state == "note"
    assert (found["KVM"].state, found["KVM"].fix) == ("note", "modprobe kvm-intel or kvm-amd")


def test_a_device_that_this_user_may_not_open_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert checks._kvm(device).state == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: path != device)
    found = checks._kvm(device)
    assert found.state == "note"
    assert "this user may not open it" in found.text
    assert found.fix is not None


def test_without_root_it_reports_what_is_missing() -> None:
    """It reads files that any user may read, loads no program, and reports what is missing."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": ()} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [sys.executable, "-m", "vftrace", "doctor"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        **nobody,  # type: ignore[call-overload]
    )
    assert done.returncode == 3
    assert re.search(
        r"^bad +privileges .*needs root\n +to fix: run it with sudo$", done.stdout, re.M
    )
    assert done.stderr.startswith("vftrace: vftrace cannot trace here: privileges")
    assert "Traceback" not in done.stdout + done.stderr
    if Path("/dev/kvm").exists():
        opened = subprocess.run(
            ["sh", "-c", "exec 3<>/dev/kvm"],
            capture_output=True,
            check=False,
            **nobody,  # type: ignore[call-overload]
        )
        state = "note" if opened.returncode else "ok"
        assert re.search(rf"^{state} +KVM ", done.stdout, re.M)
