# SPDX-License-Identifier: MIT
"""VFIO's probes: a BPF object of their own, loaded and unloaded with the vfio module."""

import ctypes
import platform
import threading
from typing import Any

from vftrace.model.host import ProbeStatus
from vftrace.probes import btf, kernel
from vftrace.probes.attach import attach_all, first_line
from vftrace.probes.bpf.object import Object
from vftrace.probes.machine import NUMBERS
from vftrace.probes.module_watcher import ModuleProbes
from vftrace.probes.programs import compiled
from vftrace.probes.registry import (
    FENTRY,
    KPROBE,
    NO_MIGRATABLE,
    NO_VFIO,
    TRACEPOINT,
    VFIO,
    VFIO_DATA,
    Way,
    precopy_info,
    status_of,
)

# All variant drivers of the kernel name the ioctl of their data fd like this: mlx5vf_precopy_ioctl,
# qat_vf_precopy_ioctl, ... (drivers/vfio/pci).
_PRECOPY_IOCTL = "_precopy_ioctl"


class VfioProbes(ModuleProbes):
    """The probes of VFIO. vftrace works without them: `status` has the reason if one cannot be attached."""

    def __init__(self, first: Any, forced: str | None) -> None:
        """Attach the probes that can be attached now. `first`: the BPF object whose ring buffers and VMs are used."""
        super().__init__("vfio")
        self._first = first
        self._forced = forced
        self._bpf: Any = None
        self._way = ""
        self._precopy: set[str] = set()
        self._search: threading.Thread | None = None
        self._found: list[str] = []
        self._say(status_of(VFIO, None, NO_VFIO))
        self.follow()

    @property
    def status(self) -> tuple[ProbeStatus, ...]:
        """How the probes are attached now."""
        return tuple(self._status)

    def follow(self) -> bool:
        """Load and attach when the module is loaded, detach when it is unloaded."""
        come = super().follow()
        if self._search is not None and not self._search.is_alive():
            self._search = None
            self._attach_precopy_info()
        return come

    def _on_load(self, _module: str) -> None:
        self._load()

    def _on_unload(self, _module: str) -> None:
        self.close()
        self._say(status_of(VFIO, None, NO_VFIO))

    def saw_migratable(self) -> None:
        """Note a device that can migrate: count the bytes that are read from and written to data fds."""
        if self._bpf is None:
            return
        if self._status[1].method is None:
            reason = attach_all(self._bpf, VFIO_DATA.ways[1])
            self._status[1] = status_of(VFIO_DATA, None if reason else TRACEPOINT, reason)
        if self._way == KPROBE and self._search is None:
            self._search = threading.Thread(target=self._find_precopy_ioctls, daemon=True)
            self._search.start()

    def watch(self, tgid: int, device_fds: list[int]) -> None:
        """Watch the devices of a VMM that runs already."""
        if self._bpf is None or not device_fds:
            return
        table = self._bpf["device_fds"]
        for fd in device_fds:
            table[table.Key(tgid, fd)] = ctypes.c_uint32(1)
        self.saw_migratable()

    @property
    def cached(self) -> tuple[bool, ...]:
        """Whether the programs came from the cache; empty without programs."""
        return () if self._bpf is None else (self._bpf.cached,)

    @property
    def loaded(self) -> Any:
        """The BPF object; None if it is not loaded."""
        return self._bpf

    def close(self) -> None:
        """Detach everything."""
        if self._bpf is not None:
            self._bpf.cleanup()
        self._bpf = None
        self._precopy = set()

    def _say(self, vfio: ProbeStatus) -> None:
        self._status = [vfio, status_of(VFIO_DATA, None, vfio.reason)]

    def _find_precopy_ioctls(self) -> None:
        # In a thread: with many symbols it would delay the reader.
        self._found = kernel.functions_ending(_PRECOPY_IOCTL)

    def _attach_precopy_info(self) -> None:
        new = set(self._found) - self._precopy
        self._precopy |= new
        if self._bpf is not None:
            attach_all(self._bpf, precopy_info(sorted(new)))

    def _load(self) -> None:
        reasons: list[str] = []
        # fentry would gain nothing for requests: they are rare.
        forced = KPROBE if self._forced == FENTRY else self._forced
        fexit = forced != TRACEPOINT and kernel.refuses_fentry() is None
        for way in VFIO.ways:
            if forced not in (None, way.name):
                continue
            refused = kernel.refuses_kprobes() if way.name == KPROBE else None
            for data in (FENTRY, None) if fexit and not refused else (None,):
                reason = refused or self._try(way, data)
                if reason is None:
                    self._way = way.name
                    waits = None if data else NO_MIGRATABLE
                    self._status = [
                        status_of(VFIO, way.name, "; ".join(reasons) or None),
                        status_of(VFIO_DATA, data, waits),
                    ]
                    return
                reasons.append(f"{way.name}: {reason}")
        self._say(status_of(VFIO, None, "; ".join(reasons)))

    def _try(self, way: Way, data: str | None) -> str | None:
        """Compile for this way, load the walker, attach. Returns why that failed, after removing everything."""
        bpf = None
        try:
            # fexit programs are attached in here
            bpf = compiled("vfio.bpf.c", _cflags(way, data), self._first)
            kind = Object.KPROBE if way.name == KPROBE else Object.TRACEPOINT
            bpf["walkers"][0] = ctypes.c_int(bpf.load("walk", kind))
            never = kernel.never_runs(("ksys_read", "ksys_write")) if data else None
            reason = never or attach_all(bpf, way)
        except Exception as error:
            reason = first_line(error)
        if reason is None:
            self._bpf = bpf
        elif bpf is not None:
            bpf.cleanup()
        return reason


def _cflags(way: Way, data: str | None) -> list[str]:
    flags = [f"-DWAY_{way.name.upper()}"]
    if data == FENTRY:
        flags.append("-DDATA_FENTRY")
    if way.name != KPROBE:
        return flags
    offsets = {
        "FIRST_ARGUMENT_OFFSET": NUMBERS.get(platform.machine(), {}).get("FIRST_ARGUMENT_OFFSET"),
        "FILE_PRIVATE_OFFSET": btf.member_offset("file", "private_data"),
        "PCI_DEVICE_OFFSET": btf.member_offset("pci_dev", "dev"),
    }
    for name, offset in offsets.items():
        if offset is None:
            raise LookupError(f"the kernel's BTF lacks {name}")
        flags.append(f"-D{name}={offset}")
    # Since 6.5 a device's file has a structure of its own before the device.
    if btf.knows("vfio_device_file", "vfio"):
        flags.append("-DVFIO_DEVICE_FILE")
    return flags
