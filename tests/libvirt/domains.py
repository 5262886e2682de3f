# SPDX-License-Identifier: MIT
"""The domains: a small VM with the demo's firmware, which dirties a known set of pages for ever."""

import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.libvirt.hosts import Host
from vftrace.demo import guest
from vftrace.demo.guest import DirtySet

MEMORY_MIB = 128
_FIRST_PAGE = 0x1000

CALM = guest.fixed(_FIRST_PAGE, 256, 200)
"""Few pages, seldom written: a migration ends after one or two rounds."""

STEADY = guest.fixed(_FIRST_PAGE, 2048, 1000)
"""4 MiB/s: with 8 MiB/s of bandwidth each round is half as long as the one before."""

BUSY = guest.fixed(_FIRST_PAGE, 2048, 8000)
"""8 MiB written four times a second: with 8 MiB/s of bandwidth no round is ever the last."""

_XML = """\
<domain type='kvm'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <loader type='rom'>{rom}</loader>
  </os>
  <features><acpi/>{features}</features>
  <cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model></cpu>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
{disk}  </devices>
</domain>
"""

_DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
"""

_DIRTY_RING = "<kvm><dirty-ring state='on' size='4096'/></kvm>"

IMAGES = Path("/var/lib/libvirt/images")
"""Each host's own directory of disks."""


@dataclass(frozen=True)
class Domain:
    """What one VM is made of; `xml` is where its description lies, on both hosts."""

    name: str
    directory: Path
    dirty: DirtySet = CALM
    disk: bool = False
    dirty_ring: bool = False
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def xml(self) -> Path:
        """The file with its description."""
        return self.directory / f"{self.name}.xml"

    @property
    def image(self) -> Path:
        """Its disk, as each host names it."""
        return IMAGES / f"{self.name}.qcow2"

    def write(self) -> None:
        """Write firmware and description."""
        rom = self.directory / f"{self.name}.rom"
        rom.write_bytes(guest.dirtying_rom(self.dirty))
        description = _XML.format(
            name=self.name,
            uuid=self.uuid,
            memory=MEMORY_MIB,
            rom=rom,
            features=_DIRTY_RING if self.dirty_ring else "",
            disk=_DISK.format(path=self.image) if self.disk else "",
        )
        self.xml.write_text(description)

    def make_disk(self, host: Host, size: str = "16M") -> None:
        """An empty disk on this host."""
        host.run("mkdir", "-p", str(IMAGES))
        host.run("qemu-img", "create", "-q", "-f", "qcow2", str(self.image), size)
