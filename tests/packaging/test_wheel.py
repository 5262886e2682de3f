# SPDX-License-Identifier: MIT
"""The wheel, installed where no checkout is: it must run, and carry the BPF sources."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import vftrace
from vftrace.cli import available_commands

ROOT = Path(__file__).resolve().parents[2]

# bcc belongs to the system's Python, and .venv is made from it.
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without the network: the backend is one of our dev tools."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; returns its directory."""
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run(
        [SYSTEM_PYTHON, "-m", "venv", "--system-site-packages", "--without-pip", venv], check=True
    )
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True
    )
    return venv


def run_installed(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed `vftrace` away from the checkout.

    Its dependencies are borrowed from this environment, so that no network is needed. The checkout
    does not come along: an editable install is a .pth file, which PYTHONPATH does not obey.
    """
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "COLUMNS": "200"}
    return subprocess.run(
        [venv / "bin/vftrace", *arguments],
        cwd=venv,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def committed(*paths: str) -> set[str]:
    """The files git knows below these paths of the checkout, relative to its top."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", *paths], check=True, capture_output=True, text=True
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_wheel_carries_the_package_and_the_bpf_sources(wheel: Path) -> None:
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    bpf = {name.replace("bpf/", "vftrace/_bpf/", 1) for name in committed("bpf")}
    assert committed("vftrace") | bpf <= carried
    assert all(name.startswith("vftrace/") for name in carried)


def test_it_runs_from_the_wheel(installed: Path) -> None:
    ended = run_installed(installed, "--version")
    version, _, parts = ended.stdout.partition(" (")
    assert (version, ended.stderr) == (f"vftrace {vftrace.__version__}", "")
    # the wheel knows the commit it was built from, far from any checkout
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert commit.startswith(parts.split(",")[0].removeprefix("commit ").rstrip("+"))
    assert ended.returncode == 0


def test_it_is_the_wheel_that_runs(installed: Path) -> None:
    where = subprocess.run(
        [installed / "bin/python", "-c", "import vftrace; print(vftrace.__file__)"],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)


@pytest.mark.parametrize("command", available_commands())
def test_every_command_has_what_it_imports(installed: Path, command: str) -> None:
    ended = run_installed(installed, command, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"usage: vftrace {command}")


@pytest.mark.skipif("doctor" not in available_commands(), reason="this version has no doctor")
@pytest.mark.needs("bpf")
def test_doctor_attaches_probes_from_the_wheel(installed: Path) -> None:
    # Only with the BPF sources found and compiled can it say that this machine will do.
    ended = run_installed(installed, "doctor")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
