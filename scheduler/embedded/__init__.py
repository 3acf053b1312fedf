"""The stack on one machine: `stoker up` starts Redis, the API with the scheduler, and workers.

`stack` starts the parts in order and has them kept alive, `data_dir` locks the data directory, `redis_server` prepares
Redis, `logged_program` sends a part's output to its log, `environment` passes settings to child processes, and `doctor`
checks an installation.
"""
