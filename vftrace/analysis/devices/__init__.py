# SPDX-License-Identifier: MIT
"""What became of passed-through devices, and how a migration treated them."""
