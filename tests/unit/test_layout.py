# SPDX-License-Identifier: MIT
"""vftrace/events/layout.py agrees with bpf/wire.h and with a C compiler; uapi.py agrees with bpf/."""

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools.layout import HEADER, generated
from vftrace import uapi
from vftrace.events import layout
from vftrace.events.layout import BODIES, Kind

BPF = HEADER.parent

TYPES = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint64_t u64; typedef uint32_t u32; typedef uint16_t u16; typedef int32_t s32; typedef int64_t s64;
"""


def _names(module: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in module.items() if name.isupper()}


def test_the_module_is_generated_from_the_header() -> None:
    """`make layout` was run after the last change of bpf/wire.h."""
    fresh: dict[str, Any] = {}
    exec(generated(HEADER.read_text()), fresh)
    assert {kind.name: kind.value for kind in fresh["Kind"]} == {k.name: k.value for k in Kind}
    assert _names(fresh) == _names(vars(layout))


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ("u32 a;\n\tu64 b;", "b would be padded"),
        ("u32 a;", "padded at its end"),
        ("u32 a, b;", "not one plain member"),
    ],
)
def test_a_struct_that_c_would_pad_is_refused(member: str, why: str) -> None:
    header = HEADER.read_text().replace(
        "struct vft_gone {\n\tstruct vft_header h;\n\tu64 pid;",
        f"struct vft_gone {{\n\tstruct vft_header h;\n\t{member}",
    )
    with pytest.raises(ValueError, match=why):
        generated(header)


@pytest.mark.needs("cc")
def test_a_c_compiler_lays_the_structs_out_the_same_way(tmp_path: Path) -> None:
    """sizeof, offsetof and the enum by a compiler, which has not read our regular expressions."""
    lines = []
    expected = []
    head = struct.Struct("<" + layout.HEADER[0]).size
    for kind in Kind:
        lines.append(f'printf("%d\\n", VFT_{kind.name});')
        expected.append(int(kind))
        if kind not in BODIES:
            continue
        name = f"struct vft_{kind.name.lower()}"
        codes, fields = BODIES[kind]
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(head + struct.calcsize("<" + codes))
        split = re.findall(r"\d*[a-zA-Z]", codes)
        ends = [head + struct.calcsize("<" + "".join(split[:i])) for i in range(len(split) + 1)]
        real = [i for i, code in enumerate(split) if code[-1] != "x"]
        for i, field in zip(real, fields, strict=True):
            lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
            lines.append(f'printf("%zu\\n", sizeof((({name} *)0)->{field}));')
            expected += [ends[i], ends[i + 1] - ends[i]]
    source = tmp_path / "layout.c"
    source.write_text(
        f'{TYPES}#include "{HEADER}"\nint main(void) {{\n{chr(10).join(lines)}\nreturn 0;\n}}\n'
    )
    subprocess.run(["cc", "-o", tmp_path / "layout", source], check=True)
    out = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in out.split()] == expected


def test_linux_numbers_are_those_of_the_kernel_side() -> None:
    text = "".join(path.read_text() for path in (*BPF.glob("*.h"), *BPF.glob("*.c")))
    defined = {
        name: int(number, 0)
        for name, number in re.findall(r"#define (\w+) (0x[0-9a-f]+|\d+)\b", text)
    }
    both = {name for name in _names(vars(uapi)) if name in defined}
    assert both >= {"KVM_RUN", "KVM_MEM_LOG_DIRTY_PAGES"}
    assert {name: defined[name] for name in both} == {n: vars(uapi)[n] for n in both}


def _enum(text: str, name: str) -> dict[str, int]:
    found = re.search(rf"enum {name} \{{(.*?)\}};", text, flags=re.DOTALL)
    assert found is not None
    return {n: int(number) for n, number in re.findall(r"(\w+)\s*=\s*(\d+)", found[1])}


KVM_H, VFIO_H = Path("/usr/include/linux/kvm.h"), Path("/usr/include/linux/vfio.h")


@pytest.mark.skipif(not VFIO_H.exists(), reason="needs the kernel's uAPI headers (linux-libc-dev)")
def test_linux_numbers_are_those_of_its_headers() -> None:
    states = _enum(VFIO_H.read_text(), "vfio_device_mig_state")
    names = {f"VFIO_DEVICE_STATE_{name}": n for n, name in enumerate(uapi.VFIO_DEVICE_STATES)}
    assert states.items() <= names.items()
    assert len(states) >= 6
    text = KVM_H.read_text() + VFIO_H.read_text()
    numbers = {
        name: eval(number)
        for name, number in re.findall(
            r"#define ((?:KVM_CAP|KVM_MEM|VFIO_MIGRATION)_\w+)\s+(\d+|\(1U?L* << \d+\))",
            re.sub(r"(\d)U?L+", r"\1", text),
        )
    }
    ours = {name: number for name, number in _names(vars(uapi)).items() if name in numbers}
    assert ours == {name: numbers[name] for name in ours}
    assert len(ours) >= 5
