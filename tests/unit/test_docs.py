# SPDX-License-Identifier: MIT
"""The documentation's pages: their links resolve, the index has them all, and they name commands that exist."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from vftrace.cli import COMMANDS, HELP_COMMAND

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
RUN = re.compile(r"(?:^ *|[`$] ?|bin/|sudo |^#   )vftrace ([a-z]+)", re.MULTILINE)
"""`vftrace` at the beginning of a line or of code, or after sudo or a path, and the word after it."""


def links(page: Path) -> list[str]:
    """The targets of a page's links, without those to other sites."""
    text = CODE.sub("", FENCE.sub("", page.read_text()))
    return [to for to in LINK.findall(text) if not re.match(r"[a-z]+:", to)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    )


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_resolve(page: Path) -> None:
    """Each relative link leads to a file or directory, and its anchor to a heading."""
    broken = []
    for to in links(page):
        path, _, anchor = to.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(to)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    """Each subcommand that a page runs or names as code is one of the command line's."""
    fenced = "\n".join(FENCE.findall(page.read_text()))
    inline = "\n".join(CODE.findall(FENCE.sub("", page.read_text())))
    assert set(RUN.findall(f"{fenced}\n{inline}")) - {*COMMANDS, HELP_COMMAND} == set()


def test_readme_names_commands() -> None:
    """The patterns above find commands and links at all."""
    readme = (ROOT / "README.md").read_text()
    assert {"doctor", "top", "record", "report", "serve"} <= set(RUN.findall(readme))
    assert len(links(ROOT / "README.md")) > 5


def test_every_page_can_be_reached() -> None:
    """Links lead from docs/index.md to every page of docs/."""
    reached = {ROOT / "docs/index.md"}
    new = set(reached)
    while new:
        found = {
            (page.parent / to.partition("#")[0]).resolve() for page in new for to in links(page)
        }
        new = {page for page in found if page.suffix == ".md"} - reached
        reached |= new
    assert sorted(set(ROOT.glob("docs/**/*.md")) - reached) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lists_begin_after_an_empty_line(page: Path) -> None:
    """Otherwise the site (Python-Markdown) shows them as a part of the paragraph before."""
    text = FENCE.sub("", page.read_text())
    glued = re.findall(r"^(?![-*|>#\s]|\d+\. )\S.*\n(?=(?:[-*]|\d+\.) )", text, re.MULTILINE)
    assert glued == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_numbered_lists_are_indented_by_four(page: Path) -> None:
    """Python-Markdown takes less for the end of the list."""
    text = FENCE.sub("", page.read_text())
    lists = re.findall(r"^\d+\. .*\n(?:(?: .*)?\n)*", text, re.MULTILINE)
    wrong = [line for each in lists for line in each.splitlines() if re.match(r" {1,3}\S", line)]
    assert wrong == []


RESULTS = sorted(set(ROOT.glob("docs/results/*.md")) - {ROOT / "docs/results/README.md"})


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_a_measurement_can_be_repeated(page: Path) -> None:
    """A page of results has a date, a commit, a machine and a command."""
    text = page.read_text()
    needed = {
        "date": r"\b20\d\d-\d\d-\d\d\b",
        "commit": r"\b(?=[0-9a-f]*\d)[0-9a-f]{7}\b",
        "machine": r"\bCPUs?\b",
        "command": r"`?[^`\n]*(?:\.py|python -m|pytest|vftrace |tests/\w+/run|make )",
    }
    assert [what for what, pattern in needed.items() if not re.search(pattern, text)] == []


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_a_measurement_begins_with_its_answer(page: Path) -> None:
    """A reader of results finds what was asked, and the answer, before the first table of runs."""
    first = page.read_text().split("\n## ")[0]
    assert re.findall(r"^\*\*(Question|Answer)\.\*\* ", first, re.MULTILINE) == [
        "Question",
        "Answer",
    ]


def test_paths_of_pages_in_the_code_exist() -> None:
    """A page that moved is found by whoever reads of it in a comment, a message or another file."""
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    named = re.compile(r"(?<![\w/.-])docs/[\w/-]+\.(?:md|svg|png|toml)")
    # Those of QEMU and of Cloud Hypervisor, and a name that stands for all alerts.
    elsewhere = re.compile(r"docs/(?:devel|specs|live_migration|runbooks/ALERT)")
    broken = [
        f"{name}: {path}"
        for name in listed
        if name and not name.startswith(("CHANGELOG", "tests/golden")) and (ROOT / name).is_file()
        for path in named.findall((ROOT / name).read_bytes().decode(errors="replace"))
        if not elsewhere.match(path) and not (ROOT / path).exists()
    ]
    assert broken == []
