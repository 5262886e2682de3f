"""The heart: events in, immutable migrations out. No clock, no I/O."""
