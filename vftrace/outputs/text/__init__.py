# SPDX-License-Identifier: MIT
"""Building blocks that `report` and `top` share."""
