# SPDX-License-Identifier: MIT
"""Makes the BPF program's text: one translation unit of the files in bpf/.

BCC rewrites only the main file, so `#include "x.h"` lines are replaced by the
files themselves.
"""

import re
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)

_PACKAGE = Path(__file__).resolve().parent.parent


def bpf_directory() -> Path:
    """Return where the BPF sources are: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "_bpf"
    return installed if installed.is_dir() else _PACKAGE.parent / "bpf"


def program_text(name: str) -> str:
    """Return the text of one program with its own headers in place. Raises FileNotFoundError."""
    text = (bpf_directory() / name).read_text()
    return _INCLUDE.sub(lambda match: program_text(match[1]), text)


def shim_directory() -> Path:
    """Return the directory of the few kernel headers that BCC needs; it is passed as BCC_KERNEL_SOURCE."""
    return bpf_directory() / "shim"
