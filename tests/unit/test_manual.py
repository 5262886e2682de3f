# SPDX-License-Identifier: MIT
"""Man pages and completion are made from the parser, and work in what reads them."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from tools import manual
from vftrace import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manual")
    manual.write(directory)
    return directory


def test_every_command_has_a_page_with_all_its_options(made: Path) -> None:
    overview = (made / "man1/vftrace.1").read_text()
    for name in cli.available_commands():
        assert f".BR vftrace\\-{name} (1)" in overview
        page = (made / f"man1/vftrace-{name}.1").read_text()
        assert page.startswith(f'.TH "VFTRACE-{name.upper()}" "1"')
        # whatis(1) and apropos(1) read this form
        assert re.search(rf"^\.SH NAME\nvftrace\\-{name} \\- \S", page, re.MULTILINE)
        assert ".SH EXAMPLES" in page
        assert "\n'" not in page, "roff takes such a line for a request"
        parser = argparse.ArgumentParser(add_help=False)
        cli.load_command(name).add_arguments(parser)
        for action in parser._actions:
            for option in action.option_strings:
                assert option.replace("-", "\\-") in page


def completed(made: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    file = made / manual.COMPLETIONS["bash"]
    line = " ".join(words)
    script = f"""
        source {file}
        COMP_WORDS=({line}) COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}
        [[ $(complete -p vftrace) =~ -F\\ ([^ ]+) ]]
        ${{BASH_REMATCH[1]}} vftrace
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_bash_completes_commands_and_options(made: Path) -> None:
    assert completed(made, "vftrace", "rep") == ["report"]
    assert "--web.config.file" in completed(made, "vftrace", "serve", "--web")
    assert set(completed(made, "vftrace", "record", "--way", "f")) == {"fentry"}


def test_zsh_and_fish_get_every_command(made: Path) -> None:
    for shell in ("zsh", "fish"):
        text = (made / manual.COMPLETIONS[shell]).read_text()
        assert all(name in text for name in cli.available_commands())
