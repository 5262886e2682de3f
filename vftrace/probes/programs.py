# SPDX-License-Identifier: MIT
"""Loads program texts of bpf/ into the kernel, from kept images or compiled."""

from collections.abc import Sequence

from vftrace.probes.bcc import cache
from vftrace.probes.bcc.process import compile_text, package
from vftrace.probes.bpf.object import Object
from vftrace.probes.text import program_text

FLAGS = (
    "-Wno-everything",
    # BCC optimizes what clang hands over (its BPFModule::run_pass_manager): once is enough.
    "-Xclang",
    "-disable-llvm-passes",
    # No BTF of our own: maps and fentry use the kernel's.
    "-g0",
)


def compiled(
    name: str,
    flags: Sequence[str] = (),
    first: Object | None = None,
    modules: Sequence[str] = (),
) -> Object:
    """Return the BPF object of one program text in bpf/. `first` and `modules` as for `Object`. Raises BpfError, or
    CompileError if there is no kept image and BCC does not compile the text.
    """
    text, flags = program_text(name), [*FLAGS, *flags]
    key = cache.key(text, flags, package()) if cache.directory() else None
    image = cache.read(key) if key else None
    cached = image is not None
    if image is None:
        image = compile_text(text, flags)
        if key:
            cache.write(key, image)
    return Object(image, first, cached=cached, modules=modules)
