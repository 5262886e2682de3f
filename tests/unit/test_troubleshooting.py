# SPDX-License-Identifier: MIT
"""docs/how-to/troubleshooting.md names messages that vftrace prints, word for word."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how-to/troubleshooting.md").read_text()

PLACEHOLDER = re.compile(r"\b[A-Z]+\b(?= |$|,)|…|\b[NM]\b")
"""Stands for what differs: FILE, DIR, PATH, N."""


def messages() -> set[str]:
    """Every text in the code, f-strings with {} for what they insert."""
    found = set()
    for path in ROOT.glob("vftrace/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def named() -> list[str]:
    """The messages of the page's tables: code of more than two words that is not a command."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    cells = [cell for row in rows for cell in row.strip("|").split("|")[:-1]]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return [span for span in spans if span.count(" ") >= 2]


def is_printed(message: str, texts: set[str]) -> bool:
    """Whether one text has all of the message's fixed parts, in their order."""
    upper = message.split(":")[0].isupper() or message.isupper()
    parts = [message] if upper else PLACEHOLDER.split(message)
    pattern = ".*".join(re.escape(part.strip()) for part in parts if part.strip())
    return any(re.search(pattern, text) for text in texts)


def test_every_message_is_printed() -> None:
    texts = messages()
    found = named()
    assert len(found) > 15
    assert [message for message in found if not is_printed(message, texts)] == []


def test_another_message_is_not() -> None:
    assert not is_printed("the moon is locked down (confidentiality)", messages())
