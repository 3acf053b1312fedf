"""What users submit, as pydantic models that refuse what cannot be right with one sentence.

`inference` and `training` are the two kinds of job, `fields` what they share, `bounds` how large anything may be.
`tasks` and `training_tasks` list the tasks; `parameters`, `training_arguments` and `learning_rate_schedules` hold what
each takes, by the types of `value_types` on the base of `settable`.
"""
