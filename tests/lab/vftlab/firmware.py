# SPDX-License-Identifier: MIT
"""A firmware image that is the whole guest: it dirties pages, and releases cards on request."""

from __future__ import annotations

import struct

ROM_SIZE = 64 * 1024
FIRST_PAGE = 0x20
MOST_PAGES = 0x60


def rom(dirty_pages: int = 64) -> bytes:
    """The image for QEMU's -bios on `-M pc`.

    It runs in real mode without end: writes one word into each of `dirty_pages` (1 to 96) pages
    from 128 KiB on, then reads the PCI slots that the VMM wants emptied and ejects them
    (ports 0xae04 and 0xae08, docs/specs/acpi_pci_hotplug.rst in QEMU).
    """
    if not 1 <= dirty_pages <= MOST_PAGES:
        raise ValueError(f"dirty_pages is 1 to {MOST_PAGES}, not {dirty_pages}")
    first, limit = FIRST_PAGE << 8, (FIRST_PAGE + dirty_pages) << 8
    code = b"".join(
        (
            b"\xb8" + struct.pack("<H", first),  # 0:  mov ax, first segment
            b"\x8e\xc0",  # 3:  mov es, ax
            b"\x26\xff\x06\x00\x00",  # 5:  inc word es:[0]
            b"\x05\x00\x01",  # 10: add ax, one page
            b"\x3d" + struct.pack("<H", limit),  # 13: cmp ax, limit
            b"\x72\xf1",  # 16: jb 3
            b"\xba\x04\xae\x66\xed",  # 18: in eax, 0xae04
            b"\xba\x08\xae\x66\xef",  # 23: out 0xae08, eax
            b"\xeb\xe2",  # 28: jmp 0
        )
    )
    reset = b"\xea\x00\x00\x00\xf0"  # jmp f000:0000, where the image is seen below 1 MiB
    return code.ljust(ROM_SIZE - 16, b"\xf4") + reset.ljust(16, b"\0")
