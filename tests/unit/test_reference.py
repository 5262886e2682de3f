# SPDX-License-Identifier: MIT
"""The generated pages of the reference are up to date."""

import argparse
import json
import re
from pathlib import Path

from tools import reference
from vftrace import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/reference"
REMEDY = "run: make reference"


def test_the_command_line_is_described_as_it_is() -> None:
    assert (PAGES / "command-line.md").read_text() == reference.command_line_page(), REMEDY


def test_the_json_report_is_described_as_it_is() -> None:
    assert (PAGES / "json.md").read_text() == reference.json_page(), REMEDY


def test_every_command_has_its_options() -> None:
    """Found in the text of the help, not in the parser that the page is made from."""
    page = reference.command_line_page()
    for name in cli.COMMANDS:
        section = page.split(f"## vftrace {name}\n")[1].split("\n## ")[0]
        usage = cli.build_parser([name]).format_help() + _help(name)
        options = set(re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.-]+)", usage, re.MULTILINE))
        assert {o for o in options - {"--help", "--version"} if f"`{o}" not in section} == set()


def test_every_field_has_a_description() -> None:
    rows = re.findall(r"^\| (`.*`) \|.*\| (.*) \|$", reference.json_page(), re.MULTILINE)
    assert len(rows) > 300
    assert [name for name, meaning in rows if not re.match(r"\w", meaning)] == []


def _help(name: str) -> str:
    parser = cli.build_parser([name])
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return str(found.choices[name].format_help())


def test_every_field_of_the_schema_is_there() -> None:
    page = reference.json_page()
    schema = json.loads(reference.SCHEMA.read_text())
    migration = schema["properties"]["migrations"]["items"]["properties"]
    assert [name for name in migration if f"`migrations[].{name}" not in page] == []
