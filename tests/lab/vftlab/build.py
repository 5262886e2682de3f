# SPDX-License-Identifier: MIT
"""Build what the lab needs and does not have: `tests/lab/build [KERNEL ...]`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vftlab.common import (
    EXIT_CANNOT,
    EXIT_USAGE,
    LAB,
    LabError,
    Progress,
    cache_dir,
    digest,
)
from vftlab.debian import Archive, Mirror, install_tools, missing_tools, own_mirror
from vftlab.images import (
    KERNEL_DEPENDS,
    KERNEL_PACKAGES,
    KERNEL_SUITES,
    ROOT_PACKAGES,
    ROOT_SUITES,
    USERSPACES,
    Guest,
    Pack,
    Root,
    build_guest,
    build_root,
    guest_key,
    pack_key,
    root_key,
    unpack_kernel,
)
from vftlab.iommufd import Iommufd, build_iommufd, iommufd_key
from vftlab.modules import build_modules, modules_key

KERNELS = tuple(KERNEL_SUITES)
DEFAULT_USERSPACE = "trixie"


@dataclass(frozen=True)
class Built:
    """What one emulated machine boots from."""

    root: Root
    pack: Pack
    modules_image: Path
    guest: Guest
    inside: Root
    """The userspace that is booted; `root` is what all else is made with."""


def _cached(path: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a directory, which becomes `path` only once it is complete.

    Older versions of the same thing (same name up to the last dash) are removed.
    """
    unfinished = path.with_name(path.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    make(unfinished)
    for old in path.parent.glob(path.name.rpartition("-")[0] + "-*"):
        if old != unfinished:
            shutil.rmtree(old)
    unfinished.rename(path)


@contextlib.contextmanager
def _lock(cache: Path, progress: Progress) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with progress.step("another build is running, waiting for it"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Builder:
    """Builds into one cache directory."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        self.cache = cache
        self.progress = progress

    def _log(self, name: str) -> Path:
        return self.cache / "logs" / f"{name}.log"

    def _versions(
        self, archive: Archive, name: str, find: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Package versions, looked up again only when the package lists were fetched again."""
        known = archive.path / f"{name}.json"
        if not archive.fresh():
            with self.progress.step(f"package lists of {archive.suites[0]}"):
                archive.update(self._log("apt"))
            known.unlink(missing_ok=True)
        if not known.exists():
            known.write_text(json.dumps(find(), indent=1, sort_keys=True))
        found: dict[str, str] = json.loads(known.read_text())
        return found

    def _archive(self, mirror: Mirror, suites: tuple[str, ...]) -> Archive:
        return Archive(self.cache / "apt" / suites[0], suites, mirror)

    def _root(self, archive: Archive) -> Root:
        return self._userspace("root", archive, ROOT_PACKAGES)

    def _userspace(self, name: str, archive: Archive, packages: Sequence[str]) -> Root:
        # Another list of packages is not known by the versions of the last one.
        listed = f"root-{digest(*packages)}"
        versions = self._versions(archive, listed, lambda: archive.versions(packages))
        root = Root(self.cache / f"{name}-{root_key(versions)}")
        if not root.path.exists():
            log = self._log(name)
            with self.progress.step(f"userspace image (Debian {archive.suites[0]})"):
                _cached(root.path, lambda path: build_root(path, archive, packages, log))
        return root

    def _pack(self, name: str, archive: Archive) -> Pack:
        packages = self._versions(
            archive, "kernel", lambda: archive.closure(KERNEL_PACKAGES, KERNEL_DEPENDS)
        )
        pack = Pack(self.cache / f"kernel-{name}-{pack_key(packages)}")
        if pack.path.exists():
            return pack
        log = self._log(f"kernel-{name}")

        def make(into: Path) -> None:
            version = packages[KERNEL_PACKAGES[0]]
            with self.progress.step(f"kernel {name}: fetching {version}"):
                debs = archive.download(packages, into / "debs", log)
            with self.progress.step(f"kernel {name}: unpacking"):
                unpack_kernel(debs, into, log)
            shutil.rmtree(into / "debs")

        _cached(pack.path, make)
        return pack

    def _iommufd(self, name: str, root: Root, pack: Pack) -> Iommufd:
        path = self.cache / f"iommufd-{name}-{iommufd_key(root.path.name, pack.path.name)}"
        if not path.exists():
            log = self._log(f"iommufd-{name}")
            log.unlink(missing_ok=True)
            with self.progress.step(f"kernel {name}: iommufd and VFIO"):
                _cached(path, lambda into: build_iommufd(into, root, pack, log))
        return Iommufd(path)

    def _modules(self, name: str, root: Root, pack: Pack) -> Path:
        iommufd = self._iommufd(name, root, pack)
        key = modules_key(root.path.name, pack.path.name, iommufd.path.name)
        path = self.cache / f"modules-{name}-{key}"
        if not path.exists():
            log = self._log(f"modules-{name}")
            log.unlink(missing_ok=True)
            with self.progress.step(f"kernel {name}: initramfs and modules of our own"):
                _cached(path, lambda into: _discard(build_modules(into, root, pack, iommufd, log)))
        return path / "modules.ext4"

    def _guest(self, name: str, root: Root, pack: Pack) -> Guest:
        path = self.cache / f"guest-{name}-{guest_key(root.path.name, pack.path.name)}"
        if not path.exists():
            log = self._log(f"guest-{name}")
            with self.progress.step(f"kernel {name}: the Linux guest"):
                _cached(path, lambda into: build_guest(into, root, pack, log))
        return Guest(path)

    def build(self, kernels: Sequence[str], userspace: str) -> dict[str, Built]:
        """Build what is missing for the kernels; what they boot from, by kernel."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with _lock(self.cache, self.progress):
            _as_root()
            if missing := missing_tools():
                with self.progress.step("installing " + " ".join(missing)):
                    install_tools(missing, self._log("tools"))
            mirror = own_mirror()
            # The userspace is one stream of downloading and unpacking, the kernels another.
            with ThreadPoolExecutor(2) as pool:
                archives = {
                    name: self._archive(mirror, suites) for name, suites in KERNEL_SUITES.items()
                }
                base = self._archive(mirror, ROOT_SUITES)
                if not base.fresh():
                    # Shared by both streams, so fetched before either.
                    with self.progress.step(f"package lists of {base.suites[0]}"):
                        base.update(self._log("apt"))
                        for old in base.path.glob("*.json"):
                            old.unlink()
                root_job = pool.submit(self._root, base)
                packs_job = pool.submit(
                    lambda: {name: self._pack(name, archives[name]) for name in kernels}
                )
                root, packs = root_job.result(), packs_job.result()
            inside = root
            if userspace != DEFAULT_USERSPACE:
                suites, wanted = USERSPACES[userspace]
                archive = self._archive(mirror, suites)
                inside = self._userspace(f"{userspace}root", archive, wanted)
            return {
                name: Built(
                    root,
                    pack,
                    self._modules(name, root, pack),
                    self._guest(name, root, pack),
                    inside,
                )
                for name, pack in packs.items()
            }


def _discard(_: object) -> None:
    """Drop a value."""


def _as_root() -> None:
    if os.geteuid() != 0:
        raise LabError("building images needs root", EXIT_CANNOT)


def ensure(
    kernels: Sequence[str], progress: Progress, userspace: str = DEFAULT_USERSPACE
) -> dict[str, Built]:
    """What the kernels boot from, built if need be. Calls sudo where this is not root.

    Raises LabError if something cannot be built.
    """
    for name in kernels:
        if name not in KERNELS:
            raise LabError(f"no kernel {name!r}; there are {', '.join(KERNELS)}", EXIT_USAGE)
    cache = cache_dir()
    if os.geteuid() == 0:
        return Builder(cache, progress).build(kernels, userspace)
    command = ["sudo", f"VFTRACE_LAB_CACHE={cache}", str(LAB / "build"), "--json", *kernels]
    command += ["--userspace", userspace]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise LabError("building images needs root or sudo", EXIT_CANNOT) from None
    if result.returncode:
        raise LabError("the build failed, see above", result.returncode)
    return {name: _from_json(entry) for name, entry in json.loads(result.stdout).items()}


def _to_json(built: Built) -> dict[str, str]:
    return {
        "root": str(built.root.path),
        "pack": str(built.pack.path),
        "modules": str(built.modules_image),
        "guest": str(built.guest.path),
        "inside": str(built.inside.path),
    }


def _from_json(entry: dict[str, str]) -> Built:
    return Built(
        Root(Path(entry["root"])),
        Pack(Path(entry["pack"])),
        Path(entry["modules"]),
        Guest(Path(entry["guest"])),
        Root(Path(entry["inside"])),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/lab/build", description="Build the lab's images, as far as they are missing."
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)}")
    parser.add_argument("--json", action="store_true", help="print where everything is")
    parser.add_argument("--userspace", choices=USERSPACES, default=DEFAULT_USERSPACE)
    options = parser.parse_args(arguments)
    progress = Progress()
    try:
        built = ensure(options.kernels or KERNELS, progress, options.userspace)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("lab: stopped", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps({name: _to_json(one) for name, one in built.items()}, indent=1))
    else:
        releases = ", ".join(f"{name} ({one.pack.release})" for name, one in built.items())
        progress.say(f"ready: {releases} in {cache_dir()}")
    return 0
