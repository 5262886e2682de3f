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
    rows = descriptors._rows

    def slow_rows(table: Path) -> list[list[str]]:
        nonlocal now
        now += 0.01
        reads.append(table)
        return rows(table)

    monkeypatch.setattr(descriptors, "_rows", slow_rows)
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
