# SPDX-License-Identifier: MIT
"""The tables of sockets are not read for every socket where that takes long."""

from pathlib import Path

import pytest

from vftrace.host import descriptors

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def _table(process: Path, inodes: range, port: str = "C000") -> None:
    rows = "".join(
        f"   0: 0100007F:1F90 0200007F:{port} 01 00000000:00000000 00:00000000 00000000 0 0 {inode}\n"
        for inode in inodes
    )
    (process / "net").mkdir(exist_ok=True, parents=True)
    (process / "net" / "tcp").write_text(HEAD + rows)


def test_tables_are_read_again_only_after_a_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    reads: list[Path] = []
    text_of = descriptors._text_of

    def slow(table: Path) -> bytes:
        nonlocal now
        now += 0.01
        reads.append(table)
        return text_of(table)

    monkeypatch.setattr(descriptors, "_text_of", slow)
    monkeypatch.setattr("vftrace.host.descriptors.time.monotonic", lambda: now)
    _table(tmp_path, range(100))
    assert descriptors._socket(tmp_path, "7").peer == "127.0.0.2:49152"
    assert descriptors._socket(tmp_path, "8").kind == "tcp"
    assert len(reads) == 3
    _table(tmp_path, range(200))
    assert descriptors._socket(tmp_path, "150") is descriptors.UNKNOWN
    assert len(reads) == 3
    now += 1
    assert descriptors._socket(tmp_path, "150").kind == "tcp"
    assert len(reads) == 6


def test_a_socket_that_was_not_connected_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("vftrace.host.descriptors.time.monotonic", lambda: now)
    _table(tmp_path, range(2), port="0000")
    assert descriptors._socket(tmp_path, "1").peer == "127.0.0.2:0"
    _table(tmp_path, range(2))
    now += 1
    assert descriptors._socket(tmp_path, "1").peer == "127.0.0.2:49152"


# As Linux 6.18 writes them; the inode of one is a part of another's, and a word of another column.
UNIX = b"""Num       RefCount Protocol Flags    Type St Inode Path
ffff0000: 00000003 00000000 00000000 0001 03 4711
ffff0001: 00000003 00000000 00000000 0001 03   815 /run/vm 47 1
"""
TCP = b"""  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000   471        0 47111 1 ffff 100 0 0 10 0
   1: 0100007F:1F91 0200007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 471 1 ffff 20 4 30 10 -1
"""


def test_a_row_is_found_by_its_inode_alone(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_bytes(UNIX)
    (tmp_path / "net" / "tcp").write_bytes(TCP)
    unix = descriptors.Descriptor("unix", None)
    assert descriptors._socket(tmp_path, "4711") == descriptors._socket(tmp_path, "815") == unix
    assert descriptors._socket(tmp_path, "471").peer == "127.0.0.2:49152"
    assert descriptors._socket(tmp_path, "47111").peer == "0.0.0.0:0"
    for other in ("47", "1", "4", "0", "100"):
        assert descriptors._socket(tmp_path, other) is descriptors.UNKNOWN


def test_tcp_sockets_are_not_read_for_a_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def text_of(table: Path) -> bytes:
        reads.append(table.name)
        return table.read_bytes()

    monkeypatch.setattr(descriptors, "_text_of", text_of)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_bytes(UNIX)
    assert descriptors._socket(tmp_path, "4711").kind == "unix"
    assert reads == ["unix"]
