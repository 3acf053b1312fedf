"""The stack on one machine: `stoker up` starts Redis, the API with the scheduler, and workers.

`stack` starts the parts in order, `supervisor` keeps them alive, `data_dir` locks the data directory, `redis_server`
prepares Redis, `environment` passes settings to child processes, and `doctor` checks an installation.
"""
