"""The mailbox probes: one BPF object, attached to the drivers whose modules are there."""

import ctypes
from dataclasses import dataclass
from typing import Any

from vftrace.mailbox.drivers import TABLES, Tables, shipped_words
from vftrace.mailbox.table import Table
from vftrace.probes import btf, kernel
from vftrace.probes.attach import attach_all, captured_stderr, detach_all, first_line
from vftrace.probes.bcc.compiler import compiled
from vftrace.probes.module_watcher import ModuleProbes
from vftrace.probes.registry import KPROBE, MAILBOX, NO_CARD, ProbeStatus, mailbox_way


@dataclass(frozen=True)
class Layout:
    """Names of a driver's structures: `hw` has `back`, a pointer to the adapter, and that has `pdev`,
    a pointer to its PCI device."""

    hw: str
    adapter: str


LAYOUTS = {
    "ixgbe": Layout(hw="ixgbe_hw", adapter="ixgbe_adapter"),
    "igb": Layout(hw="e1000_hw", adapter="igb_adapter"),
}


@dataclass(frozen=True)
class Unsent:
    """Messages of one VF that came faster than they are recorded: how many more since the last call."""

    pf: str
    driver: int
    vf: int
    from_vf: int
    to_vf: int
    resets: int


class MailboxProbes(ModuleProbes):
    """Nothing here is needed: what cannot be attached is noted in `status`."""

    def __init__(self, first: Any, tables: Tables = TABLES) -> None:
        """Attach what can be now. `first`: the BPF object whose ring is used.
        `tables` say which words of a message may leave the kernel.

        There is one way only (drivers have no tracepoints for it), so none can be forced.
        """
        self._first = first
        self._tables = tables
        self._by_driver = {table.driver: table for table in tables.values()}
        super().__init__(*self._by_driver)
        self._bpf: Any = None
        self.refused = kernel.refuses_kprobes()
        """Why this kernel takes no such probes at all; None if it does."""
        self._attached: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._reported: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.follow()

    @property
    def status(self) -> tuple[ProbeStatus, ...]:
        """How the mailboxes are attached now; the reason names the drivers whose are not."""
        reasons = [f"{driver}: {why}" for driver, why in self._reasons.items()]
        if not self._attached and not reasons:
            reasons = [NO_CARD]
        return (
            ProbeStatus(MAILBOX, KPROBE if self._attached else None, "; ".join(reasons) or None),
        )

    def _come(self, module: str) -> None:
        reason = self.refused or self._attach(self._by_driver[module])
        if reason is None:
            self._attached.add(module)
        else:
            self._reasons[module] = reason

    def _gone(self, module: str) -> None:
        self._reasons.pop(module, None)
        if module in self._attached:
            self._attached.remove(module)
            detach_all(self._bpf, mailbox_way(module))

    def unsent(self) -> list[Unsent]:
        """For each VF of which messages were not recorded since the last call, how many."""
        found: list[Unsent] = []
        if self._bpf is None:
            return found
        for key, flow in self._bpf["flows"].items():
            which = (int(key.hw), int(key.vf))
            now = (int(flow.unsent_from_vf), int(flow.unsent_to_vf), int(flow.unsent_resets))
            before = self._reported.get(which, (0, 0, 0))
            if now != before:
                self._reported[which] = now
                pf = flow.pf.decode("ascii", errors="replace")
                new = (after - earlier for after, earlier in zip(now, before, strict=True))
                found.append(Unsent(pf, int(flow.driver), int(flow.vf), *new))
        return found

    @property
    def cached(self) -> tuple[bool, ...]:
        """Whether the programs came from the cache; nothing where there are none."""
        return () if self._bpf is None else (self._bpf.cached,)

    def close(self) -> None:
        """Detach everything."""
        if self._bpf is not None:
            self._bpf.cleanup()
        self._bpf = None
        self._attached.clear()

    def _attach(self, table: Table) -> str | None:
        """Compile if that is not done yet, and attach to this driver. Returns why not."""
        with captured_stderr() as complaint:
            try:
                if self._bpf is None:
                    self._bpf = compiled("mailbox.bpf.c", first=self._first)
                self._tell(table)
                return attach_all(self._bpf, mailbox_way(table.driver))
            except Exception as error:  # BCC raises Exception itself
                return first_line(complaint(), error)

    def _tell(self, table: Table) -> None:
        """Tell the kernel side how the driver's structures lie, and which words it may send on."""
        layout = LAYOUTS[table.driver]
        offsets = {
            "back": btf.module_member_offset(layout.hw, "back", table.driver),
            "pdev": btf.module_member_offset(layout.adapter, "pdev", table.driver),
            "device": btf.member_offset("pci_dev", "dev"),
        }
        layouts = self._bpf["layouts"]
        leaf = layouts.Leaf()
        for name, offset in offsets.items():
            if offset is None:
                raise LookupError(f"the kernel's BTF does not say where {name} is")
            setattr(leaf, name, offset)
        layouts[ctypes.c_int(table.number)] = leaf
        allow_words(self._bpf, table)


def allow_words(bpf: Any, table: Table) -> None:
    """Tell the kernel side which words of the driver's messages it may send on."""
    rules = bpf["exportable_words"]
    for key, rule in shipped_words(table).items():
        rules[ctypes.c_uint32(key)] = ctypes.c_uint32(rule)
