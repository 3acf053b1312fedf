"""Modules that come with Stoker, named `recipes.<name>`. Each is a small, complete example of a training module."""
