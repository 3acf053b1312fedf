"""OpenAI's Files and Batches: their formats, and how a batch becomes jobs and output files.

`requests` and `responses` translate bodies and are pure; `intake` reads a batch's file, `lifecycle` takes a batch from
upload to output, `answers` writes the output lines.
"""
