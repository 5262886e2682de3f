# SPDX-License-Identifier: MIT
"""The probes: what this kernel supports, how each probe is attached, and the loader.

`bcc` compiles, in a process of its own; `bpf` is bpf(2).
"""
