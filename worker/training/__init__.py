"""Training: a process of its own for each attempt, and what its runner does around it."""
