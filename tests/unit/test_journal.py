# SPDX-License-Identifier: MIT
"""`serve` under a journal of our own: what journald would get, in a mount namespace where its socket is ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "unshare")

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "tests/golden/recordings/retry.vft.gz"

JOURNAL = """
import json, os, socket, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
ours, theirs = socket.socketpair()
found = os.fstat(theirs.fileno())
environ = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
process = subprocess.Popen(sys.argv[1:], stderr=theirs, env=environ)
theirs.close()
datagrams = []
journal.settimeout(30)
while not any(b"the replay has ended" in d for d in datagrams):
    datagrams.append(journal.recv(1 << 16))
process.terminate()
process.wait()
stream = b"".join(iter(lambda: ours.recv(1 << 16), b""))
print(json.dumps({"datagrams": [d.decode() for d in datagrams], "stream": stream.decode()}))
"""


def test_the_journal_gets_fields_and_standard_error_only_the_ready_line() -> None:
    command = [sys.executable, "-m", "vftrace", "serve", "--replay", str(RECORDING), "--speed", "0"]
    command += ["--web.listen-address", "127.0.0.1:0"]
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", JOURNAL, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=90,
    )
    said = json.loads(done.stdout)
    assert said["stream"] == "ready\n"
    entries = [
        dict(line.split("=", 1) for line in datagram.splitlines()) for datagram in said["datagrams"]
    ]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"vftrace"}
    ended = [entry for entry in entries if entry["MESSAGE"].startswith("migration ended")]
    assert [(e["VFTRACE_OUTCOME"], e["PRIORITY"]) for e in ended] == [
        ("failed", "4"),
        ("completed", "6"),
    ]
    assert ended[0]["VFTRACE_CAUSE"] == "destination-ended"
    assert {e["VFTRACE_NAME"] for e in ended} == {"demo-retry"}
