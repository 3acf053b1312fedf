"""Tasks that run through `transformers.pipeline`, split into the engine's stages.

`staged` is the task, `open_pipeline` loads its model, `parameters` checks a job's parameters, `calls` makes the
arguments of each pipeline, `row_tables` parses tables and words with boxes, `videos` prepares rows and reads their
videos, `joining` joins rows into batches, and `alone` decides which rows must not be joined.
"""
