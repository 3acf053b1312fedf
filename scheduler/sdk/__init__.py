"""The source of the `stoker` package, which users import.

The folder `stoker` is that package. It is installed under its own name; nothing imports it as a part of this package.
"""
