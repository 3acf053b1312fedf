"""Client libraries of others, unmodified, in an environment of their own, against a real stack."""
