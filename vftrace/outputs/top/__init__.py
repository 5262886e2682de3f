# SPDX-License-Identifier: MIT
"""The live view."""
