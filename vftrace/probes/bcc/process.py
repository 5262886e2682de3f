# SPDX-License-Identifier: MIT
"""Runs the compiler in a process of its own, and finds BCC without importing it."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vftrace.errors import MachineError
from vftrace.probes.bpf.image import Image

INSTALL_BCC = "apt-get install python3-bpfcc   (Fedora: dnf install python3-bcc)"

TIMEOUT_S = 600
"""The timeout of the compiler: in an emulated machine compiling takes half a minute."""

_ROOT = Path(__file__).resolve().parents[3]
"""The directory of the package `vftrace`."""
_SYSTEM = (
    "/usr/lib/python3/dist-packages/bcc",
    f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/bcc",
    f"/usr/lib64/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/bcc",
)
"""The directories in which distributions install BCC's package."""


class CompileError(Exception):
    """BCC did not compile a text. The message is one line, the first of clang's errors if there is one."""


def compile_text(text: str, flags: Sequence[str]) -> Image:
    """Compile a text. Raises CompileError."""
    import subprocess

    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_ROOT), *([inherited] if inherited else [])])
    try:
        done = subprocess.run(
            # -P: do not import from the current directory, which may be anybody's
            [sys.executable, "-P", "-m", "vftrace.probes.bcc.compiler"],
            input=json.dumps({"text": text, "flags": list(flags)}).encode(),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": path},
            timeout=TIMEOUT_S,
            # Ctrl-C is for the waiting process.
            process_group=0,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"the compiler does not run: {error}") from error
    if done.returncode != 0:
        raise CompileError(complaint(done.stderr.decode(errors="replace"), done.returncode))
    try:
        return Image.unpacked(done.stdout)
    except ValueError as error:
        raise CompileError(f"the compiler's answer cannot be read: {error}") from error


def complaint(said: str, code: int) -> str:
    """Return the line of a compiler's output with the reason of its failure."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "LLVM ERROR" in line]
    if errors:
        return errors[0]
    if code < 0:
        return f"the compiler was killed by signal {-code}"
    return lines[-1] if lines else f"the compiler ended with code {code}"


def package() -> Path:
    """Return BCC's Python package, without importing it. Raises MachineError if this Python has none."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        hidden = next((place for place in _SYSTEM if Path(place).is_dir()), None)
        if hidden is not None and sys.prefix != sys.base_prefix:
            raise MachineError(
                f"the virtual environment {sys.prefix} hides the system's BCC ({hidden})",
                fix=f"set include-system-site-packages = true in {sys.prefix}/pyvenv.cfg",
            )
        raise MachineError(
            "BCC's Python bindings are not installed for this Python", fix=INSTALL_BCC
        )
    place = Path(found.origin).parent
    if not (place / "libbcc.py").exists():
        raise MachineError(
            "the bcc that Python finds is PyPI's package of that name, not the BPF compiler",
            fix=f"pip uninstall bcc; {INSTALL_BCC}",
        )
    return place


def version() -> str:
    """Return BCC's version, read from its package. Raises MachineError if this Python has none."""
    try:
        text = (package() / "version.py").read_text()
    except OSError:
        return "unknown version"
    found = re.search(r"__version__\s*=\s*['\"]([^'\"]+)['\"]", text)
    return found[1] if found else "unknown version"
