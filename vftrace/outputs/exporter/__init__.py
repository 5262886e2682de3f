"""Prometheus metrics and the server that exposes them."""
