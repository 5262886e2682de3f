# SPDX-License-Identifier: MIT
"""The memory of the long-running process: no compiler, whatever the cache holds, and a bounded size."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vftrace.probes.bcc.process import CompileError, compile_text
from vftrace.probes.bpf.object import BpfError, Object
from vftrace.probes.bpf.ring import RingBuffer, RingReader
from vftrace.probes.text import program_text

MOST_KIB = 60 << 10
"""Resident memory of each process of `vftrace serve` that has just started, and of both if what they share counts
once (PSS)."""

MOST_OF_BOTH_KIB = 60_000_000 >> 10
"""The sum of both, with what they share counted twice: 60 MB."""


@contextlib.contextmanager
def serving(environment: dict[str, str]) -> Iterator[int]:
    """`vftrace serve` that is ready; its pid."""
    command = [sys.executable, "-m", "vftrace", "serve", "--web.listen-address", "127.0.0.1:0"]
    with subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        said = ""
        while "ready\n" not in said:
            line = child.stderr.readline()
            assert line, said
            said += line
        try:
            yield child.pid
        finally:
            child.send_signal(signal.SIGINT)
            child.stderr.read()
    assert child.returncode == 0


@pytest.mark.parametrize("kept", ["nothing kept", "kept", "not writable", "no cache"])
def test_serve_never_maps_the_compiler(kept: str, tmp_path: Path) -> None:
    place = tmp_path / "programs"
    environment = {"CACHE_DIRECTORY": str(place), "PYTHONDONTWRITEBYTECODE": ""}
    if kept == "no cache":
        environment["VFTRACE_NO_CACHE"] = "1"
    elif kept == "not writable":
        place.write_text("not a directory")
    elif kept == "kept":
        with serving(environment):
            pass
    with serving(environment) as pid:
        deadline = time.monotonic() + 10
        while not (small := _is_small(pid, kept)) and time.monotonic() < deadline:
            time.sleep(1)  # it is ready a moment before it gives memory back
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1  # the reader
        for each in (pid, *children):
            maps = Path(f"/proc/{each}/maps").read_text()
            assert not re.search(r"lib(bcc|clang|LLVM)", maps)
        assert small, _memory(pid)


def _memory(pid: int) -> list[tuple[int, int]]:
    """(RSS, PSS) of a process and its child, in KiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for each in (pid, *children):
        memory = Path(f"/proc/{each}/smaps_rollup").read_text()
        resident, share = re.findall(r"^(?:Rss|Pss): +(\d+) kB", memory, re.MULTILINE)
        found.append((int(resident), int(share)))
    return found


def _is_small(pid: int, kept: str) -> bool:
    memory = _memory(pid)
    residents = [resident for resident, _ in memory]
    if max(residents) > MOST_KIB or sum(share for _, share in memory) > MOST_KIB:
        return False
    # Without kept programs the first start compiles Python's bytecode too, which takes memory.
    return kept != "kept" or sum(residents) <= MOST_OF_BOTH_KIB


def test_a_text_that_is_none() -> None:
    with pytest.raises(CompileError, match=r"main\.c:1:7: error: expected parameter declarator"):
        compile_text("int x(", [])


# Reads a pointer that may be NULL, which the verifier does not take.
REFUSED = """
BPF_TABLE("hash", u32, u64, numbers, 16);
int careless(void *ctx)
{
	u32 key = 1;
	u64 *value = numbers.lookup(&key);

	return *value;
}
"""


def test_a_program_that_the_verifier_refuses_has_a_reason() -> None:
    bpf = Object(compile_text(REFUSED, []))
    try:
        with pytest.raises(BpfError) as caught:
            bpf.load("careless", Object.TRACEPOINT)
    finally:
        bpf.cleanup()
    assert str(caught.value).startswith(
        "the kernel refuses careless (Permission denied): R0 invalid"
    )


# Two ring buffers, as many records in each as the system call was made.
RINGS = """
BPF_RINGBUF_OUTPUT(first, 4);
BPF_RINGBUF_OUTPUT(second, 16);
BPF_TABLE("array", u32, u64, caller, 1);
int called(struct syscall_enter *ctx)
{
	u32 zero = 0;
	u64 *pid = caller.lookup(&zero);
	u64 number = ctx->args[0];
	u64 long_one[25] = {};

	if (!pid || bpf_get_current_pid_tgid() >> 32 != *pid)
		return 0;
	first.ringbuf_output(&number, sizeof(number), NO_WAKE);
	long_one[0] = number;
	second.ringbuf_output(&long_one, sizeof(long_one), NO_WAKE);
	return 0;
}
"""


def test_two_real_ring_buffers_are_read_whole_many_times_round() -> None:
    bpf = Object(compile_text(f"#define SHARES_RING\n{program_text('common.h')}{RINGS}", ["-w"]))
    read: dict[int, list[int]] = {8: [], 200: []}

    def take(record: bytes) -> None:
        read[len(record)].append(int.from_bytes(record[:8], "little"))

    reader = None
    try:
        rings = [RingBuffer(bpf.raw(name).fd, bpf.size(name)) for name in ("first", "second")]
        reader = RingReader(rings, take)
        bpf["caller"][0] = bpf["caller"].Leaf(os.getpid())
        bpf.attach_tracepoint("syscalls:sys_enter_getpgid", "called")
        for number in range(2000):
            with contextlib.suppress(ProcessLookupError):
                os.getpgid(number)
            if number % 50 == 0:
                assert reader.read()
        assert reader.read()
    finally:
        if reader is not None:
            reader.close()
        bpf.cleanup()
    assert read == {8: list(range(2000)), 200: list(range(2000))}


def test_a_table_is_read_changed_and_emptied() -> None:
    bpf = Object(compile_text('BPF_TABLE("hash", u32, u64, numbers, 5000);\n', []))
    try:
        numbers, raw = bpf["numbers"], bpf.raw("numbers")
        assert not raw
        for key in range(3000):
            numbers[key] = numbers.Leaf(key * key)
        assert {k.value: v.value for k, v in numbers.items()} == {k: k * k for k in range(3000)}
        assert numbers[2999].value == 2999 * 2999
        assert 2999 in numbers
        assert 3000 not in numbers
        with pytest.raises(KeyError):
            numbers[3000]
        seven = (7).to_bytes(4, "little")
        assert raw.take(seven) == (49).to_bytes(8, "little")
        assert raw.take(seven) is None
        raw.delete([number.to_bytes(4, "little") for number in range(4000)])
        assert not raw
        for number in range(5000):
            numbers[number] = numbers.Leaf(0)
        with pytest.raises(OSError, match="Argument list too long"):
            numbers[5000] = numbers.Leaf(0)
    finally:
        bpf.cleanup()
