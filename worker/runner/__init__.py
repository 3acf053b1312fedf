"""The child process of a slot that holds torch and the loaded models.

`main_loop` runs one lease after another, `keeper_link` is its ends of the pipes to the keeper, `torch_engine` holds
torch and the models.
"""
