# SPDX-License-Identifier: MIT
"""The results: immutable objects that every output reads."""
