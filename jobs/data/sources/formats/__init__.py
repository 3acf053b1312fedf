"""One module for each format of input files, and the code that text formats share.

`jsonl`, `delimited`, `plain_text` and `parquet` implement `sources.reader`, and `arrow` converts tables for `parquet`
and data sets. `scanning`, `quotes`, `texts` and `encodings` find rows in bytes.
"""
