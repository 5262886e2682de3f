"""Computes from samples of vCPUs how slow a guest was, and why."""
