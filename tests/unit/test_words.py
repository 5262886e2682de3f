"""The documentation, the help texts and the messages keep to the words of docs/contributing/README.md."""

from pathlib import Path

import pytest

from tests import words


@pytest.mark.parametrize("page", words.PAGES, ids=lambda page: str(page.relative_to(words.ROOT)))
def test_a_page(page: Path) -> None:
    assert [str(find) for find in words.in_page(page)] == []


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
    ],
)
def test_what_is_found(text: str, tmp_path: Path) -> None:
    assert list(words.broken(text, words.AVOID | words.AVOID_IN_PAGES))
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n")
    assert list(words.in_page(page))


@pytest.mark.parametrize(
    "text",
    [
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
