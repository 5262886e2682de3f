"""bpf(2) without a library: maps, programs, what they are attached to, ring buffers."""
