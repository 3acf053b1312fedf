"""Tasks that run through `transformers.pipeline`, split into the engine's stages.

`staged` is the task, `calls` makes each pipeline's arguments, `joining` joins rows into batches, `alone` decides which
rows must not be joined; only `transformers_internals` uses the library's private names.
"""
