"""The duties of the service: what happens to jobs between their submission and their end.

`service` runs the duties while `leader` holds the leader lock: `planner`, `dispatcher`, `reaper`, `finalizer`,
`retention`, `webhook_sender`. `retry_pool` runs slow duties in threads beside the loop of `service`. `admission` and
`training_checks` reject bad submissions early.
"""
