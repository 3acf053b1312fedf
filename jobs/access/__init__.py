"""Checks of what a job may read and write, and of whether its files are unchanged since it was submitted.

`paths` checks paths and URLs against the allowed roots; `model_files`, `model_check` and `model_fit` check a model's
folder without loading the model, `sentence_folder` and `joint_models` that of a model for embeddings; `stamps` and
`pins` detect whether a file or folder has changed.
"""
