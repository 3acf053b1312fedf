"""Bulk inference inside a runner: read, tokenize, batch, forward, decode and commit as one overlapped pipeline."""
