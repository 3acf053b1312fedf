"""Every other task of `transformers.pipeline`, taken apart into the engine's stages.

`staged` is the task, `calls` what each pipeline is called with, `joining` how rows share a batch, `alone` which must
not; `transformers_internals` is the one place that touches the library's private names.
"""
