# SPDX-License-Identifier: MIT
"""vftrace's Debian package, installed in a userspace that is not changed by it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from vftlab.common import EXIT_CANNOT, TREE, LabError
from vftlab.images import Root

# In a mount namespace of its own, so that no mount is left. dpkg itself, its maintainer scripts and
# byte-compiling run here rather than inside, where they would take minutes.
SCRIPT = """\
set -e
mount -t tmpfs -o mode=755 tmpfs "$3"
mkdir "$3"/upper "$3"/work "$3"/root
mount -t overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" overlay "$3/root"
cp "$2" "$3/root/package.deb"
DEBIAN_FRONTEND=noninteractive chroot "$3/root" dpkg --install /package.deb
rm "$3/root/package.deb"
tar -C "$3/upper" --exclude=./package.deb -cf "$4" .
"""


def built() -> Path:
    """The Debian package of what is committed, built if need be. Raises LabError if it cannot be."""
    done = subprocess.run(
        [TREE / "tests/clean-machine/deb", "--build-only"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"vftrace's package cannot be built:\n{done.stdout}{done.stderr}")
    (package,) = (TREE / "build/debian").glob("vftrace_*-1_all.deb")
    return package


def install(package: Path, root: Root, to: Path) -> None:
    """Write to `to` what installing the package adds to the root, as a tar file.

    Raises LabError if it cannot be installed, and where this process is not root.
    """
    with tempfile.TemporaryDirectory() as directory:
        words = [str(root.tree), str(package), directory, str(to)]
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh", *words],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise LabError(f"{package.name} cannot be installed: {done.stderr}", EXIT_CANNOT)
