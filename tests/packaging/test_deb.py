# SPDX-License-Identifier: MIT
"""What is committed as Debian packages and as an image: built, installed and used where nothing else is."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> str:
    done = subprocess.run(
        [ROOT / words[0], *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("root", "mmdebstrap", "unshare", "git")
def test_the_packages_are_installed_upgraded_and_purged() -> None:
    """In a Debian 12 and a Debian 13, where lintian finds no error and purging leaves nothing."""
    said = run("tests/clean-machine/deb", "--quick")
    assert said.count("installed, used, upgraded and purged") == 2


@pytest.mark.needs("root", "mmdebstrap", "unshare", "git", "runc", "bpf", "kvm", "qemu", "curl")
def test_the_image_traces_as_the_cluster_runs_it() -> None:
    """A read-only root, five capabilities, the host's pids; in pids of its own it refuses and names the remedy."""
    said = run("tests/clean-machine/image")
    assert "without hostPID: 2 lines, with the remedy" in said
    assert "traced completely by the container" in said
