# SPDX-License-Identifier: MIT
"""Compiles our own kernel modules and VMM, and the kernel's mtty sample, for the lab.

Everything is compiled in a throw-away copy of the userspace image, against the stock kernel's own
headers, and joins that kernel's modules in one ext4 image.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from vftlab.common import LAB, LabError, digest, digest_files, run
from vftlab.images import Pack, Root, build_initrd, make_ext4
from vftlab.iommufd import Iommufd, build_chroot, make_module
from vftlab.tinyvmm import COMPILE, HEADER, INSTALLED, SOURCE

OWN = LAB / "modules"
BEHIND_IOMMUFD = {"vftphys"}
"""Modules that only a kernel with iommufd can have."""

# samples/vfio-mdev/mtty.c always offers STOP_COPY, P2P and PRE_COPY. A module parameter, read when
# a device is created, makes it play the lesser kinds too.
_MTTY_PARAMETER = """
static unsigned int lab_flags = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P |
				VFIO_MIGRATION_PRE_COPY;
module_param(lab_flags, uint, 0644);
MODULE_PARM_DESC(lab_flags, "VFIO_MIGRATION_* of devices created from now on");
"""
# mtty_step_state() knows only the arcs of a device with P2P. Without it vfio_mig_get_next_state()
# walks RUNNING <-> STOP and PRE_COPY -> STOP_COPY directly (drivers/vfio/vfio_main.c).
_MTTY_ARCS = """
	if (!(mdev_state->vdev.migration_flags & VFIO_MIGRATION_P2P)) {
		if ((cur == VFIO_DEVICE_STATE_RUNNING && new == VFIO_DEVICE_STATE_STOP) ||
			(cur == VFIO_DEVICE_STATE_STOP && new == VFIO_DEVICE_STATE_RUNNING))
			return NULL;
		if (cur == VFIO_DEVICE_STATE_PRE_COPY && new == VFIO_DEVICE_STATE_STOP_COPY)
			cur = VFIO_DEVICE_STATE_PRE_COPY_P2P;
	}
"""


def lab_mtty(source: str) -> str:
    """The sample's text with selectable migration flags; LabError if it no longer looks known."""

    def replace(pattern: str, by: str, text: str) -> str:
        text, count = re.subn(pattern, lambda match: match.expand(by), text, flags=re.MULTILINE)
        if count != 1:
            raise LabError(f"mtty.c has {count} places that match {pattern!r}, not one")
        return text

    source = replace(
        r"vdev->migration_flags = [^;]*;", "vdev->migration_flags = lab_flags;", source
    )
    source = replace(r"(?=^static struct mtty_type \{)", _MTTY_PARAMETER.strip() + r"\n\n", source)
    # After the debug message, which is the lab's log of the device.
    step = r"(mtty_step_state\([^{]*\{[^;]*= mdev_state->state;\s*dev_dbg\([^;]*;)"
    return replace(step, r"\1\n" + _MTTY_ARCS, source)


def own_files() -> list[Path]:
    return sorted(path for path in OWN.rglob("*") if path.is_file())


def modules_key(root: str, pack: str, iommufd: str) -> str:
    """The name of the modules of this root, this kernel pack, this iommufd and these sources."""
    own = digest_files([*own_files(), SOURCE, HEADER, Path(__file__)])
    return digest("modules 2", root, pack, iommufd, own)


def _stage(pack: Pack, iommufd: Iommufd, into: Path) -> list[str]:
    """Lay out the sources of every module that this kernel can have; returns their names."""
    names = []
    for directory in sorted(path for path in OWN.iterdir() if (path / "Kbuild").exists()):
        shutil.copytree(directory, into / directory.name)
        if directory.name not in BEHIND_IOMMUFD or iommufd.modules:
            names.append(directory.name)
    mtty = pack.sources / "samples/vfio-mdev/mtty.c"
    text = mtty.read_text() if mtty.exists() else ""
    # Before 6.2 the sample knew nothing of migration.
    if "migration_flags" in text:
        (into / "mtty").mkdir()
        (into / "mtty/mtty.c").write_text(lab_mtty(text))
        (into / "mtty/Kbuild").write_text("obj-m := mtty.o\n")
        names.append("mtty")
    return names


def _replace_vfio(tree: Path, iommufd: Iommufd) -> None:
    """Put the modules that know iommufd in the place of the stock ones, which hold the same functions."""
    if not iommufd.modules:
        return
    for module in [*tree.rglob("vfio*.ko"), *tree.rglob("mdev.ko")]:
        module.unlink()
    place = tree / "iommufd"
    place.mkdir()
    for module in iommufd.modules:
        shutil.copy(module, place)


def build_modules(into: Path, root: Root, pack: Pack, iommufd: Iommufd, log: Path) -> list[str]:
    """Compile the modules, write into/modules.ext4 and the initramfs; returns the modules' names."""
    build_initrd(pack, root.tree / "usr/bin/busybox", log)
    tree = into / "tree"
    run(["cp", "-al", f"{pack.modules}/.", tree], log)
    modules = tree / "usr/lib/modules" / pack.release
    _replace_vfio(modules, iommufd)
    extra = modules / "lab"
    extra.mkdir()
    with build_chroot(into, root, pack, log) as chroot:
        sources = chroot / "build"
        names = _stage(pack, iommufd, sources)
        for file in (SOURCE, HEADER):
            shutil.copy(file, sources)
        run(["chroot", chroot, *COMPILE, "-o", "/build/tinyvmm", f"/build/{SOURCE.name}"], log)
        program = tree / INSTALLED.relative_to("/")
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources / "tinyvmm", program)
        if iommufd.modules:
            shutil.copy(iommufd.symbols, sources / "iommufd.symvers")
        options = ["LAB_SOURCES=/build/kernel", *iommufd.options("/build/iommufd.symvers")]
        for name in names:
            make_module(chroot, pack, name, options, log)
            for module in (sources / name).glob("*.ko"):
                shutil.copy(module, extra)
    # depmod replaces its indexes by new files, so the hard links of the pack stay as they are.
    (tree / "lib").symlink_to("usr/lib")
    run(["depmod", "-b", tree, pack.release], log)
    (tree / "lib").unlink()
    make_ext4(tree, into / "modules.ext4", log)
    shutil.rmtree(tree)
    return names
