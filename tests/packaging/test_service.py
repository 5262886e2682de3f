"""What docs/operate.md has an operator install: units, a web configuration, a Prometheus with the rules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vftrace.outputs.exporter.webconfig import read_web_config

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "packaging" / "systemd"
DOCS = (ROOT / "docs" / "operate.md").read_text()
RULES = ROOT / "dashboards" / "prometheus" / "vftrace.rules.yml"


@pytest.mark.needs("systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/vftrace/bin/vftrace", sys.executable)
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / unit.name) for unit in UNITS.iterdir()]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    mine = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, mine) == (0, [])


@pytest.mark.needs("root", "bpf", "setpriv")
def test_the_services_capabilities_are_enough() -> None:
    words = re.search(r"^CapabilityBoundingSet=(.+)$", service(), re.MULTILINE)
    assert words is not None
    kept = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in words[1].split())
    command = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", "--inh-caps=-all"]
    command += [sys.executable, "-m", "vftrace", "serve", "--duration=1s"]
    command += ["--web.listen-address=127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "ready\n" in done.stderr


def service() -> str:
    return (UNITS / "vftrace.service").read_text()


@pytest.mark.needs("promtool", "openssl")
def test_the_web_configuration_is_one(tmp_path: Path) -> None:
    shutil.copy(ROOT / "packaging" / "web.yml", tmp_path)
    command = re.search(r"sudo (openssl req .*\\\n.*)$", DOCS, re.MULTILINE)
    assert command is not None
    subprocess.run(["sh", "-ec", command[1]], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["promtool", "check", "web-config", "web.yml"], cwd=tmp_path, check=True)
    read = read_web_config(tmp_path / "web.yml")
    assert read.tls is not None
    assert read.users is not None
    assert read.users.accepts("prometheus", "change me")
    assert not read.users.accepts("prometheus", "change me!")


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
