# SPDX-License-Identifier: MIT
"""The Grafana boards as a program: `python -m dashboards.boards` writes dashboards/grafana/*.json.

One module for each board, `style` for what they share. Names of phases, checkpoints, outcomes and device
states come from vftrace itself, so a board cannot know others than the metrics have.
"""
