"""Models on a device: loading them, keeping them loaded, and preparing their inputs.

`load` loads a model from its files, `cache` keeps some loaded, `pinned` fixes a job's model to one version;
`task_model` is the interface between engine and task; `tokens`, `media` and `sound` prepare texts, images and sounds.
"""
