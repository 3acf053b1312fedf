"""The Celery worker of one slot: it holds the lease and starts, watches, stops and kills the runner.

`app` is the process, `keeper` runs one lease, `decisions` is its pure core, `runner_pool` keeps a warm runner,
`heartbeat` shows that the slot is alive, and `gang_member` and `gang_watch` tie the leases of a gang together.
"""
