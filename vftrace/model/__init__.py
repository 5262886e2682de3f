"""The results: immutable objects that every output reads."""
