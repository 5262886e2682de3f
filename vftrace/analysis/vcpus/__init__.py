"""From samples of what vCPUs do to how slow a guest was, and why."""
