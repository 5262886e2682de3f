# SPDX-License-Identifier: MIT
"""A pidfd reports the end of its process; where file descriptors run out, /proc does."""

import os
import subprocess
import time

import pytest

from vftrace.host.process_watch import ProcessWatch


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def _until_ended(watch: ProcessWatch, pid: int) -> set[int]:
    deadline = time.monotonic() + 10
    while pid not in watch.ended():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return watch.ended()


@pytest.mark.parametrize("pidfds", [True, False])
def test_an_end_is_reported_until_it_is_forgotten(
    pidfds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(pid: int, flags: int = 0) -> int:
        raise OSError("Too many open files")

    if not pidfds:
        monkeypatch.setattr(os, "pidfd_open", none_left)
    watch = ProcessWatch()
    with _sleeper() as first, _sleeper() as second:
        watch.watch(first.pid)
        watch.watch(second.pid)
        assert watch.ended() == set()
        assert set(watch.pids) == {first.pid, second.pid}
        first.kill()
        # as a zombie already: whoever started it may never wait for it
        assert _until_ended(watch, first.pid) == {first.pid}
        watch.forget(first.pid)
        assert watch.ended() == set()
        second.kill()
    assert watch.ended() == {second.pid}
    watch.close()


def test_a_process_that_is_not_there_has_ended() -> None:
    with _sleeper() as child:
        child.kill()
    watch = ProcessWatch()
    watch.watch(child.pid)
    assert watch.ended() == {child.pid}
    watch.close()
