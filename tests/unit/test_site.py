# SPDX-License-Identifier: MIT
"""The documentation's site: it builds without a warning, and its pages load nothing from another host."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "input": "src",
    "object": "data",
    "link": "href",
}
"""Elements that make a browser load something, and the attribute that names it."""

NAMES_ONLY = {"canonical", "next", "prev"}
"""What `rel` of a <link> may say that loads nothing."""

IN_STYLES = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


class Loads(HTMLParser):
    """Collects what a page loads from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        target = values.get(LOADS.get(tag, "")) or ""
        if tag == "link" and values.get("rel") in NAMES_ONLY:
            return
        if re.match(r"(https?:)?//", target):
            self.found.append(target)
        self.found += IN_STYLES.findall(values.get("style") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def test_a_bar_in_a_table_has_no_backslash(site: Path) -> None:
    assert "<code>--vm UUID|NAME|PID</code>" in (site / "reference/command-line.html").read_text()


def test_it_has_every_page(site: Path) -> None:
    sources = {page.relative_to(ROOT / "docs") for page in ROOT.glob("docs/**/*.md")}
    made = {page.relative_to(site) for page in site.glob("**/*.html")}
    expected = {
        page.with_name("index.html" if page.name == "README.md" else f"{page.stem}.html")
        for page in sources
    }
    assert expected <= made


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    found = {}
    for page in site.glob("**/*"):
        if page.suffix == ".html":
            parser = Loads()
            parser.feed(page.read_text())
            loads = parser.found
        elif page.suffix in (".css", ".svg"):
            loads = IN_STYLES.findall(page.read_text())
        else:
            continue
        if loads:
            found[str(page.relative_to(site))] = loads
    assert found == {}


def test_what_would_be_loaded_is_noticed() -> None:
    parser = Loads()
    parser.feed(
        '<script src="https://a.example/x.js"></script><link rel="stylesheet" href="//b.example/y">'
    )
    parser.feed(
        '<p style="background: url(http://c.example/z.png)"><a href="https://d.example/">d</a>'
    )
    assert parser.found == [
        *("https://a.example/x.js", "//b.example/y"),
        "http://c.example/z.png",
    ]
    assert IN_STYLES.findall('@import "https://e.example/f.css"; src: url(fonts/g.woff)') == [
        "https://e.example/f.css"
    ]
