# SPDX-License-Identifier: MIT
"""What vftrace reads of the running kernel."""

from pathlib import Path

import pytest

from vftrace.errors import MachineError
from vftrace.probes import kernel


def test_tracefs_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """tracefs has mode 0700: without root, doctor names the way out instead of an OSError."""

    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(MachineError, match="only root may read it") as raised:
        kernel.tracefs()
    assert raised.value.fix == "run it with sudo"


@pytest.mark.parametrize(
    ("paranoid", "needs"), [("-1", False), ("2", False), ("3", True), ("4", True)]
)
def test_perf_events_of_debians_kernels_need_more(
    paranoid: str, needs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 is Debian's default; seen with 6.12: EACCES with CAP_PERFMON alone."""
    monkeypatch.setattr(kernel, "_PARANOID", tmp_path / "perf_event_paranoid")
    assert not kernel.perf_events_need_admin()
    (tmp_path / "perf_event_paranoid").write_text(f"{paranoid}\n")
    assert kernel.perf_events_need_admin() is needs
