# SPDX-License-Identifier: MIT
"""Identifies the VMs, devices and peers of this host: which process is which VM, which fd is which device or peer."""
