# SPDX-License-Identifier: MIT
"""Each source file names its licence in its first lines; REUSE.toml names it for all others."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TAG = "SPDX-License-Identifier"
PLACES = ("vftrace", "bpf", "tests", "tools", "benchmarks", "dashboards")
BUILT = {"node_modules", "__pycache__", "results", "dist"}
BY_SUFFIX = {".py": "MIT", ".c": None, ".h": None, ".js": "MIT", ".jsx": "MIT", ".mjs": "MIT"}
"""The licence by a name's end; None where it depends on the place."""
KERNEL = ("GPL-2.0-only OR MIT", "GPL-2.0-only", "GPL-2.0")
"""Licences of what is loaded into the kernel."""


def sources() -> Iterator[Path]:
    for place in PLACES:
        for path in (ROOT / place).rglob("*"):
            if path.suffix in BY_SUFFIX and path.is_file() and BUILT.isdisjoint(path.parts):
                yield path.relative_to(ROOT)


def licence_of(text: str) -> str | None:
    for line in text.splitlines()[:2]:
        _, found, name = line.partition(f"{TAG}: ")
        if found:
            return name.removesuffix("*/").strip()
    return None


def test_each_source_names_its_licence() -> None:
    found = {path: licence_of((ROOT / path).read_text()) for path in sources()}
    assert len(found) > 500
    assert [str(path) for path, name in found.items() if name is None] == []
    wrong = {
        str(path): name
        for path, name in found.items()
        if BY_SUFFIX[path.suffix] not in (None, name) or name not in ("MIT", *KERNEL)
    }
    assert wrong == {}
    assert {name for path, name in found.items() if path.parts[0] == "bpf"} == {KERNEL[0]}
