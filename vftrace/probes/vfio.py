"""VFIO's probes: a BPF object of their own that comes and goes with the vfio module."""

import ctypes
import platform
from pathlib import Path
from typing import Any

from vftrace.probes import btf, kernel
from vftrace.probes.attach import captured_stderr, first_line, hang_up
from vftrace.probes.plan import KPROBE, VFIO, VFIO_DATA, ProbeStatus, Way, precopy_info
from vftrace.probes.text import program_text

MODULE = Path("/sys/module/vfio")

# Where the first argument of a system call is in struct pt_regs (arch/*/include/asm/ptrace.h).
_FIRST_ARGUMENT = {"x86_64": 112, "aarch64": 0}

# All variant drivers of the kernel call the ioctl of their data fd so: mlx5vf_precopy_ioctl,
# qat_vf_precopy_ioctl, ... (drivers/vfio/pci).
_PRECOPY_IOCTL = "_precopy_ioctl"


class VfioProbes:
    """Nothing here is needed: what cannot be attached is noted in `status`."""

    def __init__(self, bcc: Any, forced: str | None) -> None:
        """Attach what can be now. The first object must be loaded: its maps are used."""
        self._bcc = bcc
        self._forced = forced
        self._bpf: Any = None
        self._there = False
        self._counts_data = False
        self._precopy: set[str] = set()
        self._status: list[ProbeStatus] = []
        self.follow()

    @property
    def status(self) -> tuple[ProbeStatus, ...]:
        """How the probes are attached now."""
        return tuple(self._status)

    def follow(self) -> None:
        """Load and attach when the module has come, let go when it has gone."""
        there = MODULE.exists()
        if there and not self._there:
            self._load()
        elif not there:
            self.close()
            reason = "the vfio module is not loaded"
            self._status = [ProbeStatus(probe, None, reason) for probe in (VFIO, VFIO_DATA)]
        self._there = there

    def count_data(self) -> None:
        """Count what is read from and written to data fds, from now on."""
        if self._bpf is None:
            return
        if not self._counts_data:
            self._counts_data = True
            with captured_stderr():
                reason = hang_up(self._bpf, self._way_of(VFIO_DATA.ways))
            way = None if reason else self._way
            self._status = [self._status[0], ProbeStatus(VFIO_DATA, way, reason)]
        if self._way == KPROBE:
            new = set(kernel.functions_ending(_PRECOPY_IOCTL)) - self._precopy
            self._precopy |= new
            with captured_stderr():
                hang_up(self._bpf, precopy_info(sorted(new)))

    def watch(self, tgid: int, device_fds: list[int]) -> None:
        """Watch the devices of a VMM that runs already."""
        if self._bpf is None or not device_fds:
            return
        table = self._bpf["device_fds"]
        for fd in device_fds:
            table[table.Key(tgid, fd)] = ctypes.c_uint32(1)
        self.count_data()

    def close(self) -> None:
        """Detach everything."""
        if self._bpf is not None:
            self._bpf.cleanup()
        self._bpf = None
        self._counts_data = False
        self._precopy = set()

    def _way_of(self, ways: tuple[Way, ...]) -> Way:
        return next(way for way in ways if way.name == self._way)

    def _load(self) -> None:
        reasons: list[str] = []
        # fentry would gain nothing here: these requests are rare, and only kprobes see them all.
        forced = KPROBE if self._forced == "fentry" else self._forced
        for way in VFIO.ways:
            if forced not in (None, way.name):
                continue
            refused = kernel.refuses_kprobes() if way.name == KPROBE else None
            reason = refused or self._try(way)
            if reason is None:
                self._way = way.name
                waits = "no device that can migrate has been met"
                self._status = [
                    ProbeStatus(VFIO, way.name, "; ".join(reasons) or None),
                    ProbeStatus(VFIO_DATA, None, waits),
                ]
                return
            reasons.append(f"{way.name}: {reason}")
        self._status = [ProbeStatus(probe, None, "; ".join(reasons)) for probe in (VFIO, VFIO_DATA)]

    def _try(self, way: Way) -> str | None:
        """Compile for this way, load the walker, attach. Returns why not, with nothing left behind."""
        bpf = None
        with captured_stderr() as complaint:
            try:
                bpf = self._bcc.BPF(text=program_text("vfio.bpf.c"), cflags=_cflags(way))
                kind = self._bcc.BPF.KPROBE if way.name == KPROBE else self._bcc.BPF.TRACEPOINT
                walker = bpf.load_func("walk", kind)
                bpf["walkers"][ctypes.c_int(0)] = ctypes.c_int(walker.fd)
                reason = hang_up(bpf, way)
            except Exception as error:  # BCC raises Exception itself
                reason = first_line(complaint(), error)
        if reason is None:
            self._bpf = bpf
        elif bpf is not None:
            bpf.cleanup()
        return reason


def _cflags(way: Way) -> list[str]:
    flags = [f"-DWAY_{way.name.upper()}", "-Wno-everything"]
    if way.name != KPROBE:
        return flags
    offsets = {
        "FIRST_ARGUMENT_OFFSET": _FIRST_ARGUMENT.get(platform.machine()),
        "FILE_PRIVATE_OFFSET": btf.member_offset("file", "private_data"),
        "PCI_DEVICE_OFFSET": btf.member_offset("pci_dev", "dev"),
    }
    for name, offset in offsets.items():
        if offset is None:
            raise LookupError(f"the kernel's BTF does not say {name}")
        flags.append(f"-D{name}={offset}")
    # Since 6.5 (vfio_df_open) a device's file has a structure of its own before the device.
    if kernel.module_of("vfio_df_open") is not None:
        flags.append("-DVFIO_DEVICE_FILE")
    return flags
