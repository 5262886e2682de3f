# SPDX-License-Identifier: MIT
"""The emulated machine's parts: a userspace image, and one kernel pack per kernel.

A kernel pack is the stock kernel, a small initramfs with the modules that reach the root, the
modules the lab uses (with all they depend on, unpacked: the emulated machine is slow at xz), the
headers to build our own modules against, and the few source files named in SOURCES.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vftlab.common import LAB, LabError, digest, digest_files, run
from vftlab.debian import KEYRING, Archive

ROOT_SUITES = ("trixie", "trixie-security")
INSIDE_PACKAGES = (
    # what vftrace runs with
    "python3",
    "python3-bpfcc",
    "python3-rich",
    "python3-prometheus-client",
    "python3-msgspec",
    "python3-h11",
    # what jobs drive, and what looks at them
    "qemu-system-x86",
    "iproute2",
    "iputils-ping",
    "pciutils",
    "ethtool",
    "kmod",
    "procps",
    "bpftool",
    "strace",
    # the initramfs's shell, and what powers off
    "busybox-static",
)
# What vftrace's Debian package depends on beside those, and an init that starts its service.
SERVICE_PACKAGES = (*INSIDE_PACKAGES, "python3-bcrypt", "python3-yaml", "systemd")
USERSPACES = {
    "trixie": (ROOT_SUITES, INSIDE_PACKAGES),
    "sid": (("sid",), INSIDE_PACKAGES),
    "systemd": (ROOT_SUITES, SERVICE_PACKAGES),
}
"""What runs inside: suites and packages. All else (the emulator, compilers) is the first one's."""
ROOT_PACKAGES = (
    *INSIDE_PACKAGES,
    # what builds modules on the outside
    "gcc",
    "make",
    "libc6-dev",
    "libelf-dev",
    # writes the BTF of the modules that take the place of stock ones
    "pahole",
)

KERNEL_SUITES = {
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("trixie", "trixie-security"),
    "7.x": ("trixie-backports",),
}
KERNEL_PACKAGES = ("linux-image-amd64", "linux-headers-amd64", "linux-source")
# Not linux-base alone, nor initramfs tools: nothing is installed, only unpacked. linux-headers and
# linux-kbuild are what modules are built with; from 7.x on the image is split in several packages.
KERNEL_DEPENDS = r"linux-(image|binary|modules|headers|kbuild|base|source)-.*[0-9].*(?<!-unsigned)"
SOURCES = (
    "*/samples/vfio-mdev/mtty.c",
    "*/drivers/net/ethernet/intel/ixgbe/*.h",
    "*/drivers/net/ethernet/intel/i40e/*.h",
    "*/drivers/net/ethernet/intel/ice/*.h",
    # what vftlab/iommufd.py builds
    "*/drivers/iommu/iommu-pages.h",
    "*/drivers/iommu/iommu-priv.h",
    "*/drivers/iommu/iommufd/*",
    "*/drivers/vfio/*",
    "*/lib/interval_tree.c",
)

INITRD_MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "ext4",
    "overlay",
    "9pnet_virtio",
    "9p",
)
# What the Linux guest inside the emulated machine has, in loading order.
GUEST_MODULES = ("failover", "net_failover", "virtio_net", "igbvf", "bonding")
MODULES = (
    "kvm",
    "kvm-amd",
    "vfio",
    "vfio-pci",
    "vfio_iommu_type1",
    "mdev",
    "iommufd",
    "igb",
    "igbvf",
    "ixgbe",
    "ixgbevf",
    "i40e",
    "iavf",
    "ice",
    "virtio_net",
    "failover",
    "net_failover",
    "bonding",
    "bridge",
    "8021q",
    "tun",
    "veth",
    "dummy",
    "macvlan",
    "sch_netem",
)


@dataclass(frozen=True)
class Root:
    """The userspace: as a directory (`tree`) and as an ext4 image (`image`)."""

    path: Path

    @property
    def tree(self) -> Path:
        return self.path / "tree"

    @property
    def image(self) -> Path:
        return self.path / "root.ext4"


@dataclass(frozen=True)
class Guest:
    """The Linux guest of the emulated machine: the pack's kernel, and an initramfs that is all it has."""

    path: Path

    @property
    def vmlinuz(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd.img"


@dataclass(frozen=True)
class Pack:
    """One kernel: `release` is its uname -r."""

    path: Path

    @property
    def release(self) -> str:
        return (self.path / "release").read_text().strip()

    @property
    def vmlinuz(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd.img"

    @property
    def modules(self) -> Path:
        """A tree that holds usr/lib/modules/<release>."""
        return self.path / "modules"

    @property
    def headers(self) -> Path:
        """A tree that holds usr/src and usr/lib as the header packages lay them out."""
        return self.path / "headers"

    @property
    def sources(self) -> Path:
        """A tree with the files of SOURCES."""
        return self.path / "sources"


def root_key(versions: dict[str, str]) -> str:
    """The name of a root made of these packages; the number stands for how it is made here."""
    listed = "\n".join(f"{name}={version}" for name, version in sorted(versions.items()))
    return digest("root 1", listed)


def pack_key(packages: dict[str, str]) -> str:
    """The name of a kernel pack made of these packages; the number stands for how."""
    listed = "\n".join(f"{name}={version}" for name, version in sorted(packages.items()))
    wanted = " ".join((*SOURCES, *INITRD_MODULES, *MODULES))
    return digest("pack 1", listed, wanted, digest_files([LAB / "guest" / "init"]))


def make_ext4(tree: Path, image: Path, log: Path) -> None:
    """Write `tree` into a new ext4 image that has room for nothing more than it."""
    blocks = int(
        subprocess.run(
            ["du", "-s", "--block-size=1M", str(tree)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )
    size = f"{int(blocks * 1.15) + 16}M"
    image.unlink(missing_ok=True)
    run(
        ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d", tree, image, size],
        log,
    )


def build_root(into: Path, archive: Archive, packages: Sequence[str], log: Path) -> None:
    """Install the packages into into/tree and write into/root.ext4."""
    root = Root(into)
    excluded = ("man", "doc", "locale", "info")
    run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            *_own_apt_settings(),
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
            f"--keyring={KEYRING}",
            "--include=" + ",".join(packages),
            archive.suites[0],
            root.tree,
            *archive.mirror.lines(archive.suites),
        ],
        log,
    )
    make_ext4(root.tree, root.image, log)


def _own_apt_settings() -> list[str]:
    """This machine's apt settings for proxies and time checks, which mmdebstrap does not read."""
    text = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    kept = r'Acquire::(https?::.*|Check-(Valid-Until|Date)) ".+";'
    return [f"--aptopt={line[:-1]}" for line in text.splitlines() if re.fullmatch(kept, line)]


def unpack_kernel(debs: Iterable[Path], into: Path, log: Path) -> None:
    """Unpack the kernel's packages: image, modules, headers, and the wanted source files."""
    pack = Pack(into)
    image = into / "image"
    for deb in debs:
        name = deb.name.split("_")[0]
        if re.fullmatch(r"linux-source-.*", name):
            _unpack_sources(deb, pack.sources, log)
        else:
            tree = pack.headers if re.match(r"linux-(headers|kbuild)-", name) else image
            tree.mkdir(parents=True, exist_ok=True)
            run(["dpkg-deb", "-x", deb, tree], log)
            # Older packages use /lib itself; one merged layout serves all.
            if (tree / "lib").is_dir():
                shutil.copytree(tree / "lib", tree / "usr/lib", dirs_exist_ok=True, symlinks=True)
                shutil.rmtree(tree / "lib")
    kernels = [*image.glob("boot/vmlinuz-*"), *image.glob("usr/lib/modules/*/vmlinuz")]
    if not kernels:
        raise LabError(f"the kernel packages in {into} hold no kernel")
    shutil.copy(kernels[0], pack.vmlinuz)
    release = next(p.name for p in (image / "usr/lib/modules").iterdir() if p.is_dir())
    (into / "release").write_text(release + "\n")
    _pick_modules(image, release, pack.modules, log)
    shutil.rmtree(image)


def _unpack_sources(deb: Path, into: Path, log: Path) -> None:
    """Unpack only SOURCES from the archive within the linux-source package."""
    into.mkdir(parents=True, exist_ok=True)
    wanted = " ".join(f"'{pattern}'" for pattern in SOURCES)
    script = (
        f"set -e -o pipefail; dpkg-deb --fsys-tarfile '{deb}'"
        " | tar -xO --wildcards './usr/src/linux-source-*.tar.xz'"
        # A pattern that is not there is no error: not every kernel has every file.
        f" | xz -dc -T2 | {{ tar -x --strip-components=1 --wildcards -C '{into}' {wanted} || true; }}"
    )
    run(["bash", "-c", script], log)


def _name(path: str) -> str:
    """The name modprobe knows a module file by."""
    return Path(path).name.split(".")[0].replace("-", "_")


def _closure(modules_dir: Path, wanted: Sequence[str]) -> list[str]:
    """Files of `wanted` and of all they need, in the order to load them. Built-in ones are left out."""
    depends: dict[str, list[str]] = {}
    for line in (modules_dir / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        depends[path] = needs.split()
    by_name = {_name(path): path for path in depends}
    ordered: list[str] = []

    def add(path: str) -> None:
        for need in depends[path]:
            add(need)
        if path not in ordered:
            ordered.append(path)

    for module in wanted:
        # Not every kernel has every module: what is not there cannot be loaded, and jobs say so.
        found = by_name.get(module.replace("-", "_"))
        if found is not None:
            add(found)
    return ordered


def _pick_modules(image: Path, release: str, into: Path, log: Path) -> None:
    """Copy the lab's modules, decompressed, to `into` and index them."""
    stock = image / "usr/lib/modules" / release
    # depmod -b wants lib/modules below its base.
    for base in (image, into):
        (base / "usr/lib").mkdir(parents=True, exist_ok=True)
        (base / "lib").symlink_to("usr/lib")
    run(["depmod", "-b", image, release], log)
    target = into / "usr/lib/modules" / release
    target.mkdir(parents=True)
    for path in _closure(stock, [*INITRD_MODULES, *MODULES]):
        copy = target / re.sub(r"\.ko\..*$", ".ko", path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".ko"):
            shutil.copy(stock / path, copy)
        else:
            unpacker = {".xz": "xz", ".zst": "zstd"}[Path(path).suffix]
            with copy.open("wb") as out:
                subprocess.run([unpacker, "-q", "-dc", str(stock / path)], stdout=out, check=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (stock / name).exists():
            shutil.copy(stock / name, target / name)
    run(["depmod", "-b", into, release], log)
    (into / "lib").unlink()


def build_initrd(pack: Pack, busybox: Path, log: Path) -> None:
    """Write the initramfs: busybox, INITRD_MODULES in loading order, and guest/init."""
    tree = pack.path / "initrd"
    _write_initrd(tree, pack, INITRD_MODULES, busybox, LAB / "guest/init", pack.initrd, log)


def guest_key(root: str, pack: str) -> str:
    """The name of the Linux guest of this root and this kernel pack."""
    own = digest_files([LAB / "guest/linux-init"])
    return digest("guest 1", root, pack, " ".join(GUEST_MODULES), own)


def build_guest(into: Path, root: Root, pack: Pack, log: Path) -> None:
    """Write the Linux guest: the kernel, and an initramfs of busybox, GUEST_MODULES and guest/linux-init."""
    guest = Guest(into)
    shutil.copy(pack.vmlinuz, guest.vmlinuz)
    busybox = root.tree / "usr/bin/busybox"
    init = LAB / "guest/linux-init"
    _write_initrd(into / "tree", pack, GUEST_MODULES, busybox, init, guest.initrd, log)


def _write_initrd(
    tree: Path,
    pack: Pack,
    modules: Sequence[str],
    busybox: Path,
    init: Path,
    image: Path,
    log: Path,
) -> None:
    """Lay out `tree`, write it to `image` and remove it."""
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "mods", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    modules_dir = pack.modules / "usr/lib/modules" / pack.release
    for number, path in enumerate(_closure(modules_dir, modules)):
        shutil.copy(modules_dir / path, tree / "mods" / f"{number:02d}-{Path(path).name}")
    shutil.copy(init, tree / "init")
    (tree / "init").chmod(0o755)
    # Not compressed: the emulated machine would spend longer unpacking than QEMU does copying.
    script = f"cd '{tree}' && find . | cpio --quiet -o -H newc > '{image}'"
    run(["bash", "-c", script], log)
    shutil.rmtree(tree)
