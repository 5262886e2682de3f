# SPDX-License-Identifier: MIT
"""The emulated machine: a QEMU command line, started from the userspace image's own QEMU."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from vftlab.build import Built
from vftlab.common import TREE, cache_dir
from vftlab.tsc import tsc_khz

PCI_NIC = "52:54:00:11:22:33"
# With 2900 MiB and more the VF mailbox registers of the emulated igb are not reached.
MEMORY_MIB = 2560
# After a bus reset the kernel (pci_bridge_wait_for_secondary_bus) asks a faster port whether its link is up,
# QEMU's says no; behind one of 5 GT/s it asks the card.
CARD_PORT = ("-device", "pcie-root-port,id=rp,slot=1,chassis=1,x-speed=5")
LONE_CARD = (
    *("-netdev", "user,id=net,restrict=on"),
    *CARD_PORT,
    *("-device", f"igb,bus=rp,netdev=net,mac={PCI_NIC}"),
)
"""An igb card that nothing is connected to."""


@dataclass(frozen=True)
class Machine:
    """One emulated machine; `results` is its only writable share.

    `network` is QEMU's words for its cards and what else connects it.
    """

    built: Built
    results: Path
    shell: bool = False
    processors: int = 2
    memory_mib: int = MEMORY_MIB
    network: tuple[str, ...] = LONE_CARD
    programs: str = "programs"
    """Where in the cache compiled programs are kept; they belong to the user that vftrace runs as inside."""

    @property
    def console(self) -> Path:
        """The kernel's console (not the job's output)."""
        return self.results / ".lab" / "console"

    def command(self) -> list[str]:
        """The words to start it. The job's output, or the shell, is on its standard output.

        The userspace image's QEMU runs here by its own dynamic loader and libraries: igb needs
        QEMU 8, and Debian 12 has 7.2.
        """
        tree = self.built.root.tree
        libraries = tree / "usr/lib/x86_64-linux-gnu"
        qemu = [
            str(libraries / "ld-linux-x86-64.so.2"),
            "--library-path",
            f"{libraries}:{libraries}/pulseaudio",
            str(tree / "usr/bin/qemu-system-x86_64"),
            "-L",
            str(tree / "usr/share/qemu"),
            "-L",
            str(tree / "usr/share/seabios"),
        ]
        kernel = [
            "console=ttyS0 loglevel=4 audit=0 apparmor=0 panic=-1 mitigations=off nokaslr tsc=reliable",
            # emulation under load may be too slow for the check, and the kernel panics (io_apic.c)
            "no_timer_check",
            "random.trust_cpu=on intel_iommu=on",
            *_clock(),
        ]
        stdio = "stdio,id=job,signal=off" if self.shell else "stdio,id=job,signal=on"
        return [
            *qemu,
            *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", str(self.processors), "-m", str(self.memory_mib)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(self.built.pack.vmlinuz), "-initrd", str(self.built.pack.initrd)),
            *("-append", " ".join(kernel)),
            *("-serial", f"file:{self.console}"),
            *("-chardev", stdio, "-device", "virtio-serial-pci"),
            *("-device", "virtconsole,chardev=job"),
            *self._disk("root", self.built.inside.image),
            *self._disk("mod", self.built.modules_image),
            *share("tree", TREE, "readonly=on"),
            *share("results", self.results, "readonly=off"),
            *_programs(self.programs),
            *("-device", "intel-iommu,intremap=on,caching-mode=on"),
            *self.network,
        ]

    def _disk(self, name: str, image: Path) -> list[str]:
        drive = f"if=none,id={name},file={image},format=raw,readonly=on,file.locking=off"
        return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _clock() -> list[str]:
    """The kernel's words for its clock's frequency, where it is known here.

    The kernel would calibrate its TSC against an emulated timer, which on a loaded machine gives a clock that is
    several times too fast; with tsc=reliable nothing corrects that later.
    """
    khz = tsc_khz()
    return [] if khz is None else [f"tsc_early_khz={khz}"]


def _programs(name: str) -> list[str]:
    """Where vftrace keeps its compiled programs from one boot to the next (/var/cache/vftrace inside).

    It takes only what its own user wrote, and what QEMU writes belongs to whoever runs it.
    """
    if os.geteuid() != 0:
        return []
    kept = cache_dir() / name
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    return share("programs", kept, "readonly=off")


def share(tag: str, path: Path, access: str) -> list[str]:
    """QEMU's words for a directory that the emulated machine can mount by `tag`."""
    what = f"local,id={tag},path={path},security_model=none,multidevs=remap,{access}"
    return ["-fsdev", what, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def die_with_parent() -> None:
    """For preexec_fn: have the kernel kill this process when its parent ends, however it does."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
