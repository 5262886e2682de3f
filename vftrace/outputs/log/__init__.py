# SPDX-License-Identifier: MIT
"""Log lines on standard error: one for each migration that began or ended, as text, JSON or journal fields."""
