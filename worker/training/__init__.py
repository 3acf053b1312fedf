"""Training: each attempt runs in processes of its own; the slot's runner starts them and records their reports."""
