# SPDX-License-Identifier: MIT
"""Each alert has a runbook: its heading, its parts in order, and commands that exist."""

import re
from pathlib import Path

import pytest
import yaml

from vftrace.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "dashboards/prometheus/vftrace.rules.yml"
RUNBOOKS = ROOT / "docs/runbooks"
PARTS = ["Meaning", "Impact", "Look first", "Causes", "Escalate", "How it clears"]

ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
URL = re.compile(r"https://docs\.invalid/vftrace/(runbooks/\w+\.md)")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_leads_to_its_page(alert: str) -> None:
    found = URL.fullmatch(ALERTS[alert]["annotations"]["runbook_url"])
    assert found is not None
    page = ROOT / "docs" / found[1]
    assert page == RUNBOOKS / f"{alert}.md"
    text = page.read_text()
    assert text.startswith(f"# {alert}\n\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    bodies = re.split(r"^## .*$", text, flags=re.MULTILINE)
    assert [part for part, body in zip(PARTS, bodies[1:], strict=True) if len(body) < 80] == []


def test_there_is_no_page_without_an_alert_and_the_list_has_all() -> None:
    pages = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == set(ALERTS)
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.md\)", (RUNBOOKS / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(ALERTS)


def test_the_base_can_be_set_as_the_docs_say() -> None:
    """One sed changes every link, and the file has the command."""
    text = RULES.read_text()
    command = re.search(r"sed -i 's,(\S+?),(\S+?),'", text)
    assert command is not None
    changed = yaml.safe_load(text.replace(command[1], command[2]))
    urls = [
        rule["annotations"]["runbook_url"]
        for group in changed["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert all(url.startswith(command[2]) for url in urls)
    assert command[0].split("'")[1] in (ROOT / "docs/how-to/run-as-a-service.md").read_text()


@pytest.mark.parametrize("alert", ["VftraceMigrationFailed", "VftraceDowntimeOverTarget"])
def test_alerts_about_migrations_lead_to_the_recordings(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert "vftrace list " in text
    assert "vftrace report /var/lib/vftrace --last 1" in text


COMMAND = re.compile(r"(?:`|^ {4,})vftrace ([^`\n|]+)", re.MULTILINE)


def test_commands_of_the_runbooks_have_such_options() -> None:
    found = {
        command
        for page in RUNBOOKS.glob("*.md")
        for command in COMMAND.findall(page.read_text())
        if not command.startswith("cannot")
    }
    assert len(found) > 8
    for command in found:
        filled = command.replace("...", "1Gbit").replace("--pf PF", "--pf 0000:01:00.0")
        words = filled.replace(" N", " 1").split()
        build_parser(words).parse_args(words)
