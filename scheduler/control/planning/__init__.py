"""The planner: counts a job's rows and cuts them into chunks, checks trainings, and makes the children of arrays.

`training_checks` and `package_checks` also reject bad submissions early.
"""
