"""Models on a device: loading, keeping warm, and what their inputs and outputs look like.

`load` makes a model of its files, `cache` keeps some, `pinned` holds a job to one version; `task_model` is what the
engine asks of a task; `tokens`, `media` and `sound` make tensors of texts, images and sounds.
"""
