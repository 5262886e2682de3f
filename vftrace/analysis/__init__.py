"""Makes migrations of events. Pure: no clock, no I/O."""
