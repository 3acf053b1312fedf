"""Job specs as pydantic models, which reject an invalid spec with one sentence.

`inference` and `training` are the two kinds of job, `fields` has their common fields, and `bounds` limits sizes.
`tasks` and `training_tasks` list the tasks. `parameters`, `training_arguments` and `learning_rate_schedules` define
what each accepts, with the value types of `value_types` and the base class of `settable`.
"""
