# SPDX-License-Identifier: MIT
"""The structures and numbers of bpf(2) and perf_event_open(2), against the kernel's own headers and by hand."""

import ctypes
import errno
import json
import platform
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from vftrace.probes.bpf import maps, syscall
from vftrace.probes.bpf.image import Map
from vftrace.probes.bpf.object import reason_in

# Where union bpf_attr has another name for a member of ours.
STRUCTURES = {
    syscall.MapCreate: ("union bpf_attr", {}),
    syscall.MapElement: ("union bpf_attr", {}),
    syscall.MapBatch: ("union bpf_attr", {m: f"batch.{m}" for m, *_ in syscall.MapBatch._fields_}),
    syscall.ProgramLoad: ("union bpf_attr", {}),
    syscall.ObjectInfo: (
        "union bpf_attr",
        {m: f"info.{m}" for m, *_ in syscall.ObjectInfo._fields_},
    ),
    syscall.RawTracepoint: (
        "union bpf_attr",
        {"name": "raw_tracepoint.name", "prog_fd": "raw_tracepoint.prog_fd", "pad": ""},
    ),
    syscall.LinkCreate: (
        "union bpf_attr",
        {m: f"link_create.{m}" for m, *_ in syscall.LinkCreate._fields_},
    ),
    syscall.ById: ("union bpf_attr", {}),
    syscall.BtfInfo: ("struct bpf_btf_info", {}),
    syscall.ProgramInfo: ("struct bpf_prog_info", {"gpl_compatible": ""}),  # a bit field
    syscall.PerfEvent: ("struct perf_event_attr", {"flags": ""}),  # bit fields in the header
}
NUMBERS: dict[str, int] = {
    "BPF_MAP_CREATE": syscall.MAP_CREATE,
    "BPF_MAP_LOOKUP_ELEM": syscall.MAP_LOOKUP,
    "BPF_MAP_UPDATE_ELEM": syscall.MAP_UPDATE,
    "BPF_MAP_DELETE_ELEM": syscall.MAP_DELETE,
    "BPF_PROG_LOAD": syscall.PROG_LOAD,
    "BPF_OBJ_GET_INFO_BY_FD": syscall.OBJ_GET_INFO,
    "BPF_RAW_TRACEPOINT_OPEN": syscall.RAW_TRACEPOINT_OPEN,
    "BPF_BTF_GET_FD_BY_ID": syscall.BTF_GET_FD_BY_ID,
    "BPF_MAP_LOOKUP_AND_DELETE_ELEM": syscall.MAP_LOOKUP_AND_DELETE,
    "BPF_BTF_GET_NEXT_ID": syscall.BTF_GET_NEXT_ID,
    "BPF_MAP_LOOKUP_BATCH": syscall.MAP_LOOKUP_BATCH,
    "BPF_LINK_CREATE": syscall.LINK_CREATE,
    "BPF_PERF_EVENT": syscall.PERF_EVENT,
    "BPF_PROG_TYPE_KPROBE": syscall.KPROBE,
    "BPF_PROG_TYPE_TRACEPOINT": syscall.TRACEPOINT,
    "BPF_PROG_TYPE_TRACING": syscall.TRACING,
    "BPF_TRACE_FENTRY": syscall.TRACE_FENTRY,
    "BPF_TRACE_FEXIT": syscall.TRACE_FEXIT,
    "BPF_OBJ_NAME_LEN": syscall.NAME_BYTES,
    "PERF_TYPE_TRACEPOINT": syscall.PERF_TYPE_TRACEPOINT,
    "PERF_EVENT_IOC_ENABLE": syscall.PERF_EVENT_IOC_ENABLE,
    "PERF_EVENT_IOC_SET_BPF": syscall.PERF_EVENT_IOC_SET_BPF,
    "PERF_FLAG_FD_CLOEXEC": syscall._PERF_FLAG_FD_CLOEXEC,
    "__NR_bpf": syscall._number(syscall._BPF),
    "__NR_perf_event_open": syscall._number(syscall._PERF_EVENT_OPEN),
}


def _offsets() -> dict[str, tuple[int, str]]:
    """Each member's offset in our structure, and the C expression of the kernel's."""
    found = {}
    for ours, (theirs, names) in STRUCTURES.items():
        for member, *_ in ours._fields_:
            name = names.get(member, member)
            if name:
                offset = getattr(ours, member).offset
                found[f"{ours.__name__}.{member}"] = offset, f"offsetof({theirs}, {name})"
    return found


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_as_the_kernels_headers_have_it(tmp_path: Path) -> None:
    expected = {name: offset for name, (offset, _) in _offsets().items()}
    expected |= NUMBERS
    expressions = {name: text for name, (_, text) in _offsets().items()}
    expressions |= {name: name for name in NUMBERS}
    lines = "\n".join(
        f'printf("{n} %lu\\n", (unsigned long)({e}));' for n, e in expressions.items()
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <asm/unistd.h>\n"
        f"#include <linux/bpf.h>\n#include <linux/perf_event.h>\nint main(void) {{ {lines} }}\n"
    )
    program = tmp_path / "offsets"
    subprocess.run(["cc", "-o", program, source], check=True)
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert {n: int(v) for n, v in (line.split() for line in out.splitlines())} == expected


def test_a_program_is_described_as_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """union bpf_attr of BPF_PROG_LOAD, counted by hand in include/uapi/linux/bpf.h."""
    sent: list[tuple[int, bytes, bytes, bytes]] = []

    def bpf(command: int, attributes: ctypes.Structure) -> int:
        raw = bytes(attributes)
        code = ctypes.string_at(int.from_bytes(raw[8:16], "little"), 16)
        terms = ctypes.string_at(int.from_bytes(raw[16:24], "little"))
        sent.append((command, raw, code, terms))
        return 7

    monkeypatch.setattr(syscall, "bpf", bpf)
    instructions = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit
    found = syscall.load_program(
        26, instructions, "GPL", "kvm_vcpu_ioctl_and_more", (25, 0x1234, 9)
    )
    assert found == 7
    ((command, raw, code, terms),) = sent
    assert (command, code, terms) == (5, instructions, b"GPL")
    assert raw[:8] == bytes.fromhex("1a00000002000000")  # type, two instructions
    assert raw[24:48] == bytes(24)  # log level, size and buffer; kernel version, flags
    assert raw[48:64] == b"kvm_vcpu_ioctl_\0"
    assert raw[64:72] == bytes.fromhex("0000000019000000")  # interface; BPF_TRACE_FEXIT
    assert raw[72:108] == bytes(36)
    assert raw[108:116] == bytes.fromhex("3412000009000000")  # id in the BTF behind fd 9


def test_a_machine_whose_numbers_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64") as caught:
        syscall.bpf(syscall.MAP_CREATE, syscall.MapCreate())
    assert caught.value.errno == errno.ENOSYS


# BCC 0.26's description of struct flow (bpf/mailbox.h) and of a nested structure, both shortened.
FLOW = json.loads(
    '["flow", [["full_until_ns","unsigned long long"], ["vf","unsigned int"], ["pad","unsigned int"],'
    ' ["pf","char", [16]], ["key_residue","unsigned int", [16]] ], "struct_packed"]'
)
CALL = json.loads(
    '["call", [["t",["thread", [["arg","unsigned long long"], ["ret","int"], ["pad","unsigned int"] ],'
    ' "struct_packed"]], ["iova","unsigned long long"] ], "struct_packed"]'
)


def test_types_are_laid_out_as_in_c() -> None:
    flow, call = maps.described(FLOW), maps.described(CALL)
    members = ("full_until_ns", "vf", "pf", "key_residue")
    assert [getattr(flow, member).offset for member in members] == [0, 8, 16, 32]
    assert ctypes.sizeof(flow) == 96
    read = flow.from_buffer_copy(bytes(16) + b"0000:01:00.0\0\0\0\0" + bytes(64))
    assert read.pf == b"0000:01:00.0"
    assert (call.t.size, call.iova.offset) == (16, 16)
    assert maps.described("unsigned short") is ctypes.c_ushort


@pytest.mark.parametrize(
    "unknown",
    [
        "__int128",
        ["u", [["a", "int"]], "union"],
        ["b", [["a", "int", 3]], "struct_packed"],
        ["s", [["a", [["b", "int"]], "struct"]], "struct_packed"],
    ],
)
def test_types_that_are_not_understood_are_refused(unknown: object) -> None:
    with pytest.raises((KeyError, ValueError)):
        maps.described(unknown)


def test_a_description_that_is_not_as_large_as_the_value_is_refused() -> None:
    with pytest.raises(ValueError, match="flow: described as 96 bytes of 104"):
        maps.Map(3, Map(1, 4, 104, 16, 0, '"int"', json.dumps(FLOW)))


def test_locked_memory_is_lifted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels before 5.11 need it; a second refusal goes through."""
    limits: list[tuple[int, int]] = [(65536, 65536)]
    calls = []

    def bpf(command: int, attributes: ctypes.Structure) -> int:
        calls.append(command)
        if limits[-1][0] != resource.RLIM_INFINITY:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return 5

    monkeypatch.setattr(syscall, "bpf", bpf)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.append(to))
    image = Map(1, 4, 8, 16, 0, '"int"', '"long"')
    assert maps.create("vms", image) == 5
    assert calls == [syscall.MAP_CREATE] * 2
    assert len(limits) == 2


def test_the_verifiers_last_words() -> None:
    """The end of a log as kernel/bpf/verifier.c writes it."""
    log = (
        "0: R1=ctx(off=0,imm=0) R10=fp0\n0: (79) r0 = *(u64 *)(r1 +8)\n"
        "invalid bpf_context access off=8 size=8\n"
        "processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n"
    )
    assert reason_in(log) == "invalid bpf_context access off=8 size=8"
    assert reason_in("") == ""
