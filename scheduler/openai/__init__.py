"""OpenAI's Files and Batches: their formats, and how a batch becomes jobs and output files.

`requests`, `responses` and `transcripts` translate bodies and are pure; `intake` reads a batch's file, `lifecycle`
takes a batch from upload to output, `output_lines` writes the lines of its output files.
"""
