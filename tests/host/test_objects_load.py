# SPDX-License-Identifier: MIT
"""Every BPF object, for each way to attach that is not tied to functions of a loaded module, is compiled by the
installed BCC, kept, read again, and taken by the running kernel's verifier. Nothing is attached.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from vftrace.probes import loader, vfio
from vftrace.probes.bcc import cache
from vftrace.probes.bpf.object import Object
from vftrace.probes.machine import thread_flags
from vftrace.probes.programs import compiled
from vftrace.probes.registry import KPROBE, TRACEPOINT, Way

GUEST_MEMORY = 1 << 30


def _flags(program: str, way: str) -> Sequence[str]:
    if program == "kvm.bpf.c":
        return loader._cflags(Way(way, ()), GUEST_MEMORY)
    if program == "vfio.bpf.c":
        return vfio._cflags(Way(way, ()), None)
    if program in ("calls.bpf.c", "vcpu.bpf.c"):
        return thread_flags()
    return ()


def load(program: str, way: str) -> tuple[bool, dict[str, bytes]]:
    """Whether the object came from the cache, and the instructions of its functions, all loaded."""
    first = None
    if program != "kvm.bpf.c":
        # Its maps are the first object's.
        first = compiled("kvm.bpf.c", _flags("kvm.bpf.c", TRACEPOINT))
    bpf = compiled(program, _flags(program, way), first)
    functions = bpf.image.functions
    for name in bpf.image.programs:
        on_tracepoint = name.startswith("tp_") or way == TRACEPOINT
        kind = Object.TRACEPOINT if on_tracepoint else Object.KPROBE
        bpf.load(name, Object.RAW_TRACEPOINT if name.startswith("raw_") else kind)
    bpf.cleanup()
    if first is not None:
        first.cleanup()
    return bpf.cached, {name: function.code for name, function in functions.items()}


@pytest.mark.parametrize(
    ("program", "way"),
    [
        ("kvm.bpf.c", TRACEPOINT),
        ("kvm.bpf.c", KPROBE),
        ("vfio.bpf.c", TRACEPOINT),
        ("vfio.bpf.c", KPROBE),
        ("mailbox.bpf.c", KPROBE),
        ("calls.bpf.c", TRACEPOINT),
        ("vcpu.bpf.c", TRACEPOINT),
    ],
)
def test_object_is_compiled_kept_and_loaded(
    program: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "programs"))
    cached, functions = load(program, way)
    assert not cached
    assert len(functions) >= (4 if program == "calls.bpf.c" else 6)
    assert load(program, way) == (True, functions)
    # What BCC makes of the text is the same every time: an entry stands for any compiling.
    monkeypatch.setenv(cache.OFF_VARIABLE, "1")
    assert load(program, way) == (False, functions)
