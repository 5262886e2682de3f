# SPDX-License-Identifier: MIT
"""Brings events from the kernel or a recording to the analysis."""
