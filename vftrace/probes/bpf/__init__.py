# SPDX-License-Identifier: MIT
"""bpf(2) without a library: maps, programs, attachments, ring buffers."""
