"""The child process of a slot that holds torch and the loaded models.

`main_loop` runs one lease after another, `keeper_link` has the runner's ends of the pipes to the keeper, and
`torch_engine` holds torch and the models.
"""
