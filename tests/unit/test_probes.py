# SPDX-License-Identifier: MIT
"""Probes of modules that come and go; how large the ring is; another user for a moment."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from vftrace.errors import MachineError
from vftrace.probes import kernel, loader, proof
from vftrace.probes import module_watcher as follow
from vftrace.probes.bpf.object import BpfError, Object
from vftrace.probes.loader import KvmProbes, Probes, ring_bytes, table_sizes
from vftrace.probes.registry import (
    CHANNEL,
    DIRTY_RING,
    IOCTL,
    KPROBE,
    KVM_FUNCTIONS,
    NO_KVM,
    TRACEPOINT,
    Hook,
    Way,
)

GIB = 1 << 30


class Followed(follow.ModuleProbes):
    def __init__(self, *modules: str) -> None:
        super().__init__(*modules)
        self.seen: list[str] = []

    def _on_load(self, module: str) -> None:
        self.seen.append(f"+{module}")

    def _on_unload(self, module: str) -> None:
        self.seen.append(f"-{module}")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of /sys/module."""
    monkeypatch.setattr(follow, "MODULES", tmp_path)
    return tmp_path


def test_each_module_is_followed_by_itself(modules: Path) -> None:
    """What is there is met once, what goes is let go, what comes again is met again."""
    (modules / "igb").mkdir()
    probes = Followed("igb", "ixgbe")
    assert probes.follow()
    assert not probes.follow()
    (modules / "ixgbe").mkdir()
    assert probes.follow()
    (modules / "igb").rmdir()
    assert not probes.follow()
    (modules / "igb").mkdir()
    assert probes.follow()
    assert probes.seen == ["+igb", "+ixgbe", "-igb", "+igb"]


def test_reloaded_between_two_looks(modules: Path) -> None:
    """The module is there both times, but it is another one: what was attached has gone with the first."""
    (modules / "vfio").mkdir()
    probes = Followed("vfio")
    probes.follow()
    (modules / "vfio").rename(modules / "old")  # keeps its inode, so that the new one gets another
    (modules / "vfio").mkdir()
    assert probes.follow()
    assert probes.seen == ["+vfio", "-vfio", "+vfio"]


class Bpf:
    """Records what is attached and detached; refuses hooks in `refused`."""

    def __init__(self, refused: frozenset[str] = frozenset()) -> None:
        self.attached: set[str] = set()
        self._refused = refused

    def load_together(self, kinds: Mapping[str, int]) -> None:
        assert set(kinds.values()) == {Object.KPROBE}

    def attach_kprobe(self, function: str, name: str) -> None:
        if function in self._refused:
            raise BpfError(f"cannot attach {name}")
        self.attached.add(function)

    def detach(self, place: str, name: str) -> None:
        self.attached.remove(place)


WAYS = {
    IOCTL.name: Way(KPROBE, (Hook("kvm_vm_ioctl", "kp_ioctl"), Hook("kvm_dev_ioctl", "kp_ioctl"))),
    DIRTY_RING.name: Way(KPROBE, (Hook("kvm_push", "f"),)),
}


def test_kvm_that_comes_later(modules: Path) -> None:
    """Nothing is attached to what is not there; all of it is when it comes, and none when it has gone."""
    bpf = Bpf()
    probes = KvmProbes(bpf, WAYS)
    assert (bpf.attached, set(probes.reasons.values())) == (set(), {NO_KVM})
    (modules / "kvm").mkdir()
    assert probes.follow()
    assert bpf.attached == {"kvm_vm_ioctl", "kvm_dev_ioctl", "kvm_push"}
    assert set(probes.reasons.values()) == {None}
    (modules / "kvm").rmdir()
    probes.follow()
    assert (bpf.attached, set(probes.reasons.values())) == (set(), {NO_KVM})


def test_kvm_that_refuses(modules: Path) -> None:
    """A refused hook leaves no hook of its probe attached, and the reason names it; other probes are attached."""
    (modules / "kvm").mkdir()
    bpf = Bpf(frozenset({"kvm_dev_ioctl"}))
    probes = KvmProbes(bpf, WAYS)
    assert bpf.attached == {"kvm_push"}
    assert probes.reasons[IOCTL.name] == "kvm_dev_ioctl: cannot attach kp_ioctl"
    assert probes.reasons[DIRTY_RING.name] is None


@pytest.mark.parametrize(
    ("memory", "ring"), [(2 * GIB, 16 << 20), (64 * GIB, 16 << 20), (1024 * GIB, 256 << 20)]
)
def test_ring_holds_four_sweeps_of_all_memory_and_their_clearing(memory: int, ring: int) -> None:
    """A sweep ships at most one bit for each page of 4 KiB."""
    assert ring_bytes(memory) == ring
    assert ring >= 8 * memory // 4096 // 8


@pytest.mark.parametrize(
    ("memory", "vms"),
    [(1 << 30, 1 << 14), (512 * GIB, 1 << 14), (600 * GIB, 1 << 15), (64 << 40, 1 << 17)],
)
def test_tables_are_sized_by_the_hosts_memory(memory: int, vms: int) -> None:
    sizes = table_sizes(memory)
    assert sizes.pop("VMS") == vms
    assert set(sizes.values()) == {4 * vms}
    header = (Path(loader.__file__).parents[2] / "bpf/common.h").read_text()
    smallest = dict(
        re.findall(r"^#define (VMS|THREADS|SLOTS|CHANNELS|CHUNKS) (\d+)$", header, re.M)
    )
    assert {name: str(size) for name, size in table_sizes(0).items()} == smallest


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to put off")
def test_root_again_after_compiling() -> None:
    """While BCC compiles, this thread is another user that may do all the same; then it is root again."""
    # In a process of its own: the compiler imports BCC.
    program = """
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from vftrace.probes.bcc import compiler

def capabilities():
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("CapEff"))

before = capabilities()
with compiler._not_root():
    during = os.geteuid(), capabilities()
assert during == (65534, before), during
assert (os.geteuid(), capabilities()) == (0, before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Loaded:
    """An object whose programs all load."""

    def __init__(self) -> None:
        self.ended = False

    def load_together(self, _: object) -> None: ...

    def load(self, *_: object) -> int:
        return 0

    def __getitem__(self, _: str) -> dict[int, object]:
        return {}

    def cleanup(self) -> None:
        self.ended = True


@pytest.fixture(name="unused")
def _unused(monkeypatch: pytest.MonkeyPatch) -> Probes:
    """Probes before anything is loaded, on a kernel that takes every way."""
    probes = Probes.__new__(Probes)
    probes._bpf, probes._guest_memory = cast("Object", Loaded()), GIB
    probes._ways, probes.unproved = {}, {}
    monkeypatch.setattr(loader, "_refused", lambda _: None)
    monkeypatch.setattr(loader, "attach_all", lambda *_: None)
    monkeypatch.setattr(loader, "detach_all", lambda *_: None)
    monkeypatch.setattr(Probes, "_attach_ioctl", lambda *_: None)
    return probes


def test_a_way_that_never_runs_gives_way_to_the_next(
    unused: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ftrace's list fentry does not run, by a request of vftrace's own kprobes do not: the tracepoints are left."""
    objects: list[Loaded] = []

    def compiled(*_: object, **__: object) -> Loaded:
        objects.append(Loaded())
        return objects[-1]

    monkeypatch.setattr(loader, "compiled", compiled)
    monkeypatch.setattr(kernel, "never_runs", lambda _: "ftrace has not enabled it")

    def never_runs(_: object, asked: proof.Proof) -> str | None:
        return "kp runs never" if asked == proof.PROOFS[IOCTL.name, KPROBE] else None

    monkeypatch.setattr(proof, "never_runs", never_runs)
    unused._load(None)
    reasons = "fentry: ftrace has not enabled it; kprobe: kp runs never"
    assert unused._ways[IOCTL.name] == (TRACEPOINT, reasons)
    assert [each.ended for each in objects] == [True, True, False]
    monkeypatch.setattr(proof, "never_runs", lambda *_: "never")
    with pytest.raises(MachineError, match="tracepoint: never"):
        unused._load(None)


def test_a_way_that_cannot_be_proved_is_taken(
    unused: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise proof.CannotProveError("no /dev/kvm")

    monkeypatch.setattr(proof, "never_runs", cannot)
    assert unused._attach(CHANNEL, None) == (KPROBE, None)
    assert unused.unproved == {"channel": "no /dev/kvm"}
    detached: list[str] = []
    monkeypatch.setattr(loader, "detach_all", lambda _, way: detached.append(way.name))
    monkeypatch.setattr(proof, "never_runs", lambda *_: "never")
    assert unused._attach(CHANNEL, None) == (None, "kprobe: never; tracepoint: never")
    assert detached == [KPROBE, TRACEPOINT]
    assert unused.unproved == {}


def test_fentry_on_a_site_that_the_kernel_has_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list as kernel/trace/ftrace.c (t_show) writes it, on a kernel where two of three sites are disabled."""
    monkeypatch.setattr(kernel, "tracefs", lambda: tmp_path)
    assert kernel.never_runs(KVM_FUNCTIONS) is None
    (tmp_path / "enabled_functions").write_text(
        "kvm_dev_ioctl [kvm] (1) R   D   M \ttramp: 0xffffffffc0a31000 (call_direct_funcs+0x0/0x30)\n"
        "\tdirect-->bpf_trampoline_6442+0x0/0xc5\n"
    )
    assert kernel.never_runs(KVM_FUNCTIONS[:1]) is None
    reason = kernel.never_runs(KVM_FUNCTIONS)
    assert reason == "attached, but ftrace has not enabled kvm_vm_ioctl, kvm_vcpu_ioctl"
