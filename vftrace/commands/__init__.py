# SPDX-License-Identifier: MIT
"""One module per subcommand; the module's name is the subcommand's name.

A module has `HELP: str` (one line), `add_arguments(parser) -> None` and `run(args) -> int`, which
returns the exit code. `vftrace.cli` imports only the module of the given subcommand, so that `report`
runs where bcc is missing.
"""
