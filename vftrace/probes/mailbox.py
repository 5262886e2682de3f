# SPDX-License-Identifier: MIT
"""The mailbox probes: one BPF object, attached to the drivers whose modules are loaded."""

import ctypes
from typing import Any

import msgspec

from vftrace.mailbox.driver import Driver, Drivers, HookedFunction
from vftrace.mailbox.drivers import DRIVERS
from vftrace.model.host import ProbeStatus
from vftrace.probes import btf, kernel
from vftrace.probes.attach import attach_all, detach_all, first_line
from vftrace.probes.module_watcher import ModuleProbes
from vftrace.probes.programs import compiled
from vftrace.probes.registry import KPROBE, MAILBOX, NO_CARD, Hook, Way, status_of


class Unsent(msgspec.Struct, frozen=True):
    """Messages of one VF above the recorded rate: how many since the last call."""

    pf: str
    driver: int
    vf: int
    from_vf: int
    to_vf: int
    resets: int


class MailboxProbes(ModuleProbes):
    """Attaches to each driver while its module is loaded. `status` has the reason where that fails."""

    def __init__(self, first: Any, drivers: Drivers = DRIVERS) -> None:
        """Attach to the drivers that are loaded. `first`: the BPF object whose ring buffer is used.
        `drivers` limit what of a message may leave the kernel.

        The drivers have no tracepoints for their mailbox, so kprobe is the only method.
        """
        self._first = first
        self._by_module = {driver.name: driver for driver in drivers.values()}
        super().__init__(*self._by_module)
        self._bpf: Any = None
        self.refused = kernel.refuses_kprobes()
        """The reason why this kernel has no kprobes at all; None if it has."""
        self._attached: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._reported: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.follow()

    @property
    def status(self) -> tuple[ProbeStatus, ...]:
        """How the mailboxes are attached now. The reason names the drivers that are not."""
        reasons = [f"{driver}: {why}" for driver, why in self._reasons.items()]
        if not self._attached and not reasons:
            reasons = [NO_CARD]
        return (status_of(MAILBOX, KPROBE if self._attached else None, "; ".join(reasons) or None),)

    def _on_load(self, module: str) -> None:
        reason = self.refused or self._attach(self._by_module[module])
        if reason is None:
            self._attached.add(module)
        else:
            self._reasons[module] = reason

    def _on_unload(self, module: str) -> None:
        self._reasons.pop(module, None)
        if module in self._attached:
            self._attached.remove(module)
            detach_all(self._bpf, _way(self._by_module[module]))

    def unsent(self) -> list[Unsent]:
        """The messages of each VF that were not recorded since the last call."""
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
        self._attached.clear()

    def _attach(self, driver: Driver) -> str | None:
        """Compile the object if needed, and attach to this driver. Returns the reason if that fails."""
        try:
            for hook in driver.hooks:
                require_parameters(hook, driver.name)
            if self._bpf is None:
                self._bpf = compiled("mailbox.bpf.c", first=self._first)
            self._describe(driver)
            return attach_all(self._bpf, _way(driver))
        except Exception as error:
            return first_line(error)

    def _describe(self, driver: Driver) -> None:
        """Give the kernel side the offsets in the driver's structures and its rules for messages."""
        layouts = self._bpf["layouts"]
        leaf = layouts.Leaf()
        for name, members in driver.layout.items():
            setattr(leaf, name, sum(_offset(member, driver.name) for member in members))
        layouts[ctypes.c_int(driver.number)] = leaf
        export(self._bpf, driver)


def export(bpf: Any, driver: Driver) -> None:
    """Give the kernel side the rules for how much of the driver's messages may leave the kernel."""
    rules = bpf["exportable_words"]
    for key, rule in driver.protocol.exportable(driver).items():
        rules[ctypes.c_uint32(key)] = ctypes.c_uint32(rule)


def require_parameters(hook: HookedFunction, module: str) -> None:
    """Raise LookupError if the module's function takes other parameters than the programs read.

    A vendor's build of a driver may have changed them. Without BTF of the function the check passes.
    """
    found = btf.parameters(hook.function, module)
    if found is not None and found[: len(hook.parameters)] != hook.parameters:
        raise LookupError(f"{hook.function} has other parameters: {', '.join(found)}")


def _offset(member: str, module: str) -> int:
    """Return the offset of `structure.member`, of the module's structures or the kernel's."""
    structure, _, name = member.partition(".")
    offset = btf.module_member_offset(structure, name, module)
    if offset is None:
        raise LookupError(f"the kernel's BTF does not have {member}")
    return offset


def _way(driver: Driver) -> Way:
    """Return the hooks of one driver in the form of the attach functions."""
    needed = tuple(hook for each in driver.hooks if not each.optional for hook in _hooks(each))
    optional = tuple(hook for each in driver.hooks if each.optional for hook in _hooks(each))
    return Way(KPROBE, needed, optional)


def _hooks(hooked: HookedFunction) -> tuple[Hook, ...]:
    entry = () if hooked.entry is None else (Hook(hooked.function, hooked.entry),)
    if hooked.at_return is None:
        return entry
    return (*entry, Hook(hooked.function, hooked.at_return, at_return=True))
