"""Pure scheduling: from what there is to what is to be done, without database, clock or network.

`decide` grants slots and says why a job waits, `preemption` chooses leases to take back, `types` are the values that go
in and come out.
"""
