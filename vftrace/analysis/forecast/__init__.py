# SPDX-License-Identifier: MIT
"""Forecasts downtime and total time of a pre-copy migration from its rounds."""
