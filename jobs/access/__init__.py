"""What a job may read, write or call, and whether it is still what was submitted.

`paths` holds the roots that paths are checked against; `model_files`, `model_check` and `model_fit` look at a model's
folder without loading it; `stamps` and `pins` tell whether a file or folder has changed since.
"""
