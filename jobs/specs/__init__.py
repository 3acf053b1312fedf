"""What users submit, as pydantic models that refuse what cannot be right with one sentence.

`inference` and `training` are the two kinds of job and `fields` what they share; `tasks` and `training_tasks` list the
tasks, `parameters` and `training_arguments` what each takes; `bounds` says how large anything may be.
"""
