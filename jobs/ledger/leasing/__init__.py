"""Leases from their grant to their end.

- `grants`: the leases of a pass. `leases`: activate, renew, release, fail the job. `next_job`: the next job of a slot.
- `lease_ends`, `lost_work`: how leases end, and what becomes of their work.
- `gangs`: status of a gang's leases. `reservations`: by when a waiting gang gets its slots.
"""
