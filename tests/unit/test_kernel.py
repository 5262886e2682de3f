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
