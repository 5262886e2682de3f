# SPDX-License-Identifier: MIT
"""The system calls bpf(2) and perf_event_open(2), and the structures that they take.

The numbers and layouts are those of include/uapi/linux/bpf.h and perf_event.h, which the kernel never changes; it
only appends members, and takes a shorter structure than its own.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator

_BPF = {"x86_64": 321, "aarch64": 280}
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE = 0, 1, 2, 3
PROG_LOAD, OBJ_GET_INFO, RAW_TRACEPOINT_OPEN, BTF_LOAD = 5, 15, 17, 18
BTF_GET_FD_BY_ID, MAP_LOOKUP_AND_DELETE, BTF_GET_NEXT_ID, MAP_LOOKUP_BATCH = 19, 21, 23, 24
LINK_CREATE, ENABLE_STATS = 28, 32

RINGBUF = 27
"""BPF_MAP_TYPE_RINGBUF."""
KPROBE, TRACEPOINT, RAW_TRACEPOINT, TRACING = 2, 5, 17, 26
"""Types of programs (BPF_PROG_TYPE_*)."""
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT = 23, 24, 25
"""Attach types of a TRACING program."""

PERF_EVENT = 41
"""The attach type of a link to a perf event (BPF_PERF_EVENT)."""
_EVENT_KPROBE, _EVENT_KRETPROBE = 3, 4
"""BPF_PERF_EVENT_*: what the perf event of a link is."""

PERF_TYPE_TRACEPOINT = 2
PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
_PERF_FLAG_FD_CLOEXEC = 8

_FUNC_INFO_BYTES = 8
"""struct bpf_func_info."""

NAME_BYTES = 16
"""BPF_OBJ_NAME_LEN; the last byte is zero."""

_u32, _s32, _u64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64
_Name = ctypes.c_char * NAME_BYTES


class MapCreate(ctypes.Structure):
    """BPF_MAP_CREATE."""

    _fields_ = (
        ("map_type", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("max_entries", _u32),
        ("map_flags", _u32),
        ("inner_map_fd", _u32),
        ("numa_node", _u32),
        ("map_name", _Name),
    )


class MapElement(ctypes.Structure):
    """BPF_MAP_*_ELEM; `value` is `next_key` in BPF_MAP_GET_NEXT_KEY."""

    _fields_ = (
        ("map_fd", _u32),
        ("key", _u64),
        ("value", _u64),
        ("flags", _u64),
    )


class MapBatch(ctypes.Structure):
    """BPF_MAP_*_BATCH."""

    _fields_ = (
        ("in_batch", _u64),
        ("out_batch", _u64),
        ("keys", _u64),
        ("values", _u64),
        ("count", _u32),
        ("map_fd", _u32),
        ("elem_flags", _u64),
        ("flags", _u64),
    )


class ProgramLoad(ctypes.Structure):
    """BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", _u32),
        ("insn_cnt", _u32),
        ("insns", _u64),
        ("license", _u64),
        ("log_level", _u32),
        ("log_size", _u32),
        ("log_buf", _u64),
        ("kern_version", _u32),
        ("prog_flags", _u32),
        ("prog_name", _Name),
        ("prog_ifindex", _u32),
        ("expected_attach_type", _u32),
        ("prog_btf_fd", _u32),
        ("func_info_rec_size", _u32),
        ("func_info", _u64),
        ("func_info_cnt", _u32),
        ("line_info_rec_size", _u32),
        ("line_info", _u64),
        ("line_info_cnt", _u32),
        ("attach_btf_id", _u32),
        ("attach_btf_obj_fd", _u32),
        ("core_relo_cnt", _u32),
    )


class BtfLoad(ctypes.Structure):
    """BPF_BTF_LOAD."""

    _fields_ = (
        ("btf", _u64),
        ("log_buf", _u64),
        ("btf_size", _u32),
        ("log_size", _u32),
        ("log_level", _u32),
    )


class ObjectInfo(ctypes.Structure):
    """BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", _u32), ("info_len", _u32), ("info", _u64))


class RawTracepoint(ctypes.Structure):
    """BPF_RAW_TRACEPOINT_OPEN; without a name it attaches a TRACING program where it was loaded for."""

    _fields_ = (("name", _u64), ("prog_fd", _u32), ("pad", _u32))


class LinkCreate(ctypes.Structure):
    """BPF_LINK_CREATE."""

    _fields_ = (("prog_fd", _u32), ("target_fd", _u32), ("attach_type", _u32), ("flags", _u32))


class KprobeLinkInfo(ctypes.Structure):
    """struct bpf_link_info of a kprobe as far as `missed`, which the kernel has since 6.7; `event` is
    perf_event.type."""

    _fields_ = (
        ("type", _u32),
        ("id", _u32),
        ("prog_id", _u32),
        ("pad", _u32),
        ("event", _u32),
        ("event_pad", _u32),
        ("func_name", _u64),
        ("name_len", _u32),
        ("offset", _u32),
        ("addr", _u64),
        ("missed", _u64),
    )


class EnableStats(ctypes.Structure):
    """BPF_ENABLE_STATS; type 0 is BPF_STATS_RUN_TIME."""

    _fields_ = (("type", _u32),)


class ById(ctypes.Structure):
    """BPF_*_GET_FD_BY_ID and BPF_*_GET_NEXT_ID."""

    _fields_ = (("start_id", _u32), ("next_id", _u32), ("open_flags", _u32))


class BtfInfo(ctypes.Structure):
    """struct bpf_btf_info."""

    _fields_ = (
        ("btf", _u64),
        ("btf_size", _u32),
        ("id", _u32),
        ("name", _u64),
        ("name_len", _u32),
        ("kernel_btf", _u32),
    )


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info as far as `recursion_misses`, which the kernel has since 5.12."""

    _fields_ = (
        ("type", _u32),
        ("id", _u32),
        ("tag", ctypes.c_char * 8),
        ("jited_prog_len", _u32),
        ("xlated_prog_len", _u32),
        ("jited_prog_insns", _u64),
        ("xlated_prog_insns", _u64),
        ("load_time", _u64),
        ("created_by_uid", _u32),
        ("nr_map_ids", _u32),
        ("map_ids", _u64),
        ("name", _Name),
        ("ifindex", _u32),
        ("gpl_compatible", _u32),
        ("netns_dev", _u64),
        ("netns_ino", _u64),
        ("nr_jited_ksyms", _u32),
        ("nr_jited_func_lens", _u32),
        ("jited_ksyms", _u64),
        ("jited_func_lens", _u64),
        ("btf_id", _u32),
        ("func_info_rec_size", _u32),
        ("func_info", _u64),
        ("nr_func_info", _u32),
        ("nr_line_info", _u32),
        ("line_info", _u64),
        ("jited_line_info", _u64),
        ("nr_jited_line_info", _u32),
        ("line_info_rec_size", _u32),
        ("jited_line_info_rec_size", _u32),
        ("nr_prog_tags", _u32),
        ("prog_tags", _u64),
        ("run_time_ns", _u64),
        ("run_cnt", _u64),
        ("recursion_misses", _u64),
    )


class PerfEvent(ctypes.Structure):
    """struct perf_event_attr as far as PERF_ATTR_SIZE_VER1; `config1` and `config2` of a kprobe are the address
    of the function's name and the offset in it."""

    _fields_ = (
        ("type", _u32),
        ("size", _u32),
        ("config", _u64),
        ("sample_period", _u64),
        ("sample_type", _u64),
        ("read_format", _u64),
        ("flags", _u64),
        ("wakeup_events", _u32),
        ("bp_type", _u32),
        ("config1", _u64),
        ("config2", _u64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _number(numbers: dict[str, int]) -> int:
    machine = platform.machine()
    if machine not in numbers:
        raise OSError(errno.ENOSYS, f"vftrace does not know the system calls of {machine}")
    return numbers[machine]


def bpf(command: int, attributes: ctypes.Structure) -> int:
    """Make the system call and return its result. Raises OSError."""
    number = ctypes.c_long(_number(_BPF))
    size = ctypes.c_uint(ctypes.sizeof(attributes))
    return _checked(_libc.syscall(number, ctypes.c_int(command), ctypes.byref(attributes), size))


def perf_event_open(event: PerfEvent) -> int:
    """Open an event of all processes; returns its fd. Raises OSError.

    Tracepoints and kprobes run on every CPU: CPU 0 stands for all.
    """
    event.size = ctypes.sizeof(event)
    number = ctypes.c_long(_number(_PERF_EVENT_OPEN))
    where = [ctypes.c_int(x) for x in (-1, 0, -1)]
    flags = ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC)
    return _checked(_libc.syscall(number, ctypes.byref(event), *where, flags))


def address(buffer: "ctypes.Array[ctypes.c_char] | None") -> int:
    """Return the address of a buffer, 0 for None. The caller keeps the buffer until the call is made."""
    return 0 if buffer is None else ctypes.addressof(buffer)


def object_name(name: str) -> bytes:
    """Return a name that the kernel accepts for maps and programs, cut if it is too long."""
    return name.encode()[: NAME_BYTES - 1]


def load_program(
    kind: int,
    code: bytes,
    terms: str,
    name: str = "",
    attach: tuple[int, int, int] = (0, 0, 0),
    log: "ctypes.Array[ctypes.c_char] | None" = None,
    functions: tuple[bytes, bytes] | None = None,
) -> int:
    """Load a program; returns its fd. Raises OSError.

    `terms`: its license. `attach`: for a TRACING program the attach type, the function's BTF id and the fd of the
    module's BTF (0: the kernel's own). `log`: where the verifier writes what it finds. `functions`: the description
    of a program with callbacks (`functions.described`).
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(terms.encode())
    attributes = ProgramLoad(
        prog_type=kind,
        insn_cnt=len(code) // 8,
        insns=address(instructions),
        license=address(license_text),
        prog_name=object_name(name),
        expected_attach_type=attach[0],
        attach_btf_id=attach[1],
        attach_btf_obj_fd=attach[2],
    )
    if log is not None:
        attributes.log_level, attributes.log_size = 1, len(log)
        attributes.log_buf = address(log)
    if functions is None:
        return bpf(PROG_LOAD, attributes)
    infos = ctypes.create_string_buffer(functions[1], len(functions[1]))
    attributes.prog_btf_fd = load_btf(functions[0])
    attributes.func_info, attributes.func_info_rec_size = address(infos), _FUNC_INFO_BYTES
    attributes.func_info_cnt = len(infos) // _FUNC_INFO_BYTES
    try:
        return bpf(PROG_LOAD, attributes)
    finally:
        os.close(attributes.prog_btf_fd)


def load_btf(data: bytes) -> int:
    """Load BTF; returns its fd. Raises OSError."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return bpf(BTF_LOAD, BtfLoad(btf=address(buffer), btf_size=len(data)))


def attach_tracing(program: int) -> int:
    """Attach a TRACING program; returns the fd that holds it. Raises OSError."""
    return bpf(RAW_TRACEPOINT_OPEN, RawTracepoint(prog_fd=program))


def _read_info(fd: int, info: ctypes.Structure) -> int:
    """Fill in what the kernel knows of a program, link or BTF; returns how many bytes it has (kernel/bpf/syscall.c,
    bpf_obj_get_info_by_fd). Raises OSError."""
    asked = ObjectInfo(bpf_fd=fd, info_len=ctypes.sizeof(info), info=ctypes.addressof(info))
    bpf(OBJ_GET_INFO, asked)
    return int(asked.info_len)


def missed_runs(program: int) -> tuple[int, int] | None:
    """Return a loaded program's id, and how many of its runs the kernel skipped because another one was under way on
    that CPU, of all CPUs; None if this kernel does not count them. Raises OSError."""
    info = ProgramInfo()
    if _read_info(program, info) < ctypes.sizeof(info):
        return None
    return info.id, info.recursion_misses


def count_runs() -> int:
    """Make the kernel count and time the runs of all programs until the returned fd is closed. Raises OSError: EPERM
    without CAP_SYS_ADMIN (kernel/bpf/syscall.c, bpf_enable_stats)."""
    return bpf(ENABLE_STATS, EnableStats())


def runs(program: int) -> int:
    """Return how often a loaded program ran on all CPUs while runs were counted. Raises OSError."""
    info = ProgramInfo()
    _read_info(program, info)
    return int(info.run_cnt)


def link_perf_event(program: int, event: int) -> int:
    """Attach a program to a perf event; returns the fd of the link, which holds both. Raises OSError, always where the
    kernel is older than 5.15."""
    return bpf(LINK_CREATE, LinkCreate(prog_fd=program, target_fd=event, attach_type=PERF_EVENT))


def missed_hits(link: int) -> tuple[int, int] | None:
    """Return the id of a link to a kprobe, and how often the probe was hit and did not run; None if this kernel does
    not show that. Raises OSError."""
    info = KprobeLinkInfo()
    known = _read_info(link, info)
    if known < ctypes.sizeof(info) or info.event not in (_EVENT_KPROBE, _EVENT_KRETPROBE):
        return None
    return info.id, info.missed


def module_btf(module: str) -> int:
    """Return a new fd of the BTF of a loaded module. Raises OSError, and LookupError if the module has no BTF."""
    for number in _btf_ids():
        try:
            fd = bpf(BTF_GET_FD_BY_ID, ById(start_id=number))
        except FileNotFoundError:
            continue  # unloaded in between
        name = ctypes.create_string_buffer(64)
        info = BtfInfo(name=address(name), name_len=len(name))
        try:
            _read_info(fd, info)
        except OSError:
            os.close(fd)
            raise
        if info.kernel_btf and name.value.decode() == module:
            return fd
        os.close(fd)
    raise LookupError(f"the module {module} has no BTF")


def _btf_ids() -> Iterator[int]:
    at = ById()
    while True:
        try:
            bpf(BTF_GET_NEXT_ID, at)
        except FileNotFoundError:
            return
        yield at.next_id
        at.start_id = at.next_id
