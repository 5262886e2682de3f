"""What a person reads in a terminal: the live view, and what it shares with the report."""
