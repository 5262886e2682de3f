# SPDX-License-Identifier: MIT
"""`vftrace ping`: measures the longest time without replies, as a client of the guest sees it.

`ledger`, `gaps`, `intervals`, `distribution`, `histogram`, `packets`, `journal` and `text` are pure; sockets
and clocks are in `probes`, `sender` and `session`.
"""
