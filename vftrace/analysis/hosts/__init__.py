# SPDX-License-Identifier: MIT
"""Joins the halves of migrations that two hosts saw."""
