# SPDX-License-Identifier: MIT
"""iommufd, and a VFIO that knows it, as modules for Debian's own kernels.

Debian builds its kernels without CONFIG_IOMMUFD. Everything that the option adds is in modules, and these need
nothing of the kernel proper that it does not export, so they are compiled from that kernel's linux-source against its
headers and take the place of the stock VFIO modules. iommufd came with Linux 6.2: an older kernel keeps its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vftlab.common import LabError, digest, digest_files, run
from vftlab.images import Pack, Root

# For the Makefiles. CONFIG_IOMMUFD_DRIVER is bool: with `y` make would want its objects in the kernel proper.
_MAKE = (
    "CONFIG_IOMMUFD=m",
    "CONFIG_IOMMUFD_DRIVER=",
    "CONFIG_IOMMUFD_DRIVER_CORE=m",
    "CONFIG_VFIO_DEVICE_CDEV=y",
)
# Variant drivers whose devices the emulated machine does not have.
_LEFT_OUT = (
    "CONFIG_HISI_ACC_VFIO_PCI=",
    "CONFIG_ISM_VFIO_PCI=",
    "CONFIG_MLX5_VFIO_PCI=",
    "CONFIG_NVGRACE_GPU_VFIO_PCI=",
    "CONFIG_PDS_VFIO_PCI=",
    "CONFIG_QAT_VFIO_PCI=",
    "CONFIG_VFIO_PLATFORM_BASE=",
    "CONFIG_VIRTIO_VFIO_PCI=",
    "CONFIG_XE_VFIO_PCI=",
)
# For the code, which sees the headers' autoconf.h.
_DEFINES = (
    "-DCONFIG_IOMMUFD_MODULE=1",
    "-DCONFIG_IOMMUFD_DRIVER=1",
    "-DCONFIG_IOMMUFD_DRIVER_CORE_MODULE=1",
    "-DCONFIG_VFIO_DEVICE_CDEV=1",
)
_SPAN_ITERATOR = re.compile(
    r"^#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER$.*?^#endif$", re.MULTILINE | re.DOTALL
)
# What the kernel's own scripts/Makefile.btf asks of pahole for modules.
_BTF_FEATURES = "encode_force,var,float,enum64,decl_tag,type_tag,optimized_func,consistent_func"


def iommufd_key(root: str, pack: str) -> str:
    """The name of these modules for this root and this kernel pack."""
    return digest("iommufd 1", root, pack, digest_files([Path(__file__)]))


def span_iterator(source: str) -> str:
    """The part of lib/interval_tree.c that iommufd needs and Debian's kernels lack; LabError if it is not there."""
    found = _SPAN_ITERATOR.search(source)
    if found is None:
        raise LabError("lib/interval_tree.c has no span iterator")
    return f"#include <linux/export.h>\n#include <linux/interval_tree.h>\n{found[0]}\n"


@contextmanager
def build_chroot(into: Path, root: Root, pack: Pack, log: Path) -> Iterator[Path]:
    """A throw-away userspace image to compile modules in, with the kernel's headers and its sources in build/kernel."""
    chroot = into / "chroot"
    # Hard links: half a second, where a copy of the whole image would take ten.
    chroot.mkdir()
    for layer in (root.tree, pack.headers):
        run(["cp", "-al", f"{layer}/.", chroot], log)
    kernel = chroot / "usr/lib/modules" / pack.release
    kernel.mkdir(parents=True, exist_ok=True)
    build = kernel / "build"
    if not build.is_symlink():
        build.symlink_to(f"/usr/src/linux-headers-{pack.release}")
    (chroot / "build").mkdir()
    if pack.sources.exists():
        run(["cp", "-al", pack.sources, chroot / "build/kernel"], log)
    yield chroot
    shutil.rmtree(chroot)


def make_module(chroot: Path, pack: Pack, directory: str, more: list[str], log: Path) -> None:
    """Run the kernel's make over build/DIRECTORY of the chroot."""
    command = [
        # objtool reads /proc, so a chroot alone will not do.
        *("unshare", "--mount", "--pid", "--fork", f"--root={chroot}", "--mount-proc"),
        *("make", "-s", "-j2", "-C", f"/usr/lib/modules/{pack.release}/build"),
        f"M=/build/{directory}",
        # The kernels name the compiler that built them; the image has one, a newer one for 6.1.
        "CC=gcc",
        # make would want the kernel's vmlinux, which no package has.
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        *more,
        "modules",
    ]
    run(command, log)


class Iommufd:
    """What was built, in a directory of its own: modules, and their exported symbols. Empty for an old kernel."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def modules(self) -> list[Path]:
        return sorted(self.path.glob("*.ko"))

    @property
    def symbols(self) -> Path:
        return self.path / "Module.symvers"

    def options(self, symbols: str) -> list[str]:
        """make's words for modules that use VFIO's structures; `symbols` is the path of the symbols for make."""
        if not self.modules:
            return []
        return [f"KCFLAGS={' '.join(_DEFINES)}", f"KBUILD_EXTRA_SYMBOLS={symbols}"]


def build_iommufd(into: Path, root: Root, pack: Pack, log: Path) -> None:
    """Compile iommufd and VFIO, write the modules with BTF and their symbols into the directory."""
    if not (pack.sources / "drivers/iommu/iommufd").exists():
        return
    with build_chroot(into, root, pack, log) as chroot:
        place = chroot / "build/iommufd"
        _stage(chroot / "build/kernel", place)
        defines = " ".join((*_DEFINES, "-DCONFIG_INTERVAL_TREE_SPAN_ITER=1"))
        make_module(chroot, pack, "iommufd", [*_MAKE, *_LEFT_OUT, f"KCFLAGS={defines}"], log)
        shutil.copy(place / "Module.symvers", into)
        modules = sorted(place.rglob("*.ko"))
        _write_btf(chroot, pack, modules, log)
        for module in modules:
            shutil.copy(module, into)


def _stage(kernel: Path, place: Path) -> None:
    """Lay out the kernel's sources as a directory of modules."""
    (place / "drivers/iommu").mkdir(parents=True)
    shutil.copytree(kernel / "drivers/iommu/iommufd", place / "drivers/iommu/iommufd")
    for header in (kernel / "drivers/iommu").glob("*.h"):
        shutil.copy(header, place / "drivers/iommu")
    shutil.copytree(kernel / "drivers/vfio", place / "drivers/vfio")
    iterator = span_iterator((kernel / "lib/interval_tree.c").read_text())
    own = place / "drivers/iommu/iommufd"
    (own / "span.c").write_text(iterator)
    with (own / "Makefile").open("a") as makefile:
        makefile.write("iommufd-y += span.o iova_bitmap.o\n")
    (place / "Kbuild").write_text("obj-m += drivers/iommu/iommufd/\nobj-m += drivers/vfio/\n")


# How a kernel's compressed ELF file begins in its vmlinuz, and what unpacks it.
_COMPRESSED = {b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def unpack_vmlinuz(image: bytes) -> bytes:
    """The kernel's ELF file in its vmlinuz, found as its scripts/extract-vmlinux does; LabError if there is none."""
    for magic, tool in _COMPRESSED.items():
        for found in re.finditer(re.escape(magic), image):
            # What follows the compressed file is no error of ours.
            done = subprocess.run(
                [tool, "-q", "-dc"],
                input=image[found.start() :],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.stdout.startswith(b"\x7fELF"):
                return done.stdout
    raise LabError("the kernel's image holds no kernel that xz or zstd unpacks")


def _write_btf(chroot: Path, pack: Pack, modules: list[Path], log: Path) -> None:
    """Give modules BTF over the kernel's own, and remove their debug information.

    vftrace reads the layout of VFIO's files from it (`struct vfio_device_file`).
    """
    (chroot / "build/vmlinux").write_bytes(unpack_vmlinuz(pack.vmlinuz.read_bytes()))
    script = (
        "set -e; cd /build;"
        " objcopy -O binary --only-section=.BTF vmlinux kernel.btf; rm vmlinux;"
        # pahole would look for llvm's
        ' export LLVM_OBJCOPY=objcopy; for module in "$@"; do'
        f' pahole -J --btf_base=kernel.btf --btf_features={_BTF_FEATURES} "$module";'
        ' strip --strip-debug "$module"; done'
    )
    names = [f"/{module.relative_to(chroot)}" for module in modules]
    run(["chroot", chroot, "sh", "-c", script, "sh", *names], log)
