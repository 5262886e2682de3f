# SPDX-License-Identifier: MIT
"""What docs/how-to/run-as-a-service.md installs: units, a web configuration, a Prometheus with the rules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import bcrypt
import pytest
import yaml

from vftrace.collect.reader import CAPABILITIES
from vftrace.errors import VftraceError
from vftrace.host import privileges
from vftrace.outputs.exporter.webconfig import read_web_config

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "packaging" / "systemd"
DOCS = (ROOT / "docs/how-to/run-as-a-service.md").read_text()
RULES = ROOT / "dashboards" / "prometheus" / "vftrace.rules.yml"


@pytest.mark.needs("systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    units = [unit for unit in UNITS.iterdir() if unit.suffix in (".service", ".socket")]
    for unit in units:
        text = unit.read_text().replace("/opt/vftrace/bin/vftrace", sys.executable)
        (tmp_path / unit.name).write_text(text)
    names = [str(tmp_path / unit.name) for unit in units]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True
    )
    mine = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, mine) == (0, [])


@pytest.mark.needs("systemd-analyze")
def test_the_unit_leaves_little_exposed() -> None:
    """systemd's own measure: 10 is a service without any confinement; the unit had 6.4 once."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager"]
    done = subprocess.run(
        [*command, str(UNITS / "vftrace.service")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]
    assert "Overall exposure level" in done.stdout


def test_the_unit_has_the_capabilities_that_the_reader_keeps() -> None:
    """And one more until the probes are attached."""
    named = {
        "CAP_BPF": privileges.CAP_BPF,
        "CAP_PERFMON": privileges.CAP_PERFMON,
        "CAP_SYS_PTRACE": privileges.CAP_SYS_PTRACE,
        "CAP_DAC_READ_SEARCH": privileges.CAP_DAC_READ_SEARCH,
    }
    for setting in ("AmbientCapabilities", "CapabilityBoundingSet"):
        words = re.search(rf"^{setting}=(.+)$", service(), re.MULTILINE)
        assert words is not None
        assert set(words[1].split()) - {"CAP_SYS_ADMIN"} == set(named)
    assert set(named.values()) == set(CAPABILITIES)


def service() -> str:
    return (UNITS / "vftrace.service").read_text()


@pytest.mark.needs("promtool", "openssl")
def test_the_web_configuration_is_one(tmp_path: Path) -> None:
    shutil.copy(ROOT / "packaging" / "web.yml", tmp_path)
    command = re.search(r"sudo (openssl req .*\\\n.*)$", DOCS, re.MULTILINE)
    assert command is not None
    subprocess.run(["sh", "-ec", command[1]], cwd=tmp_path, check=True, capture_output=True)
    file = tmp_path / "web.yml"
    with pytest.raises(VftraceError, match="is not a bcrypt hash"):
        read_web_config(file)
    hashed = bcrypt.hashpw(b"mine", bcrypt.gensalt(4)).decode()
    file.write_text(file.read_text().replace("PUT-YOUR-BCRYPT-HASH-HERE", hashed))
    subprocess.run(["promtool", "check", "web-config", "web.yml"], cwd=tmp_path, check=True)
    read = read_web_config(file)
    assert read.tls is not None
    assert read.users is not None
    assert read.users.accepts("prometheus", "mine")
    assert not read.users.accepts("prometheus", "change me")


@pytest.mark.needs("promtool")
def test_the_configuration_of_prometheus_is_one(tmp_path: Path) -> None:
    for name in ("prometheus.yml", RULES.name):
        shutil.copy(RULES.with_name(name), tmp_path)
    subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, check=True)


def test_every_alert_is_explained() -> None:
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    alerts = [rule["alert"] for rule in rules if "alert" in rule]
    assert re.findall(r"^\| `(Vftrace\w+)`", DOCS, re.MULTILINE) == alerts
    for rule in rules:
        if rule.get("expr", "").startswith("vector"):
            assert f"`{rule['record']}`" in DOCS
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert {"summary", "description"} <= set(rule["annotations"])
