# SPDX-License-Identifier: MIT
"""The commands of the README, of Getting started and of the how-to pages run as they stand there.

They run in a directory with recordings under the names that the pages use. A block that needs more (root, BPF,
a guest, a cluster, another program) has an HTML comment before it, `<!-- not run: WHY -->`.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/getting-started.md",
    *sorted((ROOT / "docs/how-to").glob("*.md")),
]

RECORDINGS = {
    "trace.vft": "recordings/completed-fast.vft.gz",
    "before.vft": "recordings/completed-fast.vft.gz",
    "after.vft": "recordings/libvirt.vft.gz",
    **{f"{host}.vft": f"experiment/all/{host}-host.vft.gz" for host in "ab"},
    **{f"{host}1.vft": f"experiment/all/{host}-host.vft.gz" for host in "ab"},
    **{f"{host}2.vft": f"experiment/all/{host}-host.vft.gz" for host in "ab"},
    "ping.vft": "experiment/all/plain-1.vft.gz",
    "vf.vft": "mailbox/6.12.vft.gz",
    "vf-migration.vft": "experiment/all/a-host.vft.gz",
    "assisted.vft": "mailbox/6.12.vft.gz",
}
"""The names of the pages' recordings, and the real ones that stand for them."""

LINKS = {
    ".venv": ROOT / ".venv",
    "profiles": ROOT / "docs/profiles",
    "dashboards": ROOT / "dashboards",
}

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]*?) -->\n)?^```sh\n(?P<text>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.line}"


def blocks(page: Path) -> list[Block]:
    """The shell blocks of a page."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start("text")), found["text"], found["why"])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.why_not is None]


def commands(text: str) -> list[str]:
    """The command lines of a block, without comments; a backslash at the end continues a line."""
    joined = text.replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    for name, source in RECORDINGS.items():
        shutil.copy(GOLDEN / source, directory / name)
    for name, target in LINKS.items():
        (directory / name).symlink_to(target)
    programs = directory / "bin"
    programs.mkdir()
    scripts = {
        "vftrace": f'exec "{sys.executable}" -m vftrace "$@"',
        "pip": 'test "$1" = install',  # what it installs is in the environment already
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return directory


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs(block: Block, place: Path) -> None:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "PAGER": "cat"}
    for command in commands(block.text):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        # 141: `| head` has read enough.
        assert done.returncode in (0, 141), f"{command}: {done.stderr}"


def test_commands_that_are_not_run_have_a_reason() -> None:
    """In words; a test that runs it instead exists."""
    reasons = {str(block): block.why_not for block in BLOCKS if block.why_not is not None}
    assert [name for name, why in reasons.items() if len(why) < 20] == []
    named = {
        path for why in reasons.values() for path in re.findall(r"tests/[\w/-]+(?:\.py)?", why)
    }
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_comment_stands_before_a_block() -> None:
    """One that stands elsewhere would have no effect."""
    said = sum(page.read_text().count("<!-- not run:") for page in PAGES)
    assert said == sum(block.why_not is not None for block in BLOCKS)


def test_a_good_part_runs() -> None:
    assert len([command for block in RUN for command in commands(block.text)]) >= 20


def test_a_wrong_command_is_noticed(place: Path) -> None:
    wrong = Block(ROOT / "README.md", 1, "vftrace report trace.vft --no-such-option\n", None)
    with pytest.raises(AssertionError, match="no-such-option"):
        test_a_block_runs(wrong, place)
