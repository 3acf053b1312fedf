"""Faster ways to compute parts of a model: `packed_attention` over texts without padding, `attention_types` of models.

`onednn_linear` and `packed_output` keep weights in the form that a CPU computes with.
"""
