"""What keeper and runner say to each other over pipes, and how a runner shows that it makes progress.

`protocol` has the messages, `pulse` the progress of each thread.
"""
