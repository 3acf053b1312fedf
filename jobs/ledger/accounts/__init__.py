"""What belongs to a project: `usage` of its limits, `uploads`, and `project_use`, what it uses of the slots.

`totals`: how many jobs there are in each state, and their rows.
"""
