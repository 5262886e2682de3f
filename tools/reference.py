# SPDX-License-Identifier: MIT
"""Makes the pages of the reference that follow from the code: the command line and the JSON report.

`python tools/reference.py` (`make reference`) writes docs/reference/command-line.md and docs/reference/json.md.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vftrace import cli

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "vftrace" / "report.schema.json"
PAGES = ROOT / "docs" / "reference"

_COMMANDS_HEAD = """# Command line

This page is made from the command line's parser by `make reference`. The man pages and the shell completion in the
packages are made from the same parser (`tools/manual.py`).

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | the command line, or a value on it, is wrong |
| 3 | this machine cannot do it; the message names what to change |
| 130 | ended by Ctrl-C |

`vftrace -V` prints the versions of vftrace, its commit, Python and BCC. `vftrace help COMMAND` is
`vftrace COMMAND --help`.

Times are numbers with a unit: `500ms`, `10s`, `1h30m`, `7d`. `VFTRACE_DEBUG=1` prints a traceback with each error.
"""

_JSON_HEAD = """# JSON report

This page is made by `make reference` from the report's JSON Schema, `vftrace/report.schema.json`.
`vftrace report --format json` prints such a report. Fields are only added, so a program should ignore those that it
does not know.

- Times that end in `_at_ns` are CLOCK_BOOTTIME of the host, in nanoseconds. Durations end in `_ns`.
- null means that the value is not known.
- `[]` after a name means a list; the rows below it describe one entry.

| field | type | values and meaning |
|---|---|---|
"""


def command_line_page() -> str:
    """The page of all commands and options, as Markdown."""
    parser = cli.build_parser([])
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return _COMMANDS_HEAD + "".join(_command(name, each) for name, each in found.choices.items())


def json_page() -> str:
    """The page of all fields of the JSON report, as Markdown."""
    return _JSON_HEAD + "".join(_rows(json.loads(SCHEMA.read_text()), ""))


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| {_option(action)} | {_cell((action.help or '') % _words(action))} |\n"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    table = "| argument | meaning |\n|---|---|\n" + "".join(rows) if rows else ""
    examples = (parser.epilog or "").removeprefix(cli.EXAMPLES_HEADING)
    return (
        f"\n## vftrace {name}\n\n{parser.description}\n\n{table}\n"
        f"Examples:\n\n```text\n{_dedent(examples)}\n```\n"
    )


def _dedent(examples: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in examples.splitlines())


def _words(action: argparse.Action) -> dict[str, Any]:
    return vars(action) | {"prog": "vftrace"}


def _option(action: argparse.Action) -> str:
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        return _cell(f"`{value}`")
    names = list(action.option_strings)
    if action.nargs != 0:
        names[-1] += f" {value}"
    return _cell(", ".join(f"`{name}`" for name in names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, each in schema.get("properties", {}).items():
        item = each.get("items", {})
        here = f"{path}{name}" + ("[]" if item else "")
        described = {k: v for k, v in item.items() if k not in ("properties", "items")} | each
        yield f"| `{here}` | {_type(each, item)} | {_meaning(described, item)} |\n"
        yield from _rows(item or each, f"{here}.")


def _type(schema: dict[str, Any], item: dict[str, Any]) -> str:
    kinds = schema.get("type", [])
    named = [kinds] if isinstance(kinds, str) else list(kinds)
    if item and isinstance(item.get("type"), str):
        return f"array of {item['type']}"
    if not named:
        values = schema.get("enum", [schema.get("const")])
        named = ["string" if any(isinstance(v, str) for v in values) else "integer"]
        named += ["null"] if None in values else []
    return " or ".join(named)


def _meaning(schema: dict[str, Any], item: dict[str, Any]) -> str:
    values = schema.get("enum") or item.get("enum") or []
    shown = ", ".join(f"`{value}`" for value in values if value is not None)
    return _cell(". ".join(part for part in (schema.get("description", ""), shown) if part))


def main() -> None:
    """Write both pages."""
    (PAGES / "command-line.md").write_text(command_line_page())
    (PAGES / "json.md").write_text(json_page())


if __name__ == "__main__":
    main()
