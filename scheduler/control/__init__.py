"""The duties of the service: what happens to jobs between their submission and their end.

`service` runs the `duties` while `leader` holds the leader lock: `planning/`, `dispatch/`, `reaper`, `finalizer`,
`cron`, `forecaster`, `retention`, `webhook_sender`. `retry_pool` runs slow duties in threads beside the loop of
`service`. `admission/` decides about a submission before it is a job.
"""
