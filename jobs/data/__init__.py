"""Rows and their storage: input files, the artifact store, and result files.

`sources` reads ranges of input rows; `sinks` records results and exports them. `store` keeps artifacts by the keys of
`store_keys`; `drafts` are objects that are being written. `atomic` writes local files completely or not at all, and
`row_errors` decides when failed rows fail a job.
"""
