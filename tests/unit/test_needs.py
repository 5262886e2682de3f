"""What tests/conftest.py does with a test whose needs are not met."""

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
    [("", "1 passed, 2 skipped"), ("1", "2 failed, 1 passed")],
)
def test_a_need_that_is_not_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_all: str, outcome: str
) -> None:
    conftest = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "conftest.py").write_text(conftest.read_text())
    (tmp_path / "test_it.py").write_text(TEST)
    monkeypatch.setenv("VFTRACE_REQUIRE_ALL", require_all)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-rsf", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in ended.stdout.splitlines()[-1]
    assert "no no-such-program on PATH" in ended.stdout
    assert "no such thing" in ended.stdout
