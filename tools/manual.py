# SPDX-License-Identifier: MIT
"""Makes man pages and shell completion from the command line's own parser.

`python tools/manual.py DIRECTORY` writes `man1/vftrace*.1` and `bash`, `zsh` and `fish` completion
below it, for packages to install.
"""

import argparse
import re
import sys
from pathlib import Path

import shtab
from build_manpages.manpage import Manpage

from vftrace import __version__, cli

COMPLETIONS = {
    "bash": "bash-completion/vftrace",
    "zsh": "zsh/_vftrace",
    "fish": "fish/vftrace.fish",
}
"""Each shell's file, below the directory that is given."""


def pages(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The text of every man page by its file name: one of vftrace, and one of each command."""
    commands = _commands(parser)
    names = [f"vftrace-{name}" for name in commands]
    overview = cli.bare_parser()
    overview.usage = "vftrace [-h] [-V] COMMAND ..."
    made = {"vftrace.1": _page(overview, "vftrace", names, _command_list(list(commands)))}
    for name, command in commands.items():
        page = _page(command, f"vftrace-{name}", ["vftrace"], _examples(command.epilog or ""))
        made[f"vftrace-{name}.1"] = page
    return made


def completions(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The text of every completion by its path."""
    for command in _commands(parser).values():
        for action in command._actions:
            if action.metavar in {"FILE", "FILE...", "DIR"}:
                action.complete = (  # type: ignore[attr-defined]
                    shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
                )
    return {path: shtab.complete(parser, shell) for shell, path in COMPLETIONS.items()}


def write(directory: Path) -> None:
    """Write all of them below `directory`."""
    parser = cli.build_parser([])
    texts = {f"man1/{name}": text for name, text in pages(parser).items()} | completions(parser)
    for path, text in texts.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def _page(parser: argparse.ArgumentParser, name: str, see_also: list[str], more: str) -> str:
    """One page. `more`: sections to stand behind the options."""
    parser.man_short_description = _short(parser)  # type: ignore[attr-defined]
    parser.epilog = None
    data = {"project_name": "vftrace", "version": __version__, "manual_section": "1"}
    text = str(Manpage(parser, _data=data))
    title = f'.TH "{name.upper()}" "1" "" "vftrace {__version__}"'
    text = re.sub(r"^\.TH .*$", title, text, count=1, flags=re.MULTILINE)
    # whatis(1) finds a page by the first word of its NAME
    text = re.sub(r"^(\.SH NAME\n)\S.*? \\- ", rf"\1{_roff(name)} \\- ", text, flags=re.MULTILINE)
    # a line that begins so would be a request to roff
    text = re.sub(r"^'", r"\\&'", text, flags=re.MULTILINE)
    return text.rstrip("\n") + "\n" + more + _see_also(see_also)


def _short(parser: argparse.ArgumentParser) -> str:
    text = (parser.description or "").rstrip(".")
    return text[:1].lower() + text[1:]


def _command_list(names: list[str]) -> str:
    return _terms("COMMANDS", [(name, cli.load_command(name).HELP) for name in names])


def _examples(epilog: str) -> str:
    lines = epilog.removeprefix(cli.EXAMPLES_HEADING).splitlines()
    return _terms("EXAMPLES", list(zip(lines[::2], lines[1::2], strict=True)))


def _terms(heading: str, terms: list[tuple[str, str]]) -> str:
    texts = [f".TP\n.B {_roff(term.strip())}\n{_roff(what.strip())}\n" for term, what in terms]
    return f".SH {heading}\n" + "".join(texts)


def _see_also(names: list[str]) -> str:
    return ".SH SEE ALSO\n" + ",\n".join(f".BR {_roff(name)} (1)" for name in names) + "\n"


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/manual.py DIRECTORY")
    write(Path(sys.argv[1]))
