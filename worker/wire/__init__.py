"""The messages between keeper and runner, and how a runner shows that it makes progress.

`protocol` has the messages, `pipes` carries them as lines, and `pulse` tracks the progress of each thread.
"""
