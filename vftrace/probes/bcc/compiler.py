# SPDX-License-Identifier: MIT
"""Compiles one program text with BCC; the only module that imports it.

This is a program of its own (`python -m vftrace.probes.bcc.compiler`): BCC brings clang and LLVM, more than 100 MB that
the long-running process does not need. It reads a request from standard input and writes the image to standard output
(`process.py`). clang's messages go to standard error.
"""

import contextlib
import ctypes
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bcc import BPF, lib

from vftrace.probes.bpf.image import File, Function, Image, Map
from vftrace.probes.text import shim_directory

# bcc's bpf_common.h, the same in 0.26 and 0.37; its own libbcc.py does not declare these.
lib.bpf_num_tables.restype = ctypes.c_size_t
lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
lib.bpf_table_name.restype = ctypes.c_char_p
lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

# asm/unistd_64.h, asm-generic/unistd.h; linux/prctl.h, linux/securebits.h
_SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}
_PR_SET_DUMPABLE, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 4, 27, 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_NOBODY = 65534

_LIBRARY = re.compile(r"(/\S*/lib(?:bcc|clang|LLVM)\S*)$", re.MULTILINE)


class _Compiler(BPF):  # type: ignore[misc]  # bcc has no types
    """BCC without loading and attaching."""

    def _trace_autoload(self) -> None:
        """Do what bcc.BPF's constructor does last."""


def image_of(text: str, flags: Sequence[str]) -> Image:
    """Return the image that BCC makes of a text. Raises BCC's error, which is Exception itself."""
    os.environ["BCC_KERNEL_SOURCE"] = str(shim_directory())
    with _not_root():
        bpf = _Compiler(text=text.encode(), cflags=list(flags))
    module = bpf.module
    try:
        tables = [lib.bpf_table_name(module, i) for i in range(lib.bpf_num_tables(module))]
        functions = [lib.bpf_function_name(module, i) for i in range(lib.bpf_num_functions(module))]
        names = {lib.bpf_table_fd(module, name): name.decode() for name in tables}
        return Image(
            lib.bpf_module_license(module).decode(),
            {name.decode(): _made(module, name) for name in tables},
            {name.decode(): Function.of(bpf.dump_func(name), names) for name in functions},
            _libraries(),
        )
    finally:
        bpf.cleanup()


def _made(module: Any, name: bytes) -> Map:
    """Return a map's attributes from the kernel (fs/proc/fd.c, kernel/bpf/syscall.c: bpf_map_show_fdinfo)."""
    text = Path(f"/proc/self/fdinfo/{lib.bpf_table_fd(module, name)}").read_text()
    shown = dict(line.split(":\t", 1) for line in text.splitlines())
    return Map(
        int(shown["map_type"]),
        int(shown["key_size"]),
        int(shown["value_size"]),
        int(shown["max_entries"]),
        int(shown["map_flags"], 16),
        lib.bpf_table_key_desc(module, name).decode(),
        lib.bpf_table_leaf_desc(module, name).decode(),
    )


def _libraries() -> tuple[File, ...]:
    """Return the libraries of the compiler, which this process has mapped."""
    paths = _LIBRARY.findall(Path("/proc/self/maps").read_text())
    return tuple(File.of(path) for path in sorted(set(paths)))


@contextlib.contextmanager
def _not_root() -> Iterator[None]:
    """Change this thread's effective user from root in this context, but keep its capabilities.

    Each time BCC compiles it reads all of /proc/kallsyms into two tables to find out whether the kernel has
    bpf_probe_read_kernel (BFrontendAction::DoMiscWorkAround). That takes a third of the whole time, and our text does
    not need it. If the effective user is not root, BCC does not read it (bcc_procutils_each_ksym).
    """
    libc = ctypes.CDLL(None)
    number = _SYS_SETRESUID.get(platform.machine())
    securebits = libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    if (
        number is None
        or os.geteuid() != 0
        or libc.prctl(_PR_SET_SECUREBITS, securebits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0
    ):
        yield
        return
    # The system call itself, because libc's function would change every thread.
    libc.syscall(number, -1, _NOBODY, -1)
    try:
        yield
    finally:
        libc.syscall(number, -1, 0, -1)
        libc.prctl(_PR_SET_SECUREBITS, securebits, 0, 0, 0)
        # cleared by the change of user (kernel/cred.c, commit_creds)
        libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def main() -> None:
    """Compile the request on standard input."""
    # The waiting process ends this one; a service manager would signal both at the same time.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answer = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        image = image_of(request["text"], request["flags"])
    except Exception as error:  # BCC raises Exception itself
        sys.exit(f"error: {error}")
    with os.fdopen(answer, "wb") as pipe:
        pipe.write(image.packed())


if __name__ == "__main__":
    main()
