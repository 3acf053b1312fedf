"""Models on a device: loading them, keeping them loaded, and preparing their inputs.

`load` loads a model from its files, `cache` keeps some loaded, `pinned` fixes a job's model to one version;
`task_model` is the interface between engine and task; `texts` and `media` prepare a model's inputs, `kernels` compute
parts of it faster.
Only `transformers_internals` uses private names of transformers.
"""
