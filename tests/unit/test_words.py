# SPDX-License-Identifier: MIT
"""The documentation, the help texts and the messages keep to the words of docs/contributing/README.md."""

from pathlib import Path

import pytest

from tests import words


@pytest.mark.parametrize("page", words.PAGES, ids=lambda page: str(page.relative_to(words.ROOT)))
def test_a_page(page: Path) -> None:
    assert [str(find) for find in words.in_page(page)] == []


def test_alerts_and_boards() -> None:
    assert [str(find) for find in words.in_alerts(words.RULES)] == []
    finds = [f for p in words.BOARDS for f in words.in_messages(p, words.AVOID_IN_PROSE)]
    assert [str(find) for find in finds] == []


def test_an_alert_with_such_a_text_is_found(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        words.RULES.read_text().replace("Restart vftrace, and", "What it had goes on, and")
    )
    assert len(list(words.in_alerts(rules))) == 2


def test_messages_and_helps() -> None:
    assert [str(find) for path in words.CODE for find in words.in_messages(path)] == []


def test_first_lines_of_docstrings() -> None:
    assert [str(find) for path in words.CODE for find in words.in_docstrings(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Of these the last is shown.",
        "All is well. That it waits the option says.",
        "| x | That is what it is |",
        "a device that is no device",
        "where there are none",
        "the file the user asked for",
        "The board told nothing.",
        "The device was away for a second.",
        "The migration goes on.",
        "It takes some 30 ms.",
        "The file is not whole.",
        "Every driver tries this in vain.",
    ],
)
def test_what_is_found(text: str, tmp_path: Path) -> None:
    assert list(words.broken(text, words.AVOID_IN_PROSE))
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n")
    assert list(words.in_page(page))


@pytest.mark.parametrize(
    "text",
    [
        "What comes that way is counted.",
        "All is well. Those that wait are listed.",
        "Where there is room it is used.",
        "Tracing goes on.",
        "a guest that stood still",
        "a table of which a row is free",
        "It costs nobody else anything.",
    ],
)
def test_what_is_found_in_whole_sentences_only(text: str, tmp_path: Path) -> None:
    assert list(words.broken(text)) == []
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n")
    assert list(words.in_page(page))


@pytest.mark.parametrize(
    "text",
    [
        "What did vftrace measure?",
        "| What took it? | Where is it? |",
        "One of the two hangs. It is one that waits.",
        "Of course it is.",
        "It is no longer there. There is no migration.",
        "The report shows that the device is absent.",
        "`vftrace doctor` says `Of these` in code",
    ],
)
def test_what_is_not(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text.replace('says', 'prints')}\n")
    assert list(words.in_page(page)) == []
