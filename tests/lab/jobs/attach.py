# SPDX-License-Identifier: MIT
"""What this kernel lets a tracer attach to, found by trying."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from vftlab.job import Job, JobError, modprobe, say

# BCC must not look for kernel headers: none are installed, and none are needed.
SHIM = Path("/src/bpf/shim")

# Functions by what they are for. The first two groups must take both kinds of probe on all kernels.
UAPI = (
    "kvm_dev_ioctl",
    "kvm_vm_ioctl",
    "kvm_vcpu_ioctl",
    "kvm_device_ioctl",
    "vfio_device_fops_unl_ioctl",
    "vfio_group_fops_unl_ioctl",
    "vfio_fops_unl_ioctl",
    "vfio_device_fops_release",
    "vfio_pci_core_enable",
    "vfio_pci_core_disable",
    "pcie_flr",
    "pci_try_reset_function",
)
MAILBOX = (
    "igb_read_mbx",
    "igb_write_mbx",
    "igb_check_for_rst",
    "ixgbe_read_mbx",
    "ixgbe_write_mbx",
    "ixgbe_check_for_rst",
    "ixgbe_msg_task",
    "ixgbe_ping_all_vfs",
)
OTHER = (
    "iommufd_fops_ioctl",
    "vfio_df_open",
    "vfio_df_close",
    "vfio_mig_get_next_state",
    "i40e_vc_process_vf_msg",
    "ice_vc_process_vf_msg",
    "mark_page_dirty_in_slot",
)


@dataclass(frozen=True)
class Row:
    """One function: the module it is in, and whether each kind of probe attached."""

    function: str
    module: str | None
    kprobe: bool
    fentry: bool


def modules_of_functions() -> dict[str, str]:
    """The module of every function, `vmlinux` for the kernel itself."""
    found: dict[str, str] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        words = line.split()
        found.setdefault(words[2], words[3].strip("[]") if len(words) > 3 else "vmlinux")
    return found


def takes_fentry(modules: dict[str, str], functions: list[str]) -> set[str]:
    """The functions that take a fentry probe: all at once, halved where the kernel refuses."""
    from bcc import BPF

    if not functions:
        return set()
    text = "".join(
        f"KFUNC_PROBE({name}) {{ return 0; }}\n"
        if modules[name] == "vmlinux"
        else f"MODULE_KFUNC_PROBE({modules[name]}, {name}) {{ return 0; }}\n"
        for name in functions
    )
    try:
        BPF(text=text.encode()).cleanup()
    except Exception as error:  # BCC raises Exception itself
        if len(functions) == 1:
            say(f"fentry {functions[0]}: {error}")
            return set()
        half = len(functions) // 2
        return takes_fentry(modules, functions[:half]) | takes_fentry(modules, functions[half:])
    return set(functions)


def takes_kprobe(functions: list[str]) -> set[str]:
    from bcc import BPF

    program = BPF(text=b"int probe(void *ctx) { return 0; }")
    took = set()
    for name in functions:
        try:
            program.attach_kprobe(event=name.encode(), fn_name=b"probe")
        except Exception as error:
            say(f"kprobe {name}: {error}")
        else:
            took.add(name)
    program.cleanup()
    return took


def attach(job: Job) -> None:
    """Try fentry and kprobe on every function vftrace could use, and print the table."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SHIM)
    modprobe("kvm-amd", "vfio-pci", "igb", "ixgbe", "i40e", "ice")
    modules = modules_of_functions()
    wanted = [*UAPI, *MAILBOX, *OTHER]
    present = [name for name in wanted if name in modules]
    begun = time.monotonic()
    fentry = takes_fentry(modules, present)
    say(f"fentry took {time.monotonic() - begun:.1f} s")
    kprobe = takes_kprobe(present)
    rows = [Row(name, modules.get(name), name in kprobe, name in fentry) for name in wanted]
    print(f"{'function':32} {'module':16} kprobe fentry")
    for row in rows:
        print(f"{row.function:32} {row.module or '-':16} {row.kprobe!s:6} {row.fentry!s}")
    (job.results / "attach.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    job.write_truth({"functions": [asdict(row) for row in rows]})
    lacking = [
        row.function
        for row in rows
        if row.function not in OTHER and not (row.kprobe and row.fentry)
    ]
    if lacking:
        raise JobError(f"not both ways: {', '.join(lacking)}")


# Each program counts its runs in its place. (BCC takes no map function inside a macro.)
COUNTING = 'BPF_TABLE("array", u32, u64, runs, 3);\n' + "".join(
    f"""
int {name}(void *ctx)
{{
	u32 at = {place};
	u64 *count = runs.lookup(&at);

	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}}
"""
    for place, name in enumerate(("entered", "returned", "returned_too"))
)
CALLS = 100
FUNCTION = "__x64_sys_getpgid"


def return_probes(job: Job) -> None:
    """vftrace's own kprobes run at each call, return probes also where tracefs is not writable, and leave nothing."""
    from vftrace.probes.bcc.process import compile_text
    from vftrace.probes.bpf import events
    from vftrace.probes.bpf.object import Object

    def there() -> str:
        # Of this function only: another tracer may run beside.
        lines = Path("/sys/kernel/tracing/kprobe_events").read_text().splitlines()
        return "\n".join(line for line in lines if line.split()[-1] == FUNCTION)

    bpf = Object(compile_text(COUNTING, ["-Wno-everything"]))
    bpf.attach_kprobe(FUNCTION, "entered")
    bpf.attach_kretprobe(FUNCTION, "returned", 1024)
    before = there()

    def refuse(_line: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with mock.patch.object(events, "_order", refuse):
        bpf.attach_kretprobe(FUNCTION, "returned_too", 1024, must=False)
    for _ in range(CALLS):
        os.getpgid(0)
    runs = [bpf["runs"][place].value for place in range(3)]
    # A tracer that is killed leaves its probe in tracefs.
    killed = os.fork()
    if killed == 0:
        events.kretprobe(bpf.load("returned", Object.KPROBE), FUNCTION, 10)
        os._exit(0)
    os.waitpid(killed, 0)
    left = there()
    events.remove_left_over()
    cleaned = there()
    bpf.cleanup()
    job.write_truth({"runs": runs, "left": left, "cleaned": cleaned, "end": there()})
    if runs != [CALLS] * 3 or str(killed) not in left or cleaned != before or there():
        raise JobError(f"runs {runs}, left {left!r}, cleaned {cleaned!r}")


JOBS: dict[str, Callable[[Job], None]] = {"attach": attach, "return-probes": return_probes}
