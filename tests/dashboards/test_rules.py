"""The recording rules, checked and played by Prometheus's own promtool."""

import subprocess
from pathlib import Path

import pytest

RULES = Path(__file__).parent.parent.parent / "dashboards" / "prometheus"


@pytest.mark.needs("promtool")
def test_the_rules_are_sound() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES / "vftrace.rules.yml")], check=True)


@pytest.mark.needs("promtool")
def test_the_rules_give_what_they_say() -> None:
    subprocess.run(
        ["promtool", "test", "rules", "vftrace.rules.test.yml"], check=True, cwd=RULES
    )
