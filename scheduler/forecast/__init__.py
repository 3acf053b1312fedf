"""When jobs will start and end: the scheduling policy run forward from now, as if no other job arrived.

All of this is pure. `estimates` says how much work a job has left and how fast it is, `simulate` runs the policy,
`spans` turns runs into times of each job, `intervals` says how far such times were wrong before.
"""
