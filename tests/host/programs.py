# SPDX-License-Identifier: MIT
"""Compiles the programs that play VMMs on this machine."""

import subprocess
from pathlib import Path


def compiled(source: Path, directory: Path) -> Path:
    """Compile a C file into a directory; returns the program."""
    program = directory / source.stem
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    return program
