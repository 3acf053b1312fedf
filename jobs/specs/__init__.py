"""Job specs as pydantic models, which reject an invalid spec with one sentence.

`inference` and `training` are the two kinds of job, `array_spec` and `sweep_spec` make many jobs of one. `fields` has
their common fields, `bounds` limits sizes, `tasks` lists the tasks. `parameters/` and `training_options/` define what
each task accepts.
"""
