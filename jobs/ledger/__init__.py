"""Functions that read and change the tables, one module per subject. Only these functions change a state.

- `jobs`: submit, get, list, cancel, fail, complete, retry. `planning`: chunks of a new job. `attempts`: trainings.
- `chunks`: claim, commit, give back. `counts`: a job's counters. `slots`: register, heartbeat, retire. `logs`: lines.
- `overdue`: what the reaper does to all jobs. `job_ends`: what every end of a job brings with it.
- `families`, `dependencies`: what the end of a job changes for other jobs. `job_pins`: digests stamped on a spec.
- `leasing/`: leases from grant to end, gangs, and what becomes of lost work.
- `groups/`: several jobs as one thing: arrays, cron entries, OpenAI batches.
- `timing/`: how fast jobs are, where their time goes, and forecasts of their ends.
- `accounts/`: what projects have used, have waiting and have uploaded; numbers of jobs by state.
- `records/`: events and notices of jobs, webhooks, and pages of any list.
"""
