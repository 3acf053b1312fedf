"""What a training writes: checkpoints, weights, model card and learning curves.

`checkpoints` are complete or absent; `export_results` writes the rest when a training has ended.
"""
