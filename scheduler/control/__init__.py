"""The duties of the service: what happens to jobs between their submission and their end.

`service` runs the duties while `leader` says that this scheduler may: `planner`, `dispatcher`, `reaper`, `finalizer`,
`retention`, `webhook_sender`. `retry_pool` works beside its loop; `admission` and `training_checks` refuse early.
"""
