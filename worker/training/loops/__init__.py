"""The training loops: transformers' Trainer, and a plain loop for users' own modules.

`trainer` and `loop` end each step in `steps`, which decides what happens then; `data_loading`, `row_order`, `rng` and
`schedule` make a resumed run equal to one that never stopped; `rehearsal` tries a user's module.
"""
