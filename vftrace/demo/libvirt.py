# SPDX-License-Identifier: MIT
"""The command line libvirt 9 and 10 write for a small VM (src/qemu/qemu_command.c), as far as it
works without libvirt.
"""

import json
from pathlib import Path


def arguments(
    name: str, uuid: str, rom: Path, directory: Path, memory_mib: int, *, incoming: bool
) -> tuple[str, ...]:
    """QEMU's arguments; `directory` gets the secret that libvirt keeps beside each domain. The VM
    starts held (-S).
    """
    key = directory / "master-key.aes"
    key.write_bytes(bytes(32))
    return (
        *("-name", f"guest={name},debug-threads=on", "-S"),
        *(
            "-object",
            _json({"qom-type": "secret", "id": "masterKey0", "format": "raw", "file": str(key)}),
        ),
        *("-machine", "pc,usb=off,dump-guest-core=off,memory-backend=pc.ram"),
        *("-accel", "kvm", "-cpu", "qemu64", "-bios", str(rom), "-m", f"size={memory_mib * 1024}k"),
        *(
            "-object",
            _json(
                {"qom-type": "memory-backend-ram", "id": "pc.ram", "size": memory_mib * 1024 * 1024}
            ),
        ),
        *("-overcommit", "mem-lock=off", "-smp", "1,sockets=1,cores=1,threads=1", "-uuid", uuid),
        *("-display", "none", "-no-user-config", "-nodefaults"),
        *("-rtc", "base=utc", "-no-shutdown", "-boot", "strict=on"),
        *(
            "-device",
            _json({"driver": "piix3-usb-uhci", "id": "usb", "bus": "pci.0", "addr": "0x1.0x2"}),
        ),
        *(
            "-device",
            _json(
                {
                    "driver": "virtio-serial-pci",
                    "id": "virtio-serial0",
                    "bus": "pci.0",
                    "addr": "0x2",
                }
            ),
        ),
        *("-chardev", "null,id=charserial0"),
        *(
            "-device",
            _json({"driver": "isa-serial", "chardev": "charserial0", "id": "serial0", "index": 0}),
        ),
        *(
            "-device",
            _json(
                {"driver": "virtio-balloon-pci", "id": "balloon0", "bus": "pci.0", "addr": "0x3"}
            ),
        ),
        *(("-incoming", "defer") if incoming else ()),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-msg", "timestamp=on"),
    )


def _json(value: dict[str, str | int]) -> str:
    return json.dumps(value, separators=(",", ":"))
