# SPDX-License-Identifier: MIT
"""The directory of a flight recorder: one file for each migration, an index, and the limits of age and size."""
