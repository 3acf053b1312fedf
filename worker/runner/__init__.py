"""The child process of a slot that holds torch and the loaded models.

`main_loop` reads orders from the keeper and runs one lease after another.
"""
