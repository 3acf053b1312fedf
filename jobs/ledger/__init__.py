"""Functions that read and change the tables, one module per subject. Only these functions change a state.

- `jobs`: submit, get, list, cancel, fail, complete, retry. `planning`: chunks of a new job. `attempts`: trainings.
- `leases`: grant, activate, renew, release. `lease_ends` and `lost_work`: what happens when a lease ends.
- `chunks`: claim, commit, give back. `gangs`: status of a gang's leases. `slots`: register, heartbeat, retire.
- `batches`, `batch_ends`: OpenAI batches. `webhooks`, `announcements`: events about what ended.
- `history`, `logs`, `notices`: events, log lines and notices of a job. `paging`: pages of any list.
- `sweeps`: the reaper's work on all jobs. `usage`, `uploads`: a project's usage of its limits, and its uploads.
"""
