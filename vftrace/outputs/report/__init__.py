# SPDX-License-Identifier: MIT
"""The report, in every format."""
