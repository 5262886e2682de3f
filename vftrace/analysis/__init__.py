"""Turns events into migrations. Pure: no clock, no I/O."""
