# SPDX-License-Identifier: MIT
"""The inputs that fuzzing has found, as small as possible, each with the right result."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from vftrace import cli
from vftrace.archive import index
from vftrace.archive.finish import PART, finish_all
from vftrace.archive.retention import Limits, enforce
from vftrace.errors import VftraceError
from vftrace.host import descriptors, devices, netlink, processes
from vftrace.mailbox.profile import ProfileError, parse_profile
from vftrace.outputs.exporter.pages import make_app
from vftrace.outputs.exporter.webconfig import read_web_config

GOLDEN = Path(__file__).parents[1] / "golden" / "recordings"
DEEP = '{"a":' * 3000


def test_a_device_option_of_a_neighbour_is_nested_too_deeply() -> None:
    assert devices.named_devices(["qemu", "-device", DEEP]) == ()
    assert descriptors.load_of(1, ["qemu", "-incoming", DEEP]) is None


@pytest.mark.parametrize("flags", ["", "8", "zz", "020\x7f"])
def test_flags_of_an_fd_are_no_number(flags: str, tmp_path: Path) -> None:
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "7").write_text(f"pos:\t0\nflags:\t{flags}\n")
    assert descriptors._flags(tmp_path, 7) is None


@pytest.mark.parametrize("stat", ["", "4711", "4711 (x) S 1 1", "4711 (x) S" + " x" * 50])
def test_a_process_whose_stat_is_cut(
    stat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat)
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert processes.start_time(7) is None


@pytest.mark.parametrize("syscall", ["", "16 0xb zz 0x0", "-1 0x0 0x0"])
def test_a_thread_that_ends_while_it_is_looked_at(
    syscall: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tmp_path / "7" / "task" / "7"
    task.mkdir(parents=True)
    (task / "syscall").write_text(syscall)
    (task / "comm").write_text("CPU 0/KVM\n")
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert list(processes.threads_in_kvm_run(7)) == []


@pytest.mark.parametrize("field", ["", ":", "0100007F", "0100:07F:8A3C", "\x020100007:8A3C", "0:0"])
def test_an_address_that_is_none(field: str) -> None:
    assert descriptors._address(field) is None


def test_a_profile_with_a_number_of_thousands_of_digits() -> None:
    with pytest.raises(ProfileError, match="not TOML"):
        parse_profile("code = " + "9" * 5000)


def test_an_interface_whose_number_is_negative() -> None:
    assert netlink.name_of(-7) == "-7"


@pytest.mark.parametrize(
    "text",
    [
        "tls_server_config:\n" + "- " * 2000,
        "basic_auth_users: " + "[" * 3000,
        "tls_server_config: 2026-99-99",
        "http_server_config:\n  headers:\n    X-XSS-Protection: \u2192",
    ],
)
def test_a_web_configuration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text(text)
    with pytest.raises(VftraceError, match=r"web\.yml: ") as caught:
        read_web_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["1.0.0x", "", "1.-1", "\xe9", "9" * 5000, "1.0.0"])
def test_a_scraper_asks_for_a_version_that_is_none(version: str) -> None:
    registry = CollectorRegistry()
    Gauge("there", "x", registry=registry).set(1)
    app = make_app(registry, "/metrics", lambda: True)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/metrics",
        "QUERY_STRING": "",
        "HTTP_ACCEPT": f"application/openmetrics-text; version={version}",
    }
    said: list[str] = []
    body = b"".join(app(environ, lambda status, headers: said.append(status)))
    assert said == ["200 OK"]
    assert b"there 1.0" in body


def test_two_long_names_fit_into_one_record() -> None:
    """Each character that is no UTF-8 becomes six bytes of JSON."""
    argv = [
        "\ufffd" * 130_000,
        "-name",
        "\ufffd" * 130_000,
        "-incoming",
        "file:" + "\ufffd" * 130_000,
    ]
    identity, load = processes.identity_of(argv), descriptors.load_of(1, argv)
    assert load is not None
    words = [identity.name, identity.vmm, load.path, load.program]
    assert len(json.dumps(words)) < 64 << 10
    device = "vfio-pci,id=" + "\ufffd" * 130_000 + ",host=" + "\ufffd" * 130_000
    (named,) = devices.named_devices(["qemu", "-device", device])
    assert len(json.dumps([named.address, named.id])) < 64 << 10


def kept(directory: Path, name: str = "20261129T000000.000Z-vm-running-00000000.vft.gz") -> Path:
    path = directory / name
    path.write_bytes((GOLDEN / "cancel-precopy.vft.gz").read_bytes())
    return path


def test_pipes_and_links_where_recordings_are_kept(tmp_path: Path) -> None:
    """Opening a pipe blocked for ever, and the target of a link was overwritten."""
    directory = tmp_path / "kept"
    directory.mkdir()
    outside = kept(tmp_path)
    content = outside.read_bytes()
    (directory / outside.name).symlink_to(outside)
    for number, suffix in enumerate(("", PART), 1):
        os.mkfifo(directory / f"{outside.name.replace('00000000', f'0000000{number}')}{suffix}")
    os.mkfifo(directory / index.NAME)
    before = sorted(directory.iterdir())
    assert finish_all(directory, (), lambda _: None)
    assert enforce(directory, Limits(0, 0), ()).files == 0
    assert index.read(directory).entries == ()
    assert [path for path in before if path.name != index.NAME] == [
        path for path in sorted(directory.iterdir()) if path.name != index.NAME
    ]
    assert outside.read_bytes() == content


def test_an_index_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    """A recorder wrote its line into whatever the link led to."""
    directory = tmp_path / "kept"
    directory.mkdir()
    other = tmp_path / "other"
    other.write_text("untouched")
    (directory / index.NAME).symlink_to(other)
    assert index.add(kept(directory)) is None
    assert other.read_text() == "untouched"
    assert len(index.known(directory).entries) == 1


def test_a_recording_whose_name_is_not_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither `list` nor `report` read anything of a directory with such a file."""
    kept(tmp_path, os.fsdecode(b"\xff\xfe.vft.gz"))
    kept(tmp_path)
    for _ in range(2):
        assert cli.main(["list", str(tmp_path)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2  # both files hold one migration
    assert len(index.known(tmp_path).entries) == 1


@pytest.mark.parametrize("field", ["strategy", "set_by", "kind"])
def test_an_index_of_somebody_else_does_not_steer_the_terminal(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path)
    index.read(tmp_path)
    path = tmp_path / index.NAME
    head, line = path.read_text().splitlines()
    entry = json.loads(line)
    entry["rows"][0][field] = "\x1b[2J"
    path.write_text(f"{head}\n{json.dumps(entry)}\n")
    assert cli.main(["list", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_an_index_that_names_a_file_elsewhere_is_made_again(tmp_path: Path) -> None:
    path = kept(tmp_path)
    whole = index.read(tmp_path)
    head, line = (tmp_path / index.NAME).read_text().splitlines()
    entry = json.loads(line)
    entry["rows"][0]["file"] = "../../etc/passwd"
    (tmp_path / index.NAME).write_text(f"{head}\n{json.dumps(entry)}\n")
    assert index.known(tmp_path).entries == ()
    assert index.read(tmp_path) == whole
    assert {row.file for entry in whole.entries for row in entry.rows} == {path.name}


def test_a_message_with_a_files_name_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "\x1b[2J.vft"
    path.write_bytes(b"no recording")
    for command in ("report", "list", "dump"):
        assert cli.main([command, str(path)]) == 1
        said = capsys.readouterr().err
        assert "\x1b" not in said
        assert said.startswith("vftrace: ")
