"""What this kernel can carry, how each probe is attached, and the loader: the only place that imports bcc."""
