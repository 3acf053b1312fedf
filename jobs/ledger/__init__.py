"""The verbs over the tables, one module for each kind of thing. Only these change a state.

- `jobs`: submit, get, list, cancel, fail, complete, retry. `planning`: chunks of a new job. `attempts`: trainings.
- `leases`: grant, activate, renew, hold, release. `lease_ends` and `lost_work`: what an ended lease leaves behind.
- `chunks`: claim, commit, give back. `gangs`: how the leases of a gang stand. `slots`: register, heartbeat, end.
- `batches`, `batch_ends`: OpenAI batches. `webhooks`, `announcements`: who is told that something ended.
- `history`, `logs`, `notices`: what people read about a job. `paging`: pages of any list.
- `sweeps`: what is due for the reaper. `usage`, `uploads`: what a project uses.
"""
