"""Texts of rows as tensors of token ids.

`tokens` tokenizes rows and pads batches, `text_fields` checks them before, `limits` bounds the length of a row,
`chat_form` renders a text as a chat, `padding` names the ways to pad, and `packing` computes a batch without padding.
"""
