"""The files that a training writes: checkpoints, weights, model card and learning curves.

`checkpoints` writes complete checkpoints or none; `export_results` writes the artifacts when a training has ended.
"""
