"""Real QEMU/KVM migrations made on this machine, and QEMU's own account of them.

Nothing here knows about tracing: what the guest does (`guest`), how QEMU is driven (`qemu`) and
what is played (`scenarios`) are the independent truth that the tracer is held against.
"""
