"""The Debian packages of what is committed: built, installed, upgraded and purged."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.needs("root", "mmdebstrap", "unshare", "git")
def test_the_packages_are_installed_upgraded_and_purged() -> None:
    """In a Debian 12 and a Debian 13, where lintian finds no error and purging leaves nothing."""
    done = subprocess.run(
        [ROOT / "tests/clean-machine/deb", "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("installed, used, upgraded and purged") == 2
