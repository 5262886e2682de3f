# SPDX-License-Identifier: MIT
"""The rules, checked and played by Prometheus's own promtool."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parent.parent.parent / "dashboards" / "prometheus"

pytestmark = pytest.mark.needs("promtool")


def test_the_rules_are_sound() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES / "vftrace.rules.yml")], check=True)


def test_the_rules_give_what_they_say() -> None:
    done = played(RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_that_shows_nothing_is_noticed(tmp_path: Path) -> None:
    found = yaml.safe_load((RULES / "vftrace.rules.yml").read_text())
    rules = [rule for group in found["groups"] for rule in group["rules"]]
    for rule in rules:
        rule["expr"] = "vector(1) == 0"
    (tmp_path / "vftrace.rules.yml").write_text(yaml.safe_dump(found, sort_keys=False))
    shutil.copy(RULES / "vftrace.rules.test.yml", tmp_path)
    done = played(tmp_path)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert [name for name in map(name_of, rules) if name not in said] == []


def name_of(rule: dict[str, str]) -> str:
    return rule.get("alert") or rule["record"]


def played(directory: Path) -> "subprocess.CompletedProcess[str]":
    command = ["promtool", "test", "rules", "vftrace.rules.test.yml"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)
