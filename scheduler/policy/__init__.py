"""Scheduling as a pure function of jobs, slots, leases and the time: no database, clock or network.

`decide` has the rules and their order, `decision_table` the steps of a decision. `preemption` chooses leases to take
back, `shares` compares what projects hold and have used, `reservations` reserves slots for a gang, `growth` says
whether loading a model on one more slot pays, and `explanations` why a job waits. `slot_table`, `groups` and `takeable`
know which slots are free or can be freed, and which of them a job takes first. `types` has the input and output values.
"""
