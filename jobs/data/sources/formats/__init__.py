"""One module for each format of an input file, and what text formats share.

`jsonl`, `delimited`, `plain_text`, `parquet` and `arrow` implement `sources.reader`; `scanning`, `quotes`, `texts` and
`encodings` find rows in bytes.
"""
