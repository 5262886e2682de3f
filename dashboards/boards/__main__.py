# SPDX-License-Identifier: MIT
"""Writes the boards, or with --check prints which are not up to date (exit code 1)."""

import sys
from pathlib import Path

from dashboards.boards import fleet, migration, tracer, vf
from dashboards.boards.style import to_text

DIRECTORY = Path(__file__).resolve().parents[1] / "grafana"
BOARDS = {module.UID: module.board for module in (fleet, migration, vf, tracer)}


def texts() -> dict[str, str]:
    """File name to JSON text of every board."""
    return {f"{uid}.json": to_text(board()) for uid, board in BOARDS.items()}


def main(arguments: list[str]) -> int:
    """Write or check."""
    wanted = texts()
    if arguments == ["--check"]:
        there = {path.name: path.read_text() for path in DIRECTORY.glob("*.json")}
        stale = sorted(name for name in wanted | there if wanted.get(name) != there.get(name))
        for name in stale:
            print(f"{name} is not what the program makes: python -m dashboards.boards")
        return 1 if stale else 0
    if arguments:
        print("usage: python -m dashboards.boards [--check]", file=sys.stderr)
        return 2
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in wanted.items():
        (DIRECTORY / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
