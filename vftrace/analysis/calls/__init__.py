# SPDX-License-Identifier: MIT
"""Finds the causes of each step of a blackout in records of system calls."""
