# SPDX-License-Identifier: MIT
"""Directories of recordings with hostile or damaged files, through every command that reads one."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.bytesmith import NESTED, ODD_TEXTS, damaged
from tests.fuzz.mutator import JSON_VALUES
from tests.fuzz.outputs import TooLongError, limited
from vftrace import cli
from vftrace.archive import index
from vftrace.archive.finish import CLOSED, PART, finish_all
from vftrace.archive.names import RUNNING, FileName
from vftrace.archive.retention import Limits, enforce
from vftrace.errors import VftraceError

GOLDEN = Path(__file__).parents[1] / "golden" / "recordings"
SECONDS = 10
"""The longest time of a command, waiting included: the harness itself counts CPU time only."""
_AT = datetime(2026, 11, 29, tzinfo=UTC)
_UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""What a terminal obeys; a line ends with \\n."""
_ODD_NAMES = (
    *(
        b"-.vft",
        b"--help.vft.gz",
        b"\x1b[2J.vft",
        b"\xff\xfe.vft.gz",
        b"a\nb.vft",
        b".vft",
        b"..vft",
    ),
    *(b"a" * 248 + b".vft.gz", b"notes.txt", b"%s%n.vft.gz", "\u202egz.vft".encode(), b"[b].vft"),
)
_KINDS = ("file",) * 12 + ("fifo", "socket", "directory", "link", "dangling", "loop", "device")


class ArchiveTarget:
    """A directory is listed, reported, finished and bounded, or refused with one line. Other files are not touched, and
    no text in a file sends control characters to the terminal."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="vftrace-fuzz-")
        self._kept = Path(self._root.name) / "kept"
        self._outside = Path(self._root.name) / "outside.vft.gz"
        names = ("cancel-precopy", "boot", "dump-guest-memory")
        self._seeds = [(GOLDEN / f"{name}.vft.gz").read_bytes() for name in names]
        self._entries = self._rows()

    def _rows(self) -> list[dict[str, Any]]:
        """Lines of an index that vftrace wrote."""
        self._fresh()
        for number, seed in enumerate(self._seeds):
            (self._kept / f"{number}.vft.gz").write_bytes(seed)
        index.read(self._kept)
        lines = (self._kept / index.NAME).read_bytes().splitlines()
        return [json.loads(line) for line in lines[1:]]

    def _fresh(self) -> None:
        shutil.rmtree(self._kept, ignore_errors=True)
        self._kept.mkdir()
        self._outside.write_bytes(self._seeds[0])

    def one(self, chance: Random) -> None:
        """Make a directory, and run a command or the recorder's own work on it."""
        self._fresh()
        made = [self._entry(chance) for _ in range(chance.choice((1, 2, 3, 6)))]
        self._index(chance)
        what = chance.choice(("list", "report", "file", "finish", "enforce", "add", "known"))
        said = f"{what} {[os.fsencode(path) for path in made]}"
        try:
            with limited(SECONDS, waiting=True):
                self._run(what, chance, made)
            assert self._outside.read_bytes() == self._seeds[0], "outside"
        except (Exception, TooLongError) as error:
            error.add_note(said)
            raise

    def _run(self, what: str, chance: Random, made: list[Path]) -> None:
        others = {p: p.lstat().st_ino for p in made if not index.is_recording_name(p.name)}
        match what:
            case "list":
                options = chance.choice(([], ["--json"], ["--failed"], ["--last", "2"]))
                _command("list", *options, str(self._kept))
            case "report":
                form = chance.choice(("text", "json", "html"))
                _command("report", "--format", form, str(self._kept))
            case "file":
                named = chance.choice(made)
                out = ("-o", str(self._kept / "anonymous.vft.gz"), "--force")
                command = chance.choice((("dump",), ("report",), ("list",), ("anonymize", *out)))
                if named.is_file():  # a pipe that is named is read, which waits
                    _command(*command, "--", str(named))
            case "finish":
                finish_all(self._kept, (), lambda path: None)
            case "enforce":
                limits = Limits(chance.choice((0, 10**18)), chance.choice((0, 10_000, 1 << 40)))
                enforce(self._kept, limits, ())
            case "add":
                for path in made:
                    with contextlib.suppress(VftraceError):
                        index.add(path)
            case _:
                list(index.rows(index.known(self._kept)))
        for path, number in others.items():
            assert path.name.endswith(PART) or path.lstat().st_ino == number, path

    def _entry(self, chance: Random) -> Path:
        path = self._kept / os.fsdecode(_name(chance))
        if path.is_symlink() or path.exists():
            return path
        match chance.choice(_KINDS):
            case "file":
                path.write_bytes(self._content(chance))
            case "fifo":
                os.mkfifo(path)
            case "socket":
                here = os.open(self._kept, os.O_PATH)
                with socket.socket(socket.AF_UNIX) as bound, contextlib.suppress(OSError):
                    bound.bind(os.fsencode(f"/proc/self/fd/{here}/") + os.fsencode(path.name))
                os.close(here)
                path.touch()
            case "directory":
                path.mkdir()
            case "link":
                path.symlink_to(self._outside)
            case "dangling":
                path.symlink_to(self._kept / "missing")
            case "loop":
                path.symlink_to(path.name)
            case _:
                path.symlink_to(chance.choice(("/dev/zero", "/dev/null", "/proc/self/mem", "/")))
        return path

    def _content(self, chance: Random) -> bytes:
        data = chance.choice(self._seeds)
        match chance.randrange(6):
            case 0:
                return damaged(data, chance)
            case 1:
                return data[: chance.randrange(len(data))]
            case 2:
                return data + CLOSED
            case 3:
                return b""
        return data

    def _index(self, chance: Random) -> None:
        """What lies where the index is: often one that knows the files, in words that vftrace never wrote."""
        path = self._kept / index.NAME
        match chance.randrange(12):
            case 0:
                os.mkfifo(path)
            case 1:
                path.symlink_to(chance.choice((self._outside, Path("/dev/zero"), self._kept)))
            case 2:
                path.mkdir()
            case 3:
                path.write_bytes(damaged(self._lines(chance), chance))
            case 4:
                path.write_bytes(index._HEAD + chance.choice(NESTED).encode() + b"\n")
            case 5:
                path.write_bytes(index._HEAD + b'{"file":"' + b"a" * (4 << 20) + b'"}\n')
            case 6 | 7 | 8 | 9:
                path.write_bytes(self._lines(chance))

    def _lines(self, chance: Random) -> bytes:
        lines = [index._HEAD]
        for path in self._kept.iterdir():
            status = path.lstat()
            entry = json.loads(json.dumps(chance.choice(self._entries)))
            entry |= {
                "file": os.fsencode(path.name).decode("utf-8", "replace"),
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
            for row in entry["rows"]:
                row["file"] = entry["file"]
            for _ in range(chance.choice((0, 1, 1, 3))):
                _changed(entry, chance)
            # As msgspec writes it: text that is no UTF-8 cannot be in it
            lines.append(
                json.dumps(entry, ensure_ascii=chance.random() < 0.5).encode("utf-8", "replace")
                + b"\n"
            )
        return b"".join(lines)


def _changed(entry: dict[str, Any], chance: Random) -> None:
    """One field gets another value."""
    rows: list[Any] = entry["rows"] if isinstance(entry["rows"], list) else []
    where = chance.choice([entry, *[row for row in rows if isinstance(row, dict)] * 3])
    name = chance.choice([*where])
    value: Any = where[name]
    if isinstance(value, str) and chance.random() < 0.7:
        where[name] = chance.choice((*ODD_TEXTS, "../../etc/passwd", "/dev/zero"))
    elif isinstance(value, int) and chance.random() < 0.7:
        where[name] = chance.choice((-1, 0, 2**31, 2**63 - 1, 2**63, 2**64, 10**30))
    else:
        where[name] = chance.choice(JSON_VALUES)


def _name(chance: Random) -> bytes:
    if chance.random() < 0.25:
        return chance.choice(_ODD_NAMES)
    outcome = chance.choice((RUNNING, "completed", "failed"))
    number = chance.randrange(5)
    name = FileName(_AT + timedelta(seconds=number), "vm", outcome, f"{number:08x}")
    return f"{name}{PART if chance.random() < 0.1 else ''}".encode()


def _command(*arguments: str) -> None:
    """Run it as from a shell; AssertionError for a traceback, or for what no terminal should get."""
    raw, err = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(raw, "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(arguments))
    out.flush()
    said = err.getvalue()
    assert code in (0, 1, 2), (code, said)
    assert "internal error" not in said, said
    shown = said if "html" in arguments else said + raw.getvalue().decode()
    found = _UNSAFE.search(shown)
    assert found is None, shown[max(0, found.start() - 80) :][:200]
