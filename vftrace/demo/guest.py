# SPDX-License-Identifier: MIT
"""Guests small enough to be written by hand: firmware images that dirty a known set of pages, and a
boot sector that draws.

The firmware runs in 16-bit real mode with 4 GiB data segments ("unreal mode"), entered right at the
reset vector: no paging, no tables in memory, so that apart from the configured pages it
dirties one page only (`STACK_PAGE`: the interrupt frame and a counter). It sleeps in HLT between
timer ticks; a busy loop would take a whole host CPU from the migration it is there for. What it
writes is not code but data: a schedule of steps in the ROM, so that any pattern (fixed, growing,
sliding, bursts) is the same few instructions and can be predicted exactly in Python
(`written_pages`).
"""

import struct
from collections.abc import Iterator
from itertools import islice

import msgspec

from vftrace.errors import VftraceError

PAGE_SIZE = 4096
"""Bytes; the pages counted here are 4 KiB guest pages, as in KVM's dirty log."""

ROM_SIZE = 65536
"""Bytes. QEMU's pc machine takes a multiple of 64 KiB for -bios (hw/i386/x86.c, x86_bios_rom_init).
"""

STACK_PAGE = 7
"""Guest page with the firmware's stack and tick counter: dirtied at every tick, the only one beside
the schedule.
"""

TICKS_ADDRESS = STACK_PAGE * PAGE_SIZE
"""Guest physical address of a u32: how many times the firmware has used up its budget of page
writes.
"""

PIT_HZ = 1_193_182
"""Input clock of the 8254 timer, Hz."""

_PARAMETERS = 0x1000
_SCHEDULE = 0x1040
_SCHEDULE_END = 0xFF00
_GDT = 0xFF00
_GDT_POINTER = 0xFF10
_RESET_VECTOR = 0xFFF0
_MAGIC = b"VFTDIRTY"
_PARAMETERS_FORMAT = struct.Struct("<8sIIHHHH")
_STEP_FORMAT = struct.Struct("<III")


class GuestError(VftraceError):
    """The guest cannot be built as configured."""


class Step(msgspec.Struct, frozen=True):
    """One pass: every page of [first_page, first_page + pages) written once, in order; then
    `pause_ticks` of sleep.
    """

    first_page: int
    pages: int
    pause_ticks: int = 0


class DirtySet(msgspec.Struct, frozen=True):
    """What the guest writes: `steps` in order, for ever again from `steps[loop_from]`.

    The first `prefill` page writes come as fast as the vCPU can make them, so that memory holds
    something to send; after that `pages_per_tick` at each of `ticks_per_second` timer ticks.
    """

    steps: tuple[Step, ...]
    loop_from: int
    prefill: int
    pages_per_tick: int
    ticks_per_second: int

    @property
    def pages_per_second(self) -> int:
        """Page writes a second, outside pauses, as long as the vCPU keeps up."""
        return self.pages_per_tick * self.ticks_per_second

    @property
    def pages(self) -> frozenset[int]:
        """Every guest page number the schedule ever writes (STACK_PAGE comes on top)."""
        return frozenset(page for step in self.steps for page in _pages_of(step))

    def writes_after(self, ticks: int) -> int:
        """Page writes made when the counter at TICKS_ADDRESS reads `ticks`; more by less than one
        tick's worth.
        """
        return 0 if ticks == 0 else self.prefill + (ticks - 1) * self.pages_per_tick


def fixed(
    first_page: int, pages: int, pages_per_second: int, ticks_per_second: int = 200
) -> DirtySet:
    """The same `pages` pages in every pass."""
    return _dirty_set((Step(first_page, pages),), 0, pages, pages_per_second, ticks_per_second)


def growing(
    first_page: int,
    pages: int,
    step: int,
    largest: int,
    pages_per_second: int,
    ticks_per_second: int = 200,
) -> DirtySet:
    """A set of `pages` pages that is `step` larger with each pass and stays at `largest`."""
    if step < 1 or largest < pages:
        raise GuestError(f"a growing set needs a step of at least 1 and {largest} >= {pages}")
    sizes = [*range(pages, largest, step), largest]
    steps = (Step(first_page, largest), *(Step(first_page, size) for size in sizes))
    return _dirty_set(steps, len(steps) - 1, largest, pages_per_second, ticks_per_second)


def sliding(
    first_page: int,
    window: int,
    step: int,
    region: int,
    pages_per_second: int,
    ticks_per_second: int = 200,
) -> DirtySet:
    """A window of `window` pages that moves `step` pages up with each pass, through `region` pages
    and from the start again.
    """
    if step < 1 or region < window:
        raise GuestError(f"a sliding window needs a step of at least 1 and {region} >= {window}")
    offsets = range(0, region - window + 1, step)
    steps = (Step(first_page, region), *(Step(first_page + offset, window) for offset in offsets))
    return _dirty_set(steps, 1, region, pages_per_second, ticks_per_second)


def bursts(
    first_page: int,
    pages: int,
    passes: int,
    pause_seconds: float,
    pages_per_second: int,
    ticks_per_second: int = 200,
) -> DirtySet:
    """`passes` passes over the same pages, then nothing for `pause_seconds`, and again."""
    if passes < 1 or pause_seconds < 0:
        raise GuestError("a burst needs at least one pass and a pause that is not negative")
    pause = round(pause_seconds * ticks_per_second)
    steps = (*(Step(first_page, pages) for _ in range(passes - 1)), Step(first_page, pages, pause))
    return _dirty_set(steps, 0, pages, pages_per_second, ticks_per_second)


def written_pages(dirty: DirtySet, start: int, count: int) -> frozenset[int]:
    """The distinct guest pages that the page writes number `start` to `start + count - 1` go to
    (the first is 0).
    """
    return frozenset(islice(_writes(dirty), start, start + count))


def dirtying_rom(dirty: DirtySet) -> bytes:
    """A firmware image for QEMU's -bios that writes `dirty`: each page's first u32 becomes the
    number of the pass.

    Raises GuestError when the schedule does not fit the ROM, the addresses or the timer.
    """
    _check(dirty)
    code = _Code()
    code.emit("fa fc")  # cli; cld
    _enter_unreal_mode(code)
    code.emit("31 c0 8e d0 bc fc 7f")  # xor ax,ax; mov ss,ax; mov sp,0x7ffc
    code.emit("66 c7 06 20 00").word("tick").emit(
        "00 f0"
    )  # mov dword [0x20],0xf000:tick (vector 8)
    # 8259: initialise, vectors from 8, cascade, 8086 mode; then only IRQ 0.
    for port, value in (
        (0x20, 0x11),
        (0x21, 0x08),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xFE),
        (0xA1, 0xFF),
    ):
        code.emit(f"b0 {value:02x} e6 {port:02x}")  # mov al,value; out port,al
    divisor = round(PIT_HZ / dirty.ticks_per_second)
    for port, value in (
        (0x43, 0x34),
        (0x40, divisor & 0xFF),
        (0x40, divisor >> 8),
    ):  # 8254: channel 0, mode 2
        code.emit(f"b0 {value:02x} e6 {port:02x}")
    # With KVM's own irqchip the 8259 reaches the vCPU only through the local APIC: enable it, LINT0
    # = ExtINT.
    for register, value in ((0xFEE000F0, 0x10F), (0xFEE00350, 0x700)):
        code.emit("66 67 c7 05").raw(
            struct.pack("<II", register, value)
        )  # mov dword [register],value
    code.emit("66 31 ed")  # xor ebp,ebp: number of the pass
    code.emit("2e 66 8b 0e").raw(struct.pack("<H", _PARAMETERS + 12))  # mov ecx,cs:[prefill]
    code.emit("2e 8b 36").raw(struct.pack("<H", _PARAMETERS + 16))  # mov si,cs:[schedule]

    code.label("step")
    code.emit("66 45")  # inc ebp
    code.emit("2e 66 8b 3c")  # mov edi,cs:[si]: address
    code.emit("2e 66 8b 54 04")  # mov edx,cs:[si+4]: pages
    code.label("page")
    code.emit("66 67 89 2f")  # mov [edi],ebp: the write
    code.emit("66 81 c7 00 10 00 00")  # add edi,4096
    code.emit("66 49").jump("75", "same_tick")  # dec ecx; jnz same_tick
    code.emit("66 ff 06").raw(struct.pack("<H", TICKS_ADDRESS))  # inc dword [ticks]
    code.emit("fb f4 fa")  # sti; hlt; cli
    code.emit("2e 66 8b 0e").raw(struct.pack("<H", _PARAMETERS + 8))  # mov ecx,cs:[pages_per_tick]
    code.label("same_tick")
    code.emit("66 4a").jump("75", "page")  # dec edx; jnz page
    code.emit("2e 66 8b 54 08")  # mov edx,cs:[si+8]: pause
    code.label("pause")
    code.emit("66 85 d2").jump("74", "next")  # test edx,edx; jz next
    code.emit("fb f4 fa 66 4a").jump("eb", "pause")  # sti; hlt; cli; dec edx; jmp pause
    code.label("next")
    code.emit("83 c6 0c")  # add si,12
    code.emit("2e 3b 36").raw(struct.pack("<H", _PARAMETERS + 18)).jump(
        "75", "step"
    )  # cmp si,cs:[end]; jne step
    code.emit("2e 8b 36").raw(struct.pack("<H", _PARAMETERS + 20)).jump(
        "eb", "step"
    )  # mov si,cs:[loop]; jmp step

    code.label("tick")
    code.emit("b0 20 e6 20 cf")  # mov al,0x20; out 0x20,al (end of interrupt); iret

    schedule = b"".join(
        _STEP_FORMAT.pack(step.first_page * PAGE_SIZE, step.pages, step.pause_ticks)
        for step in dirty.steps
    )
    parameters = _PARAMETERS_FORMAT.pack(
        _MAGIC,
        dirty.pages_per_tick,
        dirty.prefill,
        _SCHEDULE,
        _SCHEDULE + len(schedule),
        _SCHEDULE + dirty.loop_from * _STEP_FORMAT.size,
        dirty.ticks_per_second,
    )
    return _rom(code.assemble(), {_PARAMETERS: parameters, _SCHEDULE: schedule})


def read_rom(rom: bytes) -> DirtySet:
    """The parameters a `dirtying_rom` was built with. Raises GuestError for any other image."""
    if len(rom) != ROM_SIZE or rom[_PARAMETERS : _PARAMETERS + len(_MAGIC)] != _MAGIC:
        raise GuestError("not a firmware image made by vftrace's demo")
    _, per_tick, prefill, begin, end, loop, hz = _PARAMETERS_FORMAT.unpack_from(rom, _PARAMETERS)
    steps = tuple(
        Step(address // PAGE_SIZE, pages, pause)
        for address, pages, pause in _STEP_FORMAT.iter_unpack(rom[begin:end])
    )
    return DirtySet(steps, (loop - begin) // _STEP_FORMAT.size, prefill, per_tick, hz)


def counting_rom(first_page: int, pages: int, turns_per_page: int, rest: int = 0) -> bytes:
    """A firmware image whose vCPUs never rest: each counts its turns at `turns_address`, for ever, and writes to one
    page after each `turns_per_page` of them, to `pages` pages of its own in order, the first vCPU from `first_page`
    on. Each turn is the same few instructions, `rest` of which do nothing, so a counter says how fast its vCPU runs."""
    if pages < 1 or not 1 <= turns_per_page < 1 << 32:
        raise GuestError("the guest must write at least one page, after at least one turn")
    code = _Code()
    code.emit("fa fc")  # cli; cld
    _enter_unreal_mode(code)
    code.emit("31 c0 8e d0 bc fc 7f")  # xor ax,ax; mov ss,ax; mov sp,0x7ffc
    # The number of the vCPU is that of its local APIC.
    code.emit("66 67 a1 20 00 e0 fe 66 c1 e8 18")  # mov eax,[0xfee00020]; shr eax,24
    code.emit("66 89 c6 c1 e0 06 05").raw(struct.pack("<H", TICKS_ADDRESS))
    code.emit("89 c3")  # mov esi,eax; shl ax,6; add ax,TICKS_ADDRESS; mov bx,ax
    code.emit("66 85 f6").jump("75", "pass")  # test esi,esi; jnz pass
    # The first one starts the others here, at f000:0 (INIT, then SIPI, to all but itself).
    for command in (0x000C4500, 0x000C4600 | 0xF0000 >> 12):
        code.emit("66 67 c7 05").raw(struct.pack("<II", 0xFEE00300, command))
    code.label("pass")
    code.emit("66 69 fe").raw(struct.pack("<I", pages * PAGE_SIZE))  # imul edi,esi,bytes
    code.emit("66 81 c7").raw(struct.pack("<I", first_page * PAGE_SIZE))  # add edi,address
    code.emit("66 ba").raw(struct.pack("<I", pages))  # mov edx,pages
    code.label("page")
    code.emit("66 b9").raw(struct.pack("<I", turns_per_page))  # mov ecx,turns
    code.label("turn")
    code.emit("66 ff 07")  # inc dword [bx]
    code.raw(b"\x90" * rest)  # nop
    code.emit("66 49").jump("75", "turn")  # dec ecx; jnz turn
    code.emit("66 67 89 17")  # mov [edi],edx: the write
    code.emit("66 81 c7 00 10 00 00")  # add edi,4096
    code.emit("66 4a").jump("75", "page")  # dec edx; jnz page
    code.jump("eb", "pass")
    return _rom(code.assemble(), {})


def turns_address(vcpu: int) -> int:
    """Guest physical address of the u32 with the turns of a vCPU of `counting_rom`: a cache line for each."""
    return TICKS_ADDRESS + 64 * vcpu


def exits_rom(port: int = 0x5F0) -> bytes:
    """A firmware image that reads an I/O port nobody serves, for ever: each read is one exit of
    KVM_RUN to user space.
    """
    if not 0 <= port <= 0xFFFF:
        raise GuestError(f"no such I/O port: {port}")
    code = _Code()
    code.emit("fa ba").raw(struct.pack("<H", port))  # cli; mov dx,port
    code.label("again")
    code.emit("ec").jump("eb", "again")  # in al,dx; jmp again
    return _rom(code.assemble(), {})


GRAPHICS_FIRST_PAGE = 0x20
GRAPHICS_PAGES = 64


def boot_sector() -> bytes:
    """512 bytes for SeaBIOS to boot: mode 13h, then a new colour over the whole screen at each BIOS
    tick (18.2 Hz).

    With each frame it also writes once to each of GRAPHICS_PAGES pages from GRAPHICS_FIRST_PAGE, so
    that a migration has something to send that is not the screen.
    """
    code = _Code()
    code.emit("fa 31 c0 8e d8 8e d0 bc 00 7c fb fc")  # cli; ds = ss = 0; sp = 0x7c00; sti; cld
    code.emit(
        "b8 13 00 cd 10"
    )  # mov ax,0x13; int 0x10: 320x200, 256 colours, a linear 64000 bytes at a0000
    code.emit("31 db")  # xor bx,bx
    code.label("frame")
    code.emit("43")  # inc bx
    code.emit("b8 00 a0 8e c0 31 ff")  # es = 0xa000; xor di,di
    code.emit("88 d8 88 dc b9 00 7d f3 ab")  # mov al,bl; mov ah,bl; mov cx,32000; rep stosw
    code.emit("b8").raw(struct.pack("<H", GRAPHICS_FIRST_PAGE * PAGE_SIZE // 16))  # mov ax,segment
    code.emit("b9").raw(struct.pack("<H", GRAPHICS_PAGES))  # mov cx,pages
    code.label("touch")
    code.emit("8e c0 26 89 1e 00 00 05 00 01")  # mov es,ax; mov es:[0],bx; add ax,0x100
    code.jump("e2", "touch")  # loop touch
    code.emit("f4").jump("eb", "frame")  # hlt; jmp frame
    image = code.assemble()
    return image + bytes(510 - len(image)) + b"\x55\xaa"


class _Code:
    """Machine code being put together: hexadecimal bytes, labels, and jumps to labels."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._short_jumps: list[tuple[int, str]] = []
        self._words: list[tuple[int, str]] = []

    def emit(self, hexadecimal: str) -> "_Code":
        return self.raw(bytes.fromhex(hexadecimal))

    def raw(self, data: bytes) -> "_Code":
        self._bytes += data
        return self

    def label(self, name: str) -> None:
        self._labels[name] = len(self._bytes)

    def jump(self, opcode: str, target: str) -> "_Code":
        """A jump with an 8-bit displacement."""
        self.emit(opcode)
        self._short_jumps.append((len(self._bytes), target))
        return self.emit("00")

    def word(self, target: str) -> "_Code":
        """A label's 16-bit offset in the segment."""
        self._words.append((len(self._bytes), target))
        return self.emit("00 00")

    def assemble(self) -> bytes:
        for at, target in self._short_jumps:
            struct.pack_into("<b", self._bytes, at, self._labels[target] - (at + 1))
        for at, target in self._words:
            struct.pack_into("<H", self._bytes, at, self._labels[target])
        return bytes(self._bytes)


def _enter_unreal_mode(code: _Code) -> None:
    """Load ds and es in protected mode with a 4 GiB limit and go back: real mode keeps the cached
    limit.
    """
    code.emit("2e 66 0f 01 16").raw(struct.pack("<H", _GDT_POINTER))  # o32 lgdt cs:[pointer]
    code.emit("0f 20 c0 0c 01 0f 22 c0 eb 00")  # mov eax,cr0; or al,1; mov cr0,eax; jmp $+2
    code.emit("bb 08 00 8e db 8e c3")  # mov bx,8; mov ds,bx; mov es,bx
    code.emit("24 fe 0f 22 c0 eb 00")  # and al,0xfe; mov cr0,eax; jmp $+2


def _rom(code: bytes, data: dict[int, bytes]) -> bytes:
    rom = bytearray(ROM_SIZE)
    # One descriptor: data, base 0, limit 4 GiB, accessed (so that loading it writes nothing to the
    # ROM).
    gdt = bytes(8) + struct.pack("<Q", 0x00CF93000000FFFF)
    # The ROM is seen at f000:0000, too; the reset vector jumps there because an interrupt could not
    # return above.
    pieces = {
        0: code,
        **data,
        _GDT: gdt,
        _GDT_POINTER: struct.pack("<HI", len(gdt) - 1, 0xF0000 + _GDT),
        _RESET_VECTOR: bytes.fromhex("ea 00 00 00 f0"),  # jmp 0xf000:0
    }
    for at, piece in pieces.items():
        rom[at : at + len(piece)] = piece
    return bytes(rom)


def _dirty_set(
    steps: tuple[Step, ...],
    loop_from: int,
    prefill: int,
    pages_per_second: int,
    ticks_per_second: int,
) -> DirtySet:
    if (
        ticks_per_second < 1
        or pages_per_second < ticks_per_second
        or pages_per_second % ticks_per_second
    ):
        raise GuestError(
            f"{pages_per_second} pages/s is not a multiple of {ticks_per_second} ticks/s"
        )
    dirty = DirtySet(
        steps, loop_from, prefill, pages_per_second // ticks_per_second, ticks_per_second
    )
    _check(dirty)
    return dirty


def _check(dirty: DirtySet) -> None:
    if not 19 <= dirty.ticks_per_second <= 10_000:
        raise GuestError(
            f"the timer makes 19 to 10000 ticks a second, not {dirty.ticks_per_second}"
        )
    if dirty.pages_per_tick < 1 or dirty.prefill < 1:
        raise GuestError("the guest must write at least one page a tick")
    if not dirty.steps or not 0 <= dirty.loop_from < len(dirty.steps):
        raise GuestError("the schedule is empty or loops from outside itself")
    room = (_SCHEDULE_END - _SCHEDULE) // _STEP_FORMAT.size
    if len(dirty.steps) > room:
        raise GuestError(f"the schedule has {len(dirty.steps)} steps, the ROM has room for {room}")
    for step in dirty.steps:
        # Below 1 MiB are the stack, the video memory and the ROM itself; 3 GiB is where a pc's low
        # RAM ends at most.
        if (
            step.pages < 1
            or step.first_page < 0x100
            or step.first_page + step.pages > 0xC0000
            or step.pause_ticks < 0
        ):
            raise GuestError(
                f"pages {step.first_page} to {step.first_page + step.pages - 1} are not usable RAM"
            )


def _pages_of(step: Step) -> range:
    return range(step.first_page, step.first_page + step.pages)


def _writes(dirty: DirtySet) -> Iterator[int]:
    for step in dirty.steps:
        yield from _pages_of(step)
    while True:
        for step in dirty.steps[dirty.loop_from :]:
            yield from _pages_of(step)
