# SPDX-License-Identifier: MIT
"""Compiles and loads BPF programs through BCC; the only package that imports it."""
