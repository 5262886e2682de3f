# SPDX-License-Identifier: MIT
"""Makes migrations of events. Pure: no clock, no I/O."""
