"""Rows and where they live: the files of an input, the artifact store, and the files of results.

`sources` read inputs by ranges of rows, `sinks` record results and write them out, `store` keeps artifacts by name,
`atomic` writes local files whole or not at all, `row_errors` decides when failed rows fail a job.
"""
