"""What is compiled for the lab: our own kernel modules and VMM, and the kernel's mtty sample.

Everything is compiled in a throw-away copy of the userspace image, against the stock kernel's own
headers, and joins that kernel's modules in one ext4 image.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from vftlab.common import LAB, LabError, digest, digest_files, run
from vftlab.images import Pack, Root, build_initrd, make_ext4
from vftlab.tinyvmm import COMPILE, INSTALLED, SOURCE

OWN = LAB / "modules"

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


def modules_key(root: str, pack: str) -> str:
    """The name of the modules of this root, this kernel pack and these sources."""
    return digest("modules 1", root, pack, digest_files([*own_files(), SOURCE, Path(__file__)]))


def _stage(pack: Pack, into: Path) -> list[str]:
    """Lay out the sources of every module that this kernel can have; returns their names."""
    names = []
    for directory in sorted(path for path in OWN.iterdir() if (path / "Kbuild").exists()):
        shutil.copytree(directory, into / directory.name)
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


def build_modules(into: Path, root: Root, pack: Pack, log: Path) -> list[str]:
    """Compile the modules, write into/modules.ext4 and the initramfs; returns the modules' names."""
    build_initrd(pack, root.tree / "usr/bin/busybox", log)
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
    sources = chroot / "build"
    sources.mkdir()
    if pack.sources.exists():
        run(["cp", "-al", pack.sources, sources / "kernel"], log)
    names = _stage(pack, sources)
    tree = into / "tree"
    run(["cp", "-al", f"{pack.modules}/.", tree], log)
    shutil.copy(SOURCE, sources)
    run(["chroot", chroot, *COMPILE, "-o", "/build/tinyvmm", f"/build/{SOURCE.name}"], log)
    program = tree / INSTALLED.relative_to("/")
    program.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(sources / "tinyvmm", program)
    extra = tree / "usr/lib/modules" / pack.release / "lab"
    extra.mkdir()
    for name in names:
        make = [
            # objtool reads /proc, so a chroot alone will not do.
            *("unshare", "--mount", "--pid", "--fork", f"--root={chroot}", "--mount-proc"),
            *("make", "-s", "-C", f"/usr/lib/modules/{pack.release}/build"),
            f"M=/build/{name}",
            "LAB_SOURCES=/build/kernel",
            # The kernels name the compiler that built them; the image has one, a newer one for 6.1.
            "CC=gcc",
            # BTF of modules needs pahole and the kernel's vmlinux; the lab traces stock modules.
            "CONFIG_DEBUG_INFO_BTF_MODULES=",
            "modules",
        ]
        run(make, log)
        for module in (sources / name).glob("*.ko"):
            shutil.copy(module, extra)
    shutil.rmtree(chroot)
    # depmod replaces its indexes by new files, so the hard links of the pack stay as they are.
    (tree / "lib").symlink_to("usr/lib")
    run(["depmod", "-b", tree, pack.release], log)
    (tree / "lib").unlink()
    make_ext4(tree, into / "modules.ext4", log)
    shutil.rmtree(tree)
    return names
