"""Where records come from: the live ring, or a recording. Both give the same bytes."""
