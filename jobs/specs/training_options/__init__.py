"""What a training accepts: its tasks, arguments, learning rate schedules, metrics, and the options of recipes.

`settable` is the base class of the options, `value_types` has their types.
"""
