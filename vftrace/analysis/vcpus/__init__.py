# SPDX-License-Identifier: MIT
"""Computes from samples of vCPUs how slow a guest was, and why."""
