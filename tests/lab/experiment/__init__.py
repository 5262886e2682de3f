# SPDX-License-Identifier: MIT
"""The experiment: a guest with a virtual function moves live between two emulated hosts, every way there is.

`cases` says which ways, `agent` and `host` run inside the hosts, `conduct` moves the guest and has the
third point ping it, `table` writes docs/results/experiment.md.
"""
