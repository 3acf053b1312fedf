"""The stack on one machine: `stoker up` starts Redis, the API with the scheduler, and workers.

`stack` puts the parts together, `supervisor` keeps them alive, `data_dir` and `redis_server` own what they need,
`environment` hands settings to child processes, `doctor` says what is missing.
"""
