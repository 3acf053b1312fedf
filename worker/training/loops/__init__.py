"""The training loops: transformers' Trainer, and a plain PyTorch loop for users' modules.

`trainer` and `loop` compute; `steps` does what follows each step for both. `data_loading`, `row_order`, `rng` and
`schedule` make a resumed training equal to one that never stopped. `rehearsal` runs a user's module for its tests.
"""
