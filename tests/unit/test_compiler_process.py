# SPDX-License-Identifier: MIT
"""The compiler as a process: the messages if it is missing, hidden, a wrong package, or does not compile."""

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vftrace.errors import MachineError
from vftrace.probes import checks
from vftrace.probes.bcc import process
from vftrace.probes.bcc.process import CompileError, compile_text, complaint
from vftrace.probes.bpf import object as bpf_object
from vftrace.probes.bpf.image import Function, Image, Map

IMAGE = Image("GPL", {"vms": Map(1, 4, 8, 16, 0, '"int"', '"long"')}, {"walk": Function(b"", ())})

# What clang 14 prints for a text that it does not take; BCC's exception is the last line.
CLANG = """\
/virtual/main.c:1:7: error: expected parameter declarator
int x(
      ^
1 error generated.
error: Failed to compile BPF module <text>
"""


NO_LIBRARY = "OSError: libbcc.so.0: cannot open shared object file: No such file or directory"
LLVM = "LLVM ERROR: A call to built-in function 'memset' is not supported.\n"


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of Python's search path; no distribution's BCC is found."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(process, "_SYSTEM", ())
    return tmp_path


def _package(place: Path, *files: str) -> Path:
    bcc = place / "bcc"
    bcc.mkdir()
    for name in ("__init__.py", *files):
        (bcc / name).write_text(
            "raise ImportError('nobody may import this')\n__version__ = '0.31.0'\n"
        )
    return bcc


def test_bcc_is_found_without_importing_it(search: Path) -> None:
    place = _package(search, "libbcc.py", "version.py")
    assert process.package() == place
    assert process.version() == "0.31.0"


def test_no_bcc(search: Path) -> None:
    with pytest.raises(MachineError, match="not installed for this Python") as caught:
        process.package()
    assert caught.value.fix == process.INSTALL_BCC


def test_another_package_of_that_name(search: Path) -> None:
    _package(search)
    with pytest.raises(MachineError, match="PyPI's package of that name"):
        process.version()


def test_a_virtual_environment_that_hides_the_systems_bcc(
    search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "usr").mkdir()
    system = _package(tmp_path / "usr")
    monkeypatch.setattr(process, "_SYSTEM", ("/nowhere/bcc", str(system)))
    monkeypatch.setattr(sys, "prefix", "/opt/vftrace")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    with pytest.raises(MachineError) as caught:
        process.package()
    assert str(caught.value) == (
        f"the virtual environment /opt/vftrace hides the system's BCC ({system})"
    )
    assert caught.value.fix == (
        "set include-system-site-packages = true in /opt/vftrace/pyvenv.cfg"
    )


@pytest.mark.parametrize(
    ("said", "code", "line"),
    [
        (CLANG, 1, "/virtual/main.c:1:7: error: expected parameter declarator"),
        ("error: Unknown program\n", 1, "error: Unknown program"),
        (
            f"Traceback (most recent call last):\n  File ...\n{NO_LIBRARY}\n",
            1,
            NO_LIBRARY,
        ),
        (LLVM, -6, "LLVM ERROR: A call to built-in function 'memset' is not supported."),
        ("", -9, "the compiler was killed by signal 9"),
        ("", 3, "the compiler ended with code 3"),
    ],
)
def test_one_line_has_the_reason(said: str, code: int, line: str) -> None:
    assert complaint(said, code) == line


def test_what_is_asked_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Sequence[str], dict[str, Any]]] = []

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append((command, options))
        return subprocess.CompletedProcess(command, 0, IMAGE.packed(), b"a warning")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert compile_text("int x;", ["-DA"]) == IMAGE
    ((command, options),) = asked
    assert command == [sys.executable, "-P", "-m", "vftrace.probes.bcc.compiler"]
    assert json.loads(options["input"]) == {"text": "int x;", "flags": ["-DA"]}
    root = Path(process.__file__).parents[3]
    assert options["env"]["PYTHONPATH"] == f"{root}:/elsewhere"


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", IMAGE.packed()[:-1]])
def test_an_answer_that_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, answer, b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(CompileError, match="cannot be read"):
        compile_text("", [])


def test_a_compiler_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, process.TIMEOUT_S)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(CompileError, match="timed out"):
        compile_text("", [])


def test_doctor_reports_that_bcc_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a library of it is missing: its version is known all the same, and what is kept is loaded."""

    def fails(_text: str, _flags: Sequence[str]) -> Image:
        raise CompileError(NO_LIBRARY)

    monkeypatch.setattr(process, "version", lambda: "0.31.0")
    monkeypatch.setattr(process, "compile_text", fails)
    found = checks._bcc()
    assert (found.state, found.text) == ("warn", f"0.31.0 does not compile: {NO_LIBRARY}")


@pytest.mark.parametrize(
    ("lockdown", "more"),
    [
        (
            "none integrity [confidentiality]\n",
            ": the kernel is locked down (confidentiality): BPF may not read its memory",
        ),
        ("none [integrity] confidentiality\n", ""),
        ("", ""),
    ],
)
def test_a_locked_down_kernel_is_named(
    lockdown: str, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/sys/kernel/security/lockdown as security/lockdown/lockdown.c (lockdown_read) writes it."""
    monkeypatch.setattr(bpf_object, "_LOCKDOWN", tmp_path / "lockdown")
    if lockdown:
        (tmp_path / "lockdown").write_text(lockdown)
    error = OSError(errno.EINVAL, "Invalid argument")
    said = str(bpf_object._refused("the kernel refuses walk", error))
    assert said == f"the kernel refuses walk (Invalid argument){more}"
