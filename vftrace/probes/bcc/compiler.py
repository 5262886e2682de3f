"""Compiling with BCC where the cache has nothing, and no slower than it has to be."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vftrace.probes.bcc import cache
from vftrace.probes.text import program_text, shim_directory

if TYPE_CHECKING:
    from vftrace.probes.bcc.object import Object

_FLAGS = (
    "-Wno-everything",
    # BCC optimizes what clang hands over (its BPFModule::run_pass_manager): once is enough.
    "-Xclang",
    "-disable-llvm-passes",
    # BTF of our own, which nothing here needs: maps and fentry take the kernel's.
    "-g0",
)

# asm/unistd_64.h, asm-generic/unistd.h; linux/prctl.h, linux/securebits.h
_SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}
_PR_SET_DUMPABLE, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 4, 27, 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_NOBODY = 65534


def compiled(name: str, flags: Sequence[str] = (), first: "Object | None" = None) -> "Object":
    """The BPF object of one program text in bpf/. `first`: the object whose ring and VMs it uses, if it is not
    that itself. Raises what BCC raises: Exception itself.
    """
    # imports BCC
    from vftrace.probes.bcc import object as bpf_object

    text, flags = program_text(name), [*_FLAGS, *flags]
    key = _key(text, flags)
    image = cache.read(key) if key else None
    cached = image is not None
    if image is None:
        os.environ["BCC_KERNEL_SOURCE"] = str(shim_directory())
        with _not_root():
            image = bpf_object.image_of(text, flags)
        if key:
            cache.write(key, image)
    return bpf_object.Object(image, first, cached=cached)


def _key(text: str, flags: Sequence[str]) -> str | None:
    try:
        return cache.key(text, flags) if cache.directory() else None
    except OSError:
        return None


@contextlib.contextmanager
def _not_root() -> Iterator[None]:
    """This thread is not root by its id for a while, but keeps its capabilities.

    Each time BCC compiles it reads all of /proc/kallsyms into two tables to see whether the kernel has
    bpf_probe_read_kernel (BFrontendAction::DoMiscWorkAround), a third of the whole time, and our text does
    not ask. Where the effective user is not root it does not (bcc_procutils_each_ksym).
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
    # The system call itself, since libc's function would change every thread.
    libc.syscall(number, -1, _NOBODY, -1)
    try:
        yield
    finally:
        libc.syscall(number, -1, 0, -1)
        libc.prctl(_PR_SET_SECUREBITS, securebits, 0, 0, 0)
        # cleared by the change of user (kernel/cred.c, commit_creds)
        libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
