# SPDX-License-Identifier: MIT
"""The lab's own parts that can be checked without booting anything."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from vftlab import golden
from vftlab.common import LabError
from vftlab.debian import Archive, Mirror
from vftlab.firmware import ROM_SIZE, rom
from vftlab.images import _closure
from vftlab.iommufd import span_iterator, unpack_vmlinuz
from vftlab.modules import lab_mtty
from vftlab.switch import HEADER, Table, frames
from vftlab.tsc import tsc_khz

MTTY = """\
static struct mtty_type {
} mtty_types[2];
static struct file *mtty_step_state(struct mdev_state *mdev_state,
\t\t\t\t     enum vfio_device_mig_state new)
{
\tenum vfio_device_mig_state cur = mdev_state->state;

\tdev_dbg(mdev_state->vdev.dev, "%s: %d -> %d\\n", __func__, cur, new);
}
\tvdev->migration_flags = VFIO_MIGRATION_STOP_COPY |
\t\t\t\tVFIO_MIGRATION_P2P |
\t\t\t\tVFIO_MIGRATION_PRE_COPY;
"""


def test_mtty_gets_a_parameter_for_its_flags() -> None:
    text = lab_mtty(MTTY)
    assert "vdev->migration_flags = lab_flags;" in text
    assert text.index("module_param(lab_flags") < text.index("struct mtty_type {")
    assert text.index("dev_dbg(") < text.index("new == VFIO_DEVICE_STATE_STOP_COPY")


def test_an_unknown_mtty_is_refused() -> None:
    with pytest.raises(LabError, match="0 places"):
        lab_mtty(MTTY.replace("migration_flags", "flags"))


@pytest.mark.parametrize(
    ("module", "variable"),
    [
        ("test_lab_recordings.py", "VFTRACE_LAB_RECORDINGS"),
        ("test_mailbox_recordings.py", "VFTRACE_LAB_MAILBOX"),
        ("test_experiment.py", "VFTRACE_EXPERIMENT"),
    ],
)
def test_golden_checks_of_no_recording_do_not_pass(
    module: str, variable: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="nothing was recorded"):
        golden.check(module, variable, tmp_path)


def test_the_span_iterator_is_cut_out_of_its_file() -> None:
    source = (
        "#include <linux/interval_tree.h>\nint other;\n#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\n"
        "void interval_tree_span_iter_first(void) {}\n#endif\nint more;\n"
    )
    text = span_iterator(source)
    assert "interval_tree_span_iter_first" in text
    assert "other" not in text
    assert "more" not in text
    with pytest.raises(LabError, match="no span iterator"):
        span_iterator("int other;\n")


@pytest.mark.parametrize("tool", ["xz", "zstd"])
def test_a_kernel_is_unpacked_from_its_image(tool: str) -> None:
    kernel = b"\x7fELF" + bytes(range(256)) * 64
    packed = subprocess.run([tool, "-c"], input=kernel, capture_output=True, check=True).stdout
    # Before it the boot code, behind it what else is in the image.
    assert unpack_vmlinuz(b"MZ boot code" + packed + b"and more") == kernel
    with pytest.raises(LabError, match="holds no kernel"):
        unpack_vmlinuz(b"MZ boot code")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no time stamp counter")
def test_the_clocks_frequency_is_the_same_each_time() -> None:
    first, second = tsc_khz(), tsc_khz()
    assert first is not None
    assert second is not None
    assert 500_000 < first < 10_000_000
    assert abs(first - second) < first / 100


@pytest.mark.parametrize("pages", [0, 97])
def test_the_firmware_stays_below_640_kib(pages: int) -> None:
    with pytest.raises(ValueError, match="1 to 96"):
        rom(pages)


def test_the_firmware_starts_where_the_processor_does() -> None:
    image = rom(1)
    assert len(image) == ROM_SIZE
    # jmp far f000:0000 at the reset vector, 16 bytes below 4 GiB
    assert image[-16:-11] == bytes([0xEA, 0x00, 0x00, 0x00, 0xF0])


def test_a_mirror_without_security_updates_has_fewer_sources(tmp_path: Path) -> None:
    suites = ("trixie", "trixie-security")
    assert len(Mirror("http://a/debian", None).lines(suites)) == 1
    both = Mirror("http://a/debian", "http://a/security")
    assert [line.split()[-2:] for line in both.lines(suites)] == [
        ["trixie", "main"],
        ["trixie-security", "main"],
    ]
    assert not Archive(tmp_path, suites, both).fresh()


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "k/igb.ko: k/dca.ko k/i2c-algo-bit.ko\nk/dca.ko:\nk/i2c-algo-bit.ko:\nk/other.ko:\n"
    )
    loaded = _closure(tmp_path, ["igb", "i2c_algo_bit", "absent"])
    assert loaded == ["k/dca.ko", "k/i2c-algo-bit.ko", "k/igb.ko"]


HUB, A, B = "third", b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"
EVERYBODY = b"\xff" * 6


def test_a_switch_sends_to_all_until_it_has_heard() -> None:
    table = Table()
    ports = ["a", "b", HUB]
    first = B + A + b"\x08\x00"
    assert table.learn(first, "a") == (A, None)
    assert table.outputs(first, "a", ports) == ["b", HUB]
    answer = A + B + b"\x08\x00"
    assert table.learn(answer, "b") == (B, None)
    assert table.outputs(answer, "b", ports) == ["a"]
    assert table.learn(first, "a") is None
    # The same address on another port has moved; no port has the group's address.
    assert table.learn(first, HUB) == (A, "a")
    assert table.outputs(answer, HUB, ports) == []
    assert table.outputs(EVERYBODY + A, HUB, ports) == ["a", "b"]


def test_frames_come_in_pieces() -> None:
    stream = b"".join(HEADER.pack(len(frame)) + frame for frame in (b"one", b"", b"three"))
    for cut in range(len(stream) + 1):
        buffer = bytearray(stream[:cut])
        found = list(frames(buffer))
        buffer += stream[cut:]
        assert [*found, *frames(buffer)] == [b"one", b"", b"three"]
        assert not buffer
    with pytest.raises(ValueError, match="a frame of"):
        list(frames(bytearray(b"\xff" * 8)))
