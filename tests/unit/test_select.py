# SPDX-License-Identifier: MIT
"""`--vm`: a VM by UUID, its first eight digits, name or pid; a typing error is named with what was meant."""

import pytest

from tests.unit.two_hosts import RECORDINGS, boot_of, golden
from vftrace.cli import main
from vftrace.model.migration import Snapshot
from vftrace.model.select import near, no_match, select, unmatched


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return boot_of(*golden("four-at-once")).snapshot


def test_a_vm_is_found_by_each_of_its_names(snapshot: Snapshot) -> None:
    (m, *_) = snapshot.migrations
    assert m.uuid is not None
    assert m.name is not None
    words = (m.uuid, m.uuid.upper(), m.uuid[:8], m.name, str(m.pid), str(m.peer_pid))
    for word in words:
        assert select(snapshot, [word]).migrations == (m,)
        assert unmatched(snapshot, [word]) == ()
    assert select(snapshot, []) is snapshot
    assert select(snapshot, [m.uuid[:7]]).migrations == ()


def test_a_typing_error_is_reported_with_what_was_meant(snapshot: Snapshot) -> None:
    m = snapshot.migrations[2]
    assert m.uuid is not None
    assert m.name is not None
    swapped = m.name[:-3] + m.name[-2] + m.name[-3] + m.name[-1]
    for word in (swapped, m.name[:-1], m.name.upper(), m.uuid[:-1] + "x", m.uuid[:6]):
        assert unmatched(snapshot, [word]) == (word,)
        assert any(m.name in title for title in near(snapshot, word)), word
        assert "did you mean" in no_match(snapshot, word)
    assert near(snapshot, "zzzzzzzz") == ()
    assert "VMs seen: " in no_match(snapshot, "zzzzzzzz")


@pytest.mark.parametrize(
    "argv",
    [
        ["top", "--speed", "0", "--once", "--replay"],
        ["top", "--speed", "0", "--replay"],
        ["report"],
        ["list"],
    ],
)
@pytest.mark.parametrize("word", ["nosuch", "demo-libvrit"])
def test_a_word_without_a_vm_is_a_wrong_value_everywhere(
    argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, str(RECORDINGS / "libvirt.vft.gz"), "--vm", word]) == 2
    assert f"no VM matches {word!r}" in capsys.readouterr().err


def test_top_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    replay = ["top", "--replay", str(RECORDINGS / "libvirt.vft.gz"), "--speed", "0"]
    (m,) = boot_of(*golden("libvirt")).snapshot.migrations
    assert m.uuid is not None
    for once in ([], ["--once", "--duration", "60s"], ["--json"]):
        assert main([*replay, *once, "--vm", "demo-libvrit"]) == 2
        assert f"did you mean demo-libvirt ({m.uuid[:8]})?" in capsys.readouterr().err
        assert main([*replay, *once, "--vm", m.uuid[:8]]) == 0
        assert "demo-libvirt" in capsys.readouterr().out
