# SPDX-License-Identifier: MIT
"""What tests/conftest.py does with a test whose needs are not met."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import pytest

@pytest.mark.needs("no-such-program")
def test_that_needs_it():
    raise AssertionError("must not run")

def test_that_finds_out(missing):
    missing("no such thing")

@pytest.mark.needs("sh")
def test_that_has_what_it_needs():
    pass
"""


@pytest.mark.parametrize(
    ("require_all", "outcome"),
    [
        ("", {"passed": 1, "skipped": 2}),
        # What is found before the test starts is an error in pytest's words.
        ("1", {"passed": 1, "failed": 1, "error": 1}),
    ],
)
def test_a_need_that_is_not_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_all: str, outcome: dict[str, int]
) -> None:
    conftest = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "conftest.py").write_text(conftest.read_text())
    (tmp_path / "test_it.py").write_text(TEST)
    monkeypatch.setenv("VFTRACE_REQUIRE_ALL", require_all)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-rsfE", "-o", "markers=needs", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    counts = re.findall(r"(\d+) (\w+)", ended.stdout.splitlines()[-1].partition(" in ")[0])
    assert {word: int(count) for count, word in counts} == outcome
    assert (ended.returncode == 0) == (not require_all)
    assert "no no-such-program on PATH" in ended.stdout
    assert "no such thing" in ended.stdout
