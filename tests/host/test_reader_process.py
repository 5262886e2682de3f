# SPDX-License-Identifier: MIT
"""The reader process and the main process: rights, ends, and a main process that is late."""

import os
import pwd
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vftrace.collect.reader import capabilities
from vftrace.collect.recording import Recording
from vftrace.collect.remote import ReaderProcess
from vftrace.events import Clock, End, Lost

END_S = 20
URLS: list[str] = []
"""Where the last `traced` serves."""
DETACH_S = 5
"""The kernel takes a second to detach what a killed process had attached."""


def children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def status(thread: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())


def gone(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def until(condition: object, seconds: float = END_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def heed_hangup() -> None:
    """Whoever runs these tests by nohup(1) has SIGHUP ignored, which vftrace would respect."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def traced(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A vftrace that is ready, and its reader; both must have ended afterwards."""
    command = [sys.executable, "-m", "vftrace", *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_hangup,
    ) as process:
        assert process.stderr is not None
        said = ""
        while (line := process.stderr.readline()) != "ready\n":
            assert line, said
            said += line
        URLS.extend(re.findall(r"serving (\S+)", said))
        (reader,) = children(process.pid)
        try:
            yield process, reader
            until(lambda: gone(reader))
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return tmp_path / "trace.vft"


COMMANDS = ("record", "serve", "top")


def arguments(command: str, recording: Path) -> list[str]:
    more = {"record": ["-o", str(recording)], "serve": ["--web.listen-address", "127.0.0.1:0"]}
    return [command, *more.get(command, [])]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_thread_keeps_more_than_it_needs(command: str, recording: Path) -> None:
    with traced(*arguments(command, recording)) as (process, reader):
        kept = sum(1 << capability for capability in capabilities())
        for pid, allowed, filtered in ((process.pid, 0, "0"), (reader, kept, "2")):
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            assert threads
            for found in map(status, threads):
                for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
                    assert int(found[name], 16) == allowed, (pid, name)
                assert found["NoNewPrivs"] == "1"
                assert found["Seccomp"] == filtered
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 0


@pytest.mark.needs("root")
def test_started_as_root_both_become_the_user_and_files_are_written(tmp_path: Path) -> None:
    """The recording is opened before, so it is root's; the flight recorder's directory is made for the user."""
    nobody = pwd.getpwnam("nobody").pw_uid
    recording, kept = tmp_path / "trace.vft", tmp_path / "kept"
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    words = ["serve", "--web.listen-address", "127.0.0.1:0", "--user", "nobody"]
    words += ["--record", str(recording), "--record-dir", str(kept)]
    with traced(*words) as (process, reader):
        allowed = {process.pid: 0, reader: sum(1 << capability for capability in capabilities())}
        for pid, kept_by in allowed.items():
            for thread in map(status, Path(f"/proc/{pid}/task").iterdir()):
                assert set(thread["Uid"].split()) == {str(nobody)}
                assert int(thread["CapEff"], 16) == int(thread["CapPrm"], 16) == kept_by
        text = urllib.request.urlopen(URLS.pop(), timeout=10).read().decode()
        assert "vftrace_flight_recorder_write_errors_total 0.0" in text
        process.terminate()
        assert process.wait(END_S) == 0
    assert recording.stat().st_uid == 0
    found = Recording(recording)
    assert list(found)
    assert found.not_whole is None
    assert kept.stat().st_uid == nobody


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_ends_both(command: str, number: signal.Signals, recording: Path) -> None:
    """As a terminal sends Ctrl-C to its process group, and systemd SIGTERM to all processes of a unit."""
    with traced(*arguments(command, recording)) as (process, reader):
        os.kill(reader, number)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=END_S)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    if command == "record":
        found = Recording(recording)
        assert list(found)
        assert found.damage is None


def test_the_reader_ends_at_once_with_the_main_process(recording: Path) -> None:
    with traced(*arguments("record", recording)) as (process, reader):
        process.kill()
        until(lambda: gone(reader), DETACH_S)


def test_a_reader_whose_main_process_is_stopped_ends_with_it(recording: Path) -> None:
    with traced(*arguments("record", recording)) as (process, reader):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        assert not gone(reader)
        process.kill()
        until(lambda: gone(reader), DETACH_S)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dead_reader_is_one_clear_line(command: str, recording: Path) -> None:
    with traced(*arguments(command, recording)) as (process, reader):
        time.sleep(0.5)
        os.kill(reader, signal.SIGKILL)
        _, said = process.communicate(timeout=END_S)
        assert process.returncode == 1
        wanted = "vftrace: the reader process ended (signal SIGKILL): nothing is traced any more"
        # `serve` also logs what other VMs of this machine do.
        assert said.splitlines()[-1] == wanted
        assert "Traceback" not in said
    if command == "record":
        found = Recording(recording)
        assert len(list(found)) > 3
        assert found.not_whole is not None


def test_an_error_of_the_reader_is_the_commands_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            sys.executable,
            "-m",
            "vftrace",
            "record",
            "-o",
            tmp_path / "x",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=END_S,
    )
    assert done.returncode == 3
    said = done.stderr.splitlines()
    assert said[0].startswith("vftrace: this pid namespace is not the host's")
    assert said[1].startswith("  to fix: ")


def test_modules_are_not_looked_for_where_it_was_started(tmp_path: Path) -> None:
    """The working directory may be anybody's."""
    for name in ("json", "bcc", "msgspec", "vftrace"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working directory')")
    done = subprocess.run(
        [Path(sys.executable).parent / "vftrace", "record", "-o", "x.vft", "--duration", "0.3s"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=END_S,
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, "ready")


CALLS = 20_000

# A VM fd and KVM_GET_CLOCK, a record each, as fast as it goes.
PRODUCER = f"""
import fcntl, os
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
for _ in range({CALLS}):
    fcntl.ioctl(vm, 0x8030AE7C, bytes(48))
"""


def test_beside_other_threads_the_reader_is_a_program_of_its_own() -> None:
    """A fork would keep the locks that they hold."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        process = ReaderProcess()
        source = process.wait()
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert b"vftrace.collect.reader" in words
    finally:
        done.set()
        other.join()
    assert source.close().records
    assert source.failure is None


def test_a_late_main_process_loses_nothing_and_reports_its_lateness() -> None:
    """For more than a second the main process reads no record: ten times as many as the sockets hold are sent."""
    source = ReaderProcess().wait()
    try:
        found = list(source.read().events)
        begun = time.monotonic()
        with subprocess.Popen([sys.executable, "-c", PRODUCER]) as child:
            pass
        assert child.returncode == 0
        # From when the reader took the oldest record that waits: on a busy machine some time after it was written.
        until(lambda: source.reader.lateness_ns >= 1e9)
        late = source.reader
        assert late.lateness_ns / 1e9 <= time.monotonic() - begun + 1
        assert late.resident_bytes is not None
        assert late.resident_bytes > 1 << 20
        # Other VMs of this machine read their clocks too.
        while sum(isinstance(e, Clock) and e.tgid == child.pid for e in found) < CALLS:
            assert time.monotonic() - begun < 3 * END_S
            found += source.read().events
        until(lambda: (source.read(), source.reader.lateness_ns < 200_000_000)[1])
        after = source.reader
        assert late.cpu_ns is not None
        assert after.cpu_ns is not None
        assert after.cpu_ns >= late.cpu_ns > 0
    finally:
        found += source.close().events
    assert source.failure is None
    assert isinstance(found[-1], End)
    assert not [event for event in found if isinstance(event, Lost)]
    numbers = [e.seq for e in found if isinstance(e, Clock) and e.tgid == child.pid]
    assert len(numbers) == len(set(numbers)) == CALLS


def test_what_a_scrape_shows_of_the_reader(recording: Path) -> None:
    with traced(*arguments("serve", recording)) as (process, reader):
        url = URLS.pop()
        deadline = time.monotonic() + END_S
        text = ""
        while "vftrace_reader_cpu_seconds_total" not in text:
            assert time.monotonic() < deadline
            text = urllib.request.urlopen(url, timeout=10).read().decode()
        figures = dict(re.findall(r"^vftrace_reader_(\w+) (\S+)$", text, re.MULTILINE))
        assert 0 <= float(figures["lateness_seconds"]) < END_S
        assert float(figures["cpu_seconds_total"]) > 0
        status = Path(f"/proc/{reader}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert resident is not None
        assert float(figures["resident_memory_bytes"]) == pytest.approx(
            int(resident[1]) * 1024, rel=0.2
        )
        process.terminate()
        assert process.wait(END_S) == 0
