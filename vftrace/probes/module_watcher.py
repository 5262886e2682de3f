"""Probes of kernel modules that come, go and come again while vftrace runs."""

from abc import ABC, abstractmethod
from pathlib import Path

MODULES = Path("/sys/module")


def instance(module: str) -> int | None:
    """What distinguishes one loading of a module from the next (its directory's inode in sysfs); None: not loaded.

    Parts of the kernel that are built in and have parameters are there always.
    """
    try:
        return (MODULES / module).stat().st_ino
    except OSError:
        return None


class ModuleProbes(ABC):
    """What is attached to some modules, each by itself."""

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
                self._gone(module)
            if now is not None:
                self._loaded[module] = now
                self._come(module)
                come = True
        return come

    @abstractmethod
    def _come(self, module: str) -> None:
        """The module is loaded: attach. What cannot be attached is noted, not raised."""

    @abstractmethod
    def _gone(self, module: str) -> None:
        """The module was unloaded; its functions are no more."""
