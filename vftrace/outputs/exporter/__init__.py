# SPDX-License-Identifier: MIT
"""Prometheus metrics and the server that exposes them."""
