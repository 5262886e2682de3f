# SPDX-License-Identifier: MIT
"""Debian packages, from the mirror that this machine's own apt configuration names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vftlab.common import EXIT_CANNOT, LabError, output, run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INDEX_AGE_S = 24 * 3600.0


@dataclass(frozen=True)
class Mirror:
    """Archive addresses: `main` for releases and backports, `security` where one is configured."""

    main: str
    security: str | None

    def lines(self, suites: Iterable[str]) -> list[str]:
        """sources.list lines for the suites; a security suite without an address is left out."""
        lines = []
        for suite in suites:
            base = self.security if suite.endswith("-security") else self.main
            if base is not None:
                lines.append(f"deb [signed-by={KEYRING}] {base} {suite} main")
        return lines


def own_mirror() -> Mirror:
    """The mirror this machine uses, as apt itself understands its configuration."""
    text = output(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    )
    main = security = None
    for line in text.splitlines():
        uri, _, release = line.strip().partition(" ")
        if re.fullmatch(r"(bookworm|trixie|forky|sid|stable|testing|oldstable)", release):
            main = main or uri.rstrip("/")
        elif re.fullmatch(r"\w+-security", release):
            security = security or uri.rstrip("/")
    if main is None:
        raise LabError(
            "the lab is made of Debian packages, and this machine's apt configuration"
            " names no Debian mirror (add one to /etc/apt/sources.list.d)",
            EXIT_CANNOT,
        )
    return Mirror(main, security)


@dataclass(frozen=True)
class Archive:
    """A private apt state for some suites, in `path`, apart from the machine's own."""

    path: Path
    suites: tuple[str, ...]
    mirror: Mirror

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::SourceList": self.path / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.path / "lists",
            "Dir::State::status": self.path / "status",
            "Dir::Cache": self.path / "cache",
            # Container images switch these off; every look-up would then parse all lists again.
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Acquire::Languages": "none",
            # As root apt would drop to a user who cannot write below the cache directory.
            "APT::Sandbox::User": "root",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def fresh(self) -> bool:
        """Whether the package lists were fetched within a day from the same mirror."""
        stamp = self.path / "updated"
        lines = "\n".join(self.mirror.lines(self.suites)) + "\n"
        sources = self.path / "sources.list"
        return (
            stamp.exists()
            and time.time() - stamp.stat().st_mtime < INDEX_AGE_S
            and sources.exists()
            and sources.read_text() == lines
        )

    def update(self, log: Path) -> None:
        """Fetch the package lists."""
        for directory in ("lists/partial", "cache/archives/partial"):
            (self.path / directory).mkdir(parents=True, exist_ok=True)
        (self.path / "status").touch()
        (self.path / "sources.list").write_text("\n".join(self.mirror.lines(self.suites)) + "\n")
        run(["apt-get", *self._options(), "-q", "update", "--error-on=any"], log)
        (self.path / "updated").touch()

    def candidate(self, package: str) -> tuple[str, list[str]]:
        """(version, names it depends on, first alternatives only) of the newest `package`."""
        text = output(["apt-cache", *self._options(), "show", "--no-all-versions", package])
        fields = dict(re.findall(r"^(Version|Depends): (.*)$", text, re.MULTILINE))
        if "Version" not in fields:
            raise LabError(f"no package {package} in {', '.join(self.suites)}", EXIT_CANNOT)
        depends = [
            re.split(r"[ |(]", item.strip())[0] for item in fields.get("Depends", "").split(",")
        ]
        return fields["Version"], [name for name in depends if name]

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """The newest version of each of `packages`."""
        text = output(["apt-cache", *self._options(), "show", "--no-all-versions", *packages])
        pairs = re.findall(r"^Package: (\S+)\n(?:.*\n)*?Version: (\S+)$", text, re.MULTILINE)
        missing = set(packages) - {name for name, _ in pairs}
        if missing:
            raise LabError(
                f"no package {', '.join(sorted(missing))} in {', '.join(self.suites)}", EXIT_CANNOT
            )
        return dict(pairs)

    def closure(self, tops: Sequence[str], wanted: str) -> dict[str, str]:
        """Versions of `tops` and of what they depend on, as far as names match `wanted`."""
        found: dict[str, str] = {}
        queue = list(tops)
        while queue:
            package = queue.pop()
            if package in found:
                continue
            version, depends = self.candidate(package)
            found[package] = version
            queue += [name for name in depends if re.fullmatch(wanted, name)]
        return found

    def download(self, packages: dict[str, str], into: Path, log: Path) -> list[Path]:
        """Fetch the packages' .deb files into the directory; returns their paths."""
        into.mkdir(parents=True, exist_ok=True)
        words = [f"{name}={version}" for name, version in sorted(packages.items())]
        run(["apt-get", *self._options(), "-q", "download", *words], log, cwd=into)
        return sorted(into.glob("*.deb"))


TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "cpio": "cpio",
    "xz": "xz-utils",
    "zstd": "zstd",
}


def missing_tools() -> list[str]:
    """Packages that the build needs and this machine lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    places = [Path(part) for part in path.split(":") if part]
    missing = {
        package
        for tool, package in TOOLS.items()
        if not any((place / tool).exists() for place in places)
    }
    if not KEYRING.exists():
        missing.add("debian-archive-keyring")
    return sorted(missing)


def install_tools(packages: Sequence[str], log: Path) -> None:
    """Install packages on this machine, with its own apt."""
    install = ["apt-get", "-q", "-y", "--no-install-recommends", "install", *packages]
    try:
        run(install, log)
    except LabError:
        run(["apt-get", "-q", "update"], log)
        run(install, log)
