"""Joins what two hosts saw of one migration."""
