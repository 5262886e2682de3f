# SPDX-License-Identifier: MIT
"""The command line's own behaviour, with stand-in subcommands."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import vftrace
from vftrace import cli
from vftrace.errors import MachineError, UsageError, VftraceError
from vftrace.units import parse_duration
from vftrace.version import bcc_version, commit_of


def install_command(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]
) -> None:
    """Make `record` the only subcommand, and let it do `run`."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--duration", type=parse_duration)

    command = SimpleNamespace(HELP="stands in", EXAMPLES=(), add_arguments=add_arguments, run=run)
    monkeypatch.setattr(cli, "available_commands", lambda: ("record",))
    monkeypatch.setattr(cli, "load_command", lambda name: command)


def raises(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([option])
    assert ended.value.code == 0
    assert re.fullmatch(
        rf"vftrace {re.escape(vftrace.__version__)} \((commit [0-9a-f]+\+?, )?Python 3\.\S+, BCC .+\)\n",
        capsys.readouterr().out,
    )


def test_the_commit_of_a_checkout_and_of_a_built_package(tmp_path: Path) -> None:
    package = tmp_path / "vftrace"
    package.mkdir()
    assert commit_of(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "begin"]):
        subprocess.run([*git, *words], check=True)
    made = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    commit = commit_of(package)
    assert commit
    assert made.stdout.startswith(commit)
    (package / "_commit").write_text("0123abc\n")
    assert commit_of(package) == "0123abc"


def test_the_version_of_bcc_is_bccs_own() -> None:
    says = [sys.executable, "-c", "import bcc; print(bcc.__version__)"]
    said = subprocess.run(says, check=False, capture_output=True, text=True)
    assert bcc_version() == (said.stdout.strip() or None)


@pytest.mark.parametrize("name", cli.available_commands())
def test_help_shows_examples_that_are_right(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["help", name])
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert capsys.readouterr().out == shown
    examples = cli.load_command(name).EXAMPLES
    assert examples
    for line, what in examples:
        assert f"\n  {line}\n      {what}\n" in shown
        program, *argv = shlex.split(line)
        assert program == "vftrace"
        assert cli.build_parser(argv).parse_args(argv).command == name


def test_help_alone_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in cli.available_commands())


def test_a_mistyped_command_is_met_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["reprot", "x.vft"]) == 2
    assert (
        capsys.readouterr().err == "vftrace: there is no command 'reprot'; did you mean report?\n"
    )
    assert cli.main(["xyzzy"]) == 2
    assert "commands are demo, " in capsys.readouterr().err


def test_the_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(monkeypatch, lambda args: 0 if args.duration == 250_000_000 else 1)
    assert cli.main(["record", "--duration", "250ms"]) == 0
    assert cli.main(["record", "--duration", "251ms"]) == 1


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (VftraceError("no good"), 1, ["vftrace: no good"]),
        (VftraceError("no\n  good"), 1, ["vftrace: no good"]),
        (UsageError("what?"), 2, ["vftrace: what?"]),
        (MachineError("no KVM"), 3, ["vftrace: no KVM"]),
        (
            MachineError("no bcc", "apt-get install python3-bpfcc"),
            3,
            ["vftrace: no bcc", "  to fix: apt-get install python3-bpfcc"],
        ),
        (FileNotFoundError(2, "No such file", "x.vft"), 1, ["vftrace: x.vft: No such file"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    lines: list[str],
) -> None:
    install_command(monkeypatch, raises(error))
    assert cli.main(["record"]) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_a_bug_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command(monkeypatch, raises(KeyError("slot")))
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    assert cli.main(["record"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "internal error" in line
    assert "KeyError: 'slot'" in line
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    assert cli.main(["record"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_socket_is_not_taken_for_a_reader_who_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command(monkeypatch, raises(BrokenPipeError(32, "Broken pipe")))
    monkeypatch.setattr(cli, "_reader_is_gone", lambda: False)
    assert cli.main(["record"]) == 1
    assert capsys.readouterr().err == "vftrace: Broken pipe\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["--nonsense"],
        ["record", "--nonsense"],
        ["record", "stray"],
        ["record", "--duration"],
        ["record", "--duration", "soon"],
        ["record", "--dur", "1s"],
    ],
)
def test_a_wrong_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    install_command(monkeypatch, lambda args: 0)
    assert cli.main(argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["report", "--formt", "json"],
            "--formt; did you mean --format? (see: vftrace report --help)",
        ),
        (
            ["report", "x.vft", "--json"],
            "--json; did you mean --format json? (see: vftrace report --help)",
        ),
        (
            ["record", "--dur", "1s"],
            "--dur 1s; did you mean --duration? (see: vftrace record --help)",
        ),
        (
            ["record", "trace.vft"],
            "trace.vft; did you mean -o trace.vft? (see: vftrace record --help)",
        ),
        (["record", "-o", "a.vft", "b.vft"], "b.vft (see: vftrace record --help)"),
        (["top", "stray"], "stray (see: vftrace top --help)"),
        (["report", "a.vft", "--failed", "b.vft"], "b.vft (see: vftrace report --help)"),
        (["list", "--zzz"], "--zzz (see: vftrace list --help)"),
        (["--zzz"], "--zzz (see: vftrace --help)"),
    ],
)
def test_a_mistyped_option_is_met_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == f"vftrace: unrecognized arguments: {said}\n"


def test_no_subcommand_shows_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command(monkeypatch, lambda args: 0)
    assert cli.main([]) == 2
    assert "stands in" in capsys.readouterr().err


def test_commands_are_offered_in_help_order() -> None:
    offered = cli.available_commands()
    assert list(offered) == [name for name in cli.COMMANDS if name in offered]


@pytest.mark.parametrize("name", cli.available_commands())
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vftrace {name}")


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in cli.available_commands())]
)
def test_help_never_imports_bcc(arguments: list[str]) -> None:
    program = (
        "import sys; from vftrace.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "sys.exit('bcc' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: vftrace")


def test_a_reader_who_leaves_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "vftrace", "--version"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (cli.EXIT_READER_GONE, "")


def test_the_demo_names_the_library_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "qemu" or name.startswith("vftrace.demo."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "qemu", None)
    assert cli.main(["demo", "--list"]) == 3
    assert "pip install 'vftrace[demo]'" in capsys.readouterr().err
    assert cli.main(["demo"]) == 0
    replayed = capsys.readouterr()
    assert "replaying a recording of a real migration instead" in replayed.err
    assert "completed" in replayed.out


def test_the_demo_replays_no_other_scenario_than_it_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["demo", "--replay", "--scenario", "postcopy"]) == 2
    assert "leave out --scenario or --replay" in capsys.readouterr().err
