"""The directory of a flight recorder: one file for each migration, an index beside them, and what is kept how long."""
