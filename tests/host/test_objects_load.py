"""Every BPF object, for each way to attach that is not tied to functions of a loaded module, is compiled by the
installed BCC and taken by the running kernel's verifier. Nothing is attached."""

from collections.abc import Sequence

import pytest

from vftrace.probes import loader, vfio
from vftrace.probes.compiler import compiled
from vftrace.probes.plan import KPROBE, TRACEPOINT, Way
from vftrace.probes.text import shim_directory

GUEST_MEMORY = 1 << 30


def _flags(program: str, way: str) -> Sequence[str]:
    if program == "vftrace.bpf.c":
        return loader._cflags(Way(way, ()), GUEST_MEMORY)
    if program == "vfio.bpf.c":
        return vfio._cflags(Way(way, ()), None)
    return ()


@pytest.mark.parametrize(
    ("program", "way"),
    [
        ("vftrace.bpf.c", TRACEPOINT),
        ("vftrace.bpf.c", KPROBE),
        ("vfio.bpf.c", TRACEPOINT),
        ("vfio.bpf.c", KPROBE),
        ("mailbox.bpf.c", KPROBE),
    ],
)
def test_object_is_compiled_and_loaded(
    program: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bcc

    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(shim_directory()))
    if program != "vftrace.bpf.c":
        # Its maps are the first object's.
        first = compiled(bcc, "vftrace.bpf.c", _flags("vftrace.bpf.c", TRACEPOINT))
    bpf = compiled(bcc, program, _flags(program, way))
    count = bcc.lib.bpf_num_functions(bpf.module)
    names = [bcc.lib.bpf_function_name(bpf.module, index) for index in range(count)]
    for name in names:
        on_tracepoint = name.startswith(b"tp_") or way == TRACEPOINT
        bpf.load_func(name, bcc.BPF.TRACEPOINT if on_tracepoint else bcc.BPF.KPROBE)
    assert count > 5
    bpf.cleanup()
    if program != "vftrace.bpf.c":
        first.cleanup()
