# SPDX-License-Identifier: MIT
"""Attaches probes to kernel modules that are loaded and unloaded while vftrace runs."""

from abc import ABC, abstractmethod
from pathlib import Path

MODULES = Path("/sys/module")


def instance(module: str) -> int | None:
    """Return a number that differs for each loading of a module (its directory's inode in sysfs); None: not loaded.

    Built-in parts of the kernel that have parameters always have one.
    """
    try:
        return (MODULES / module).stat().st_ino
    except OSError:
        return None


class ModuleProbes(ABC):
    """The attachments to some modules, each handled by itself."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._loaded: dict[str, int] = {}

    def follow(self) -> bool:
        """Attach to modules that were loaded, detach from those that were removed; True if one was loaded."""
        come = False
        for module in self._modules:
            now, before = instance(module), self._loaded.get(module)
            if now == before:
                continue
            if before is not None:
                del self._loaded[module]
                self._on_unload(module)
            if now is not None:
                self._loaded[module] = now
                self._on_load(module)
                come = True
        return come

    @abstractmethod
    def _on_load(self, module: str) -> None:
        """Attach to a loaded module. A failure is noted, not raised."""

    @abstractmethod
    def _on_unload(self, module: str) -> None:
        """Detach after a module was unloaded with its functions."""
