# SPDX-License-Identifier: MIT
"""The outputs for people and programs: each is made from a snapshot."""
