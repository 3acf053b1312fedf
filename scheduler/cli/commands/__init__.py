"""The commands of `stoker`. Each module adds its commands to the Typer app with `add_to`.

A module parses options, calls the client or starts processes, and prints with `scheduler.cli.terminal`.
"""
