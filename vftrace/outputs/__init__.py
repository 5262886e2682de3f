"""What people and programs read: each output is made from a snapshot."""
