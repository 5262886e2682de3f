# SPDX-License-Identifier: MIT
"""Hatch's build hook: writes the commit into a wheel (vftrace/version.py reads it)."""

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `vftrace/_commit` to the wheel where the commit is known."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatch before the wheel is built; an editable install looks into its checkout itself."""
        package = Path(self.root) / "vftrace"
        commit = _version_module(package).commit_of(package)
        if version != "editable" and commit is not None:
            file = Path(self.directory) / "vftrace-commit"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(commit + "\n")
            build_data["force_include"][str(file)] = "vftrace/_commit"


def _version_module(package: Path) -> Any:
    """vftrace.version, from its file: vftrace is not installed where it is built."""
    spec = importlib.util.spec_from_file_location("version", package / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
