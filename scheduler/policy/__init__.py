"""Scheduling as a pure function of jobs, slots, leases and the time: no database, clock or network.

`decide` grants slots and says why a job waits, `preemption` chooses leases to take back, `types` holds the input and
output values.
"""
