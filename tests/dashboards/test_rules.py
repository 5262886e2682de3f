"""The rules, checked and played by Prometheus's own promtool."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parent.parent.parent / "dashboards" / "prometheus"
NAMES = [
    rule.get("alert") or rule["record"]
    for group in yaml.safe_load((RULES / "vftrace.rules.yml").read_text())["groups"]
    for rule in group["rules"]
]

pytestmark = pytest.mark.needs("promtool")


def test_the_rules_are_sound() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES / "vftrace.rules.yml")], check=True)


def test_the_rules_give_what_they_say() -> None:
    done = played(RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_says_nothing_is_noticed(name: str, tmp_path: Path) -> None:
    found = yaml.safe_load((RULES / "vftrace.rules.yml").read_text())
    for rule in (rule for group in found["groups"] for rule in group["rules"]):
        if name in (rule.get("alert"), rule.get("record")):
            rule["expr"] = "vector(1) == 0"
    (tmp_path / "vftrace.rules.yml").write_text(yaml.safe_dump(found, sort_keys=False))
    shutil.copy(RULES / "vftrace.rules.test.yml", tmp_path)
    done = played(tmp_path)
    assert done.returncode == 1
    assert "FAILED" in done.stdout + done.stderr


def played(directory: Path) -> "subprocess.CompletedProcess[str]":
    command = ["promtool", "test", "rules", "vftrace.rules.test.yml"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)
