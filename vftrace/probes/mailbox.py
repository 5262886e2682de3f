"""The mailbox probes: for each driver a BPF object of its own that comes and goes with its module."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vftrace.mailbox.drivers import TABLES, shipped_words
from vftrace.mailbox.table import Table
from vftrace.probes import btf, kernel
from vftrace.probes.attach import captured_stderr, first_line, hang_up
from vftrace.probes.plan import KPROBE, MAILBOX, ProbeStatus, mailbox_way
from vftrace.probes.text import program_text

MODULES = Path("/sys/module")


@dataclass(frozen=True)
class Layout:
    """Where a driver keeps what leads from its `hw` to the card: structures and members."""

    hw: str
    adapter: str


LAYOUTS = {
    "ixgbe": Layout(hw="ixgbe_hw", adapter="ixgbe_adapter"),
    "igb": Layout(hw="e1000_hw", adapter="igb_adapter"),
}
"""`hw` has `back`, a pointer to the adapter, and that has `pdev`, a pointer to its PCI device."""


@dataclass(frozen=True)
class Unsent:
    """Messages of one VF that came faster than they are recorded: how many more since the last call."""

    pf: str
    driver: int
    vf: int
    from_vf: int
    to_vf: int
    resets: int


class MailboxProbes:
    """Nothing here is needed: what cannot be attached is noted in `status`."""

    def __init__(self, bcc: Any) -> None:
        """Attach what can be now. The first object must be loaded: its maps are used.

        There is one way only (drivers have no tracepoints for it), so none can be forced.
        """
        self._bcc = bcc
        self.refused = kernel.refuses_kprobes()
        """Why this kernel takes no such probes at all; None if it does."""
        self._loaded: dict[int, Any] = {}
        self._reasons: dict[int, str] = {}
        self._reported: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._closed: list[Unsent] = []
        self.follow()

    @property
    def status(self) -> tuple[ProbeStatus, ...]:
        """How the mailboxes are attached now; the reason names the drivers whose are not."""
        reasons = [f"{TABLES[number].driver}: {why}" for number, why in self._reasons.items()]
        if not self._loaded and not reasons:
            names = " or ".join(table.driver for table in TABLES.values())
            reasons = [f"no module {names} is loaded"]
        return (ProbeStatus(MAILBOX, KPROBE if self._loaded else None, "; ".join(reasons) or None),)

    def follow(self) -> None:
        """Load and attach for modules that have come, let go of those that have gone."""
        for number, table in TABLES.items():
            there = (MODULES / table.driver).exists()
            if there and number not in self._loaded and number not in self._reasons:
                reason = self.refused or self._load(table)
                if reason is not None:
                    self._reasons[number] = reason
            elif not there:
                self._reasons.pop(number, None)
                self._unload(number)

    def unsent(self) -> list[Unsent]:
        """For each VF of which messages were not recorded since the last call, how many."""
        found, self._closed = self._closed, []
        for number, bpf in self._loaded.items():
            found += self._read_unsent(number, bpf)
        return found

    def close(self) -> None:
        """Detach everything."""
        for number in tuple(self._loaded):
            self._unload(number)

    def _unload(self, number: int) -> None:
        bpf = self._loaded.pop(number, None)
        if bpf is not None:
            self._closed += self._read_unsent(number, bpf)
            self._reported = {k: v for k, v in self._reported.items() if k[0] != number}
            bpf.cleanup()

    def _read_unsent(self, number: int, bpf: Any) -> list[Unsent]:
        found = []
        for key, flow in bpf["flows"].items():
            which = (number, int(key.hw), int(key.vf))
            now = (int(flow.unsent_from_vf), int(flow.unsent_to_vf), int(flow.unsent_resets))
            before = self._reported.get(which, (0, 0, 0))
            if now != before:
                self._reported[which] = now
                pf = flow.pf.decode("ascii", errors="replace")
                new = (after - earlier for after, earlier in zip(now, before, strict=True))
                found.append(Unsent(pf, number, int(flow.vf), *new))
        return found

    def _load(self, table: Table) -> str | None:
        """Compile for this driver and attach. Returns why not, with nothing left behind."""
        bpf = None
        with captured_stderr() as complaint:
            try:
                bpf = self._bcc.BPF(text=program_text("mailbox.bpf.c"), cflags=_cflags(table))
                rules = bpf["shipped"]
                for key, rule in shipped_words(table).items():
                    rules[ctypes.c_uint32(key)] = ctypes.c_uint32(rule)
                reason = hang_up(bpf, mailbox_way(table.driver))
            except Exception as error:  # BCC raises Exception itself
                reason = first_line(complaint(), error)
        if reason is None:
            self._loaded[table.number] = bpf
        elif bpf is not None:
            bpf.cleanup()
        return reason


def _cflags(table: Table) -> list[str]:
    layout = LAYOUTS[table.driver]
    offsets = {
        "HW_BACK_OFFSET": btf.module_member_offset(layout.hw, "back", table.driver),
        "ADAPTER_PDEV_OFFSET": btf.module_member_offset(layout.adapter, "pdev", table.driver),
        "PCI_DEVICE_OFFSET": btf.member_offset("pci_dev", "dev"),
    }
    flags = [f"-DDRIVER={table.number}", "-Wno-everything"]
    for name, offset in offsets.items():
        if offset is None:
            raise LookupError(f"the BTF of {table.driver} does not say {name}")
        flags.append(f"-D{name}={offset}")
    return flags
