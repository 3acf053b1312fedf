"""Modules that `trainer: torch` brings along, named `recipes.<name>`; each is a small, whole example of a `build`."""
