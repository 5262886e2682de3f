# SPDX-License-Identifier: MIT
"""The command line: finds the subcommand's module, runs it, and turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 3 this machine cannot; 130 after Ctrl-C.
"""

import argparse
import gc
import importlib
import importlib.util
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

from vftrace.errors import MachineError, UsageError, VftraceError, printable

COMMANDS = (
    *("demo", "top", "serve", "record", "list", "report", "dump", "anonymize"),
    *("ping", "mailbox", "doctor"),
)
"""Subcommands in the order of the help; one whose module is missing is not offered."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
"""128 + SIGPIPE, the exit code of other tools when `| head` has read enough."""

HELP_COMMAND = "help"
"""`vftrace help [COMMAND]` does the same as `--help`."""

EXAMPLES_HEADING = "examples:\n"

DEBUG_VARIABLE = "VFTRACE_DEBUG"


class Command(Protocol):
    """The interface of a module in `vftrace.commands`."""

    HELP: str
    EXAMPLES: Sequence[tuple[str, str]]
    """Example command lines, each with what it does, for the end of the help."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the subcommand; returns the exit code."""


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps texts, but keeps the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES_HEADING):
            return text
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


class _Version(argparse.Action):
    """Prints the versions. It finds them only for this option, because that takes a moment."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vftrace.version import version_line

        print(version_line())
        parser.exit()


def available_commands() -> tuple[str, ...]:
    """The subcommands whose module exists, in help order; found without importing them."""
    return tuple(
        name
        for name in COMMANDS
        if importlib.util.find_spec(f"vftrace.commands.{name}") is not None
    )


def load_command(name: str) -> Command:
    """Import one subcommand's module."""
    return cast(Command, importlib.import_module(f"vftrace.commands.{name}"))


def build_parser(argv: Sequence[str]) -> Parser:
    """Return the parser for this command line; it imports only the named subcommand."""
    # The options before the subcommand take no values, so the first bare word is the subcommand.
    named = next((word for word in argv if not word.startswith("-")), None)
    names = available_commands()
    if named is not None and named not in names:
        raise UsageError(_no_command(named, names))
    parser = bare_parser()
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in names:
        if named is None or named == name:
            _add_command(subparsers, name)
        else:
            subparsers.add_parser(name)
    return parser


def bare_parser() -> Parser:
    """Return the parser of the options before the command."""
    parser = Parser(
        prog="vftrace",
        description="Show where the time of a live migration goes, seen from the host with BPF.",
        epilog="`vftrace help COMMAND` lists the options of a command and shows examples.",
        allow_abbrev=False,
    )
    parser.add_argument(
        *("-V", "--version"), action=_Version, nargs=0, help="show versions of what runs and exit"
    )
    return parser


def _add_command(subparsers: "argparse._SubParsersAction[Parser]", name: str) -> None:
    command = load_command(name)
    subparser = subparsers.add_parser(
        name,
        help=command.HELP,
        description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
        epilog=EXAMPLES_HEADING
        + "\n".join(f"  {line}\n      {what}" for line, what in command.EXAMPLES),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(subparser)


def _no_command(word: str, names: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, names, n=1)
    return f"there is no command {word!r}" + (
        f"; did you mean {near[0]}?" if near else f"; commands are {', '.join(names)}"
    )


def _unknown_arguments(args: argparse.Namespace, unknown: Sequence[str]) -> str:
    """Return the message about arguments that a command does not have, with what was meant if that is known."""
    named = "vftrace" if args.command is None else f"vftrace {args.command}"
    meant = None
    if args.command is not None:
        parser = Parser(prog=named, allow_abbrev=False)
        load_command(args.command).add_arguments(parser)
        if unknown[0].startswith("--"):
            meant = _meant_option(parser._actions, unknown[0].partition("=")[0])
        elif unknown[0][:1] != "-" and getattr(args, "output", "") is None:
            meant = _meant_output(parser._actions, unknown[0])
    said = f"; did you mean {meant}?" if meant else ""
    return f"unrecognized arguments: {' '.join(unknown)}{said} (see: {named} --help)"


def _meant_option(actions: Sequence[argparse.Action], word: str) -> str | None:
    """Return the option that a mistyped one resembles."""
    import difflib

    options: dict[str, str] = {}
    for action in actions:
        options |= {name: name for name in action.option_strings if name.startswith("--")}
        # `--json` where the command has `--format json`.
        options |= {
            f"--{choice}": f"{action.option_strings[-1]} {choice}"
            for choice in (action.choices if action.option_strings else None) or ()
        }
    near = [name for name in options if name.startswith(word)]
    near += difflib.get_close_matches(word, options, n=1, cutoff=0.75)
    return options[near[0]] if near else None


def _meant_output(actions: Sequence[argparse.Action], word: str) -> str | None:
    """Return `-o FILE` for a bare file name, if the command reads no files."""
    return f"-o {word}" if all(action.option_strings for action in actions) else None


def _without_help_command(argv: list[str]) -> list[str]:
    """Replace a first word `help` by `--help` behind the command that follows."""
    return [*argv[1:2], "--help"] if argv[:1] == [HELP_COMMAND] else argv


def main(argv: Sequence[str] | None = None) -> int:
    """Run vftrace with these arguments (the process's own if None); returns the exit code."""
    try:
        try:
            return _run(_without_help_command(list(sys.argv[1:] if argv is None else argv)))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except MachineError as error:
        _complain(str(error))
        if error.fix is not None:
            print(f"  to fix: {error.fix}", file=sys.stderr)
        return error.exit_code
    except VftraceError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        # A socket can break too: end silently only if the reader of standard output has gone.
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            _discard_stdout()
            return EXIT_READER_GONE
        _complain(_describe_os_error(error))
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            import traceback

            traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        _complain(f"internal error, please report it: {what} ({DEBUG_VARIABLE}=1 shows where)")
        return EXIT_FAILED


def _run(argv: Sequence[str]) -> int:
    # Imports leave nothing to collect. The search for garbage would take a sixth of their time, during them or once
    # after them.
    gc.disable()
    try:
        parser = build_parser(argv)
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            raise UsageError(_unknown_arguments(args, unknown))
    finally:
        gc.freeze()
        gc.enable()
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    command = load_command(args.command)
    if not getattr(args, "utc", False):
        return command.run(args)
    from vftrace.commands.common import local_time_is_utc

    with local_time_is_utc():
        return command.run(args)


def _complain(message: str) -> None:
    print(f"vftrace: {printable(' '.join(message.split()))}", file=sys.stderr)


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _discard_stdout() -> None:
    # Otherwise the interpreter's last flush of the buffered text would fail again, with a message.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
