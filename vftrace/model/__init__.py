"""What results are: immutable objects that every output reads."""
