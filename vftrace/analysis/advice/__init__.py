# SPDX-License-Identifier: MIT
"""Derives advice from finished migrations: one function for each rule, and no advice without evidence."""
