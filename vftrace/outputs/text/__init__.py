"""Building blocks that `report` and `top` share."""
