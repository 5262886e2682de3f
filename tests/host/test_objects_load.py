"""Every BPF object, for each way to attach that is not tied to functions of a loaded module, is compiled by the
installed BCC and taken by the running kernel's verifier. Nothing is attached.

Each in a process of its own: BCC keeps the maps that objects share for as long as a process lives.
"""

import os
import subprocess
import sys
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


def load(program: str, way: str) -> int:
    """Compile and load the object in this process; how many functions it has. Raises what BCC raises."""
    import bcc

    os.environ["BCC_KERNEL_SOURCE"] = str(shim_directory())
    objects = []
    if program != "vftrace.bpf.c":
        # Its maps are the first object's.
        objects.append(compiled(bcc, "vftrace.bpf.c", _flags("vftrace.bpf.c", TRACEPOINT)))
    bpf = compiled(bcc, program, _flags(program, way))
    count = int(bcc.lib.bpf_num_functions(bpf.module))
    for name in [bcc.lib.bpf_function_name(bpf.module, index) for index in range(count)]:
        on_tracepoint = name.startswith(b"tp_") or way == TRACEPOINT
        bpf.load_func(name, bcc.BPF.TRACEPOINT if on_tracepoint else bcc.BPF.KPROBE)
    return count


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
def test_object_is_compiled_and_loaded(program: str, way: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, program, way], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


if __name__ == "__main__":
    print(load(sys.argv[1], sys.argv[2]))
