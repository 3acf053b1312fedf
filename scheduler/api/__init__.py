"""The HTTP API: Stoker's own routes under /v1, health and metrics."""
